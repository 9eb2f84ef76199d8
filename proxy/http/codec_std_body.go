package http

import (
	"errors"
	"io"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/remotegpu/sluice/proxy/http/field"
)

var errBodyOver = errors.New("the exchange is over")

// stdBody is the body of a request as net/http and quic-go have it.
type stdBody struct {
	r      *http.Request
	count  *atomic.Int64
	length int64 // -1: not known before the end

	// beforeRead, unless nil, is called before the first byte is wanted.
	beforeRead func()

	complete atomic.Bool // all of it has been read
	stopped  atomic.Bool

	mu  sync.Mutex // guards the following fields
	err error      // of reading from the client
}

func newStdBody(r *http.Request, count *atomic.Int64) *stdBody {
	b := &stdBody{r: r, count: count, length: r.ContentLength}
	if r.Body == nil || r.Body == http.NoBody {
		b.length = 0
	}
	b.complete.Store(b.length == 0)
	return b
}

func (b *stdBody) size() int64            { return b.length }
func (b *stdBody) atHand() ([]byte, bool) { return nil, b.length == 0 }
func (b *stdBody) announced() string      { return joinNames(b.r.Trailer) }

// Read is called by one goroutine at a time.
func (b *stdBody) Read(p []byte) (int, error) {
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
	case err == io.EOF || total == b.length:
		b.complete.Store(true)
	case err != nil && !b.stopped.Load():
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

// trailer returns the trailer, which has come when Read returned io.EOF.
func (b *stdBody) trailer() *field.List {
	if len(b.r.Trailer) == 0 {
		return nil
	}
	t := new(field.List)
	addStd(t, b.r.Trailer)
	return t
}

// stop has further reads fail.
func (b *stdBody) stop() {
	if !b.complete.Load() && !b.stopped.Swap(true) {
		b.r.Body.Close()
	}
}

// failure returns how reading from the client failed, or nil.
func (b *stdBody) failure() *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		return nil
	}
	return &failure{class: endClientGone, status: statusClientGone, err: b.err}
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
