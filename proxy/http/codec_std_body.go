package http

import (
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
)

var errBodyOver = errors.New("the exchange is over")

// requestBody is a request's body on its way to the backend. The upstream side
// reads it from a goroutine of its own, possibly beyond the exchange's end.
type requestBody struct {
	r      *http.Request
	count  *atomic.Int64
	length int64 // -1: not known before the end

	// trailer is the map that is sent upstream; it is filled at the end.
	trailer http.Header
	// beforeRead, unless nil, is called before the first byte is wanted.
	beforeRead func()

	streaming atomic.Bool // the upstream side may be reading
	complete  atomic.Bool // all of it has been read
	stopped   atomic.Bool

	mu  sync.Mutex // guards the following fields
	err error      // of reading from the client
}

func newRequestBody(r *http.Request, count *atomic.Int64) *requestBody {
	b := &requestBody{r: r, count: count, length: r.ContentLength}
	b.complete.Store(r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0)
	if r.Trailer != nil || b.length < 0 && r.ProtoMajor == 1 {
		b.trailer = http.Header{}
		for name := range r.Trailer {
			b.trailer[name] = nil // announced
		}
		dropFields(stdHeader(b.trailer), isForwarding)
	}
	return b
}

// Read is called by one goroutine at a time.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.stopped.Load() {
		return 0, errBodyOver
	}
	if b.beforeRead != nil {
		b.beforeRead()
		b.beforeRead = nil
	}
	n, err := b.r.Body.Read(p)
	total := b.count.Add(int64(n))
	switch {
	case err == io.EOF:
		b.takeTrailer()
		b.complete.Store(true)
	case err != nil:
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	case total == b.length:
		b.complete.Store(true)
	}
	return n, err
}

// takeTrailer keeps what the trailer may tell the backend.
func (b *requestBody) takeTrailer() {
	if b.trailer == nil {
		return
	}
	for name, values := range b.r.Trailer {
		if values != nil && !isHopByHop(name) && !isForwarding(name) {
			b.trailer[name] = values
		}
	}
}

// Close does nothing: the body is the codec's, and another target may be tried
// with it.
func (b *requestBody) Close() error { return nil }

// stop has further reads fail.
func (b *requestBody) stop() { b.stopped.Store(true) }

// failure returns how reading from the client failed, or nil.
func (b *requestBody) failure() *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	var network net.Error
	switch {
	case b.err == nil:
		return nil
	case b.r.ProtoMajor != 1, errors.Is(b.err, io.ErrUnexpectedEOF), errors.As(b.err, &network):
		return &failure{class: endClientGone, status: statusClientGone, err: b.err}
	}
	return &failure{class: endClientBody, status: 400, say: "the request's body is not well formed\n", err: b.err}
}

// outgoing returns the body as http.Transport wants it: nil where there is
// none.
func (b *requestBody) outgoing() io.ReadCloser {
	if b.complete.Load() {
		return nil
	}
	b.streaming.Store(true)
	return b
}

// restoreExpect puts Expect: 100-continue back, which net/http takes off
// requests over HTTP/2, so that the backend is asked whether it wants the body.
// That it was there shows only in the body, which will send 100 (Continue) when
// first read.
func restoreExpect(r *http.Request) {
	body := reflect.ValueOf(r.Body)
	if body.Kind() != reflect.Pointer || body.Elem().Kind() != reflect.Struct {
		return
	}
	if f := body.Elem().FieldByName("needsContinue"); f.IsValid() && f.Kind() == reflect.Bool && f.Bool() {
		r.Header.Set("Expect", "100-continue")
	}
}
