package http_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sendH3 is a sender of HTTP/3 that checks nothing.
func (r *rig) sendH3(t *testing.T, q rawRequest) string {
	t.Helper()
	block := func(fields [][2]string) []byte {
		var b bytes.Buffer
		enc := qpack.NewEncoder(&b)
		for _, f := range fields {
			enc.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return h3Frame(0x1, b.Bytes())
	}
	parts := [][]byte{block(q.head())}
	for _, content := range q.body {
		parts = append(parts, h3Data(content))
	}
	if q.trailer != nil {
		parts = append(parts, block(q.trailer))
	}
	c := r.rawH3(t).settled()
	defer c.conn.CloseWithError(0x100, "")
	answer, err := c.answer(c.request(parts...))
	if status := answer.status(); status != "" {
		return status
	}
	return "end: " + err.Error()
}

// sendH2 is a sender of HTTP/2 that checks nothing.
func (r *rig) sendH2(t *testing.T, q rawRequest) string {
	t.Helper()
	c := r.dialTLS("app.x.test", "h2")
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	// All of it at once: the server may end the connection at any of it.
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, c)
	framer.AllowIllegalWrites = true
	framer.WriteSettings()
	enc := hpack.NewEncoder(&block)
	headers := func(fields [][2]string, last bool) {
		block.Reset()
		for _, f := range fields {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: last, EndHeaders: true})
	}
	headers(q.head(), len(q.body) == 0 && q.trailer == nil)
	for i, part := range q.body {
		framer.WriteData(1, i == len(q.body)-1 && q.trailer == nil, []byte(part))
	}
	if q.trailer != nil {
		headers(q.trailer, true)
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return "write: " + err.Error()
	}
	return answerH2(t, framer)
}

// answerH2 returns the final status of stream 1, or how it ended without one.
func answerH2(t *testing.T, framer *http2.Framer) string {
	t.Helper()
	framer.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	status := ""
	for {
		f, err := framer.ReadFrame()
		if isTimeout(err) {
			t.Fatal("no answer at all")
		}
		if err == io.EOF && status != "" {
			return status
		}
		if err != nil {
			return "end: " + err.Error()
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s != "" && s[0] != '1' {
				status = s
			}
		case *http2.RSTStreamFrame:
			if status == "" {
				return fmt.Sprint("reset: ", f.ErrCode)
			}
			return status
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return fmt.Sprint("goaway: ", f.ErrCode)
			}
		}
		if status != "" && f.Header().StreamID == 1 && f.Header().Flags.Has(http2.FlagDataEndStream) {
			return status
		}
	}
}
