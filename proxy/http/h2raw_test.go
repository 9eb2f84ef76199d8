package http_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Client is a client that sends the frames it is told to.
type h2Client struct {
	t      *testing.T
	conn   *tls.Conn
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
}

// rawH2 connects and exchanges settings; its own are settings.
func (r *rig) rawH2(t *testing.T, settings ...http2.Setting) *h2Client {
	t.Helper()
	c := &h2Client{t: t, conn: r.dialTLS("app.x.test", "h2")}
	c.conn.SetDeadline(time.Now().Add(2 * patience))
	io.WriteString(c.conn, http2.ClientPreface)
	c.framer = http2.NewFramer(c.conn, c.conn)
	c.framer.AllowIllegalWrites = true
	c.framer.SetMaxReadFrameSize(1 << 20)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	c.enc = hpack.NewEncoder(&c.block)
	c.framer.WriteSettings(settings...)
	for acked := false; !acked; {
		if f, ok := c.read().(*http2.SettingsFrame); ok {
			if acked = f.IsAck(); !acked {
				c.framer.WriteSettingsAck()
			}
		}
	}
	return c
}

// fields encodes "name: value" lines.
func (c *h2Client) fields(lines ...string) []byte {
	c.block.Reset()
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		c.enc.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	return bytes.Clone(c.block.Bytes())
}

// get has the fields of a GET.
func get(path string, more ...string) []string {
	return append([]string{":method: GET", ":scheme: https", ":authority: app.x.test", ":path: " + path}, more...)
}

// open sends HEADERS.
func (c *h2Client) open(stream uint32, end bool, lines ...string) error {
	return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.fields(lines...), EndStream: end, EndHeaders: true})
}

// openLarge is open, without an end, for fields that take several frames.
func (c *h2Client) openLarge(stream uint32, lines ...string) {
	block := c.fields(lines...)
	first := block[:min(len(block), 16<<10)]
	c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndHeaders: len(first) == len(block)})
	for block = block[len(first):]; len(block) > 0; {
		n := min(len(block), 16<<10)
		c.framer.WriteContinuation(stream, n == len(block), block[:n])
		block = block[n:]
	}
}

// read returns the next frame; nil at the end.
func (c *h2Client) read() http2.Frame {
	c.t.Helper()
	f, err := c.framer.ReadFrame()
	if err != nil {
		if isTimeout(err) {
			c.t.Fatal("waited in vain for a frame")
		}
		c.t.Log(err)
		return nil
	}
	return f
}

// until reads frames until want returns true for one. It fails the test at the
// end of the connection.
func (c *h2Client) until(what string, want func(http2.Frame) bool) {
	c.t.Helper()
	for {
		f := c.read()
		if f == nil {
			c.t.Fatalf("the connection ended before %s", what)
		}
		if want(f) {
			return
		}
	}
}

// response reads until a stream has ended, and returns its status and body.
func (c *h2Client) response(stream uint32) (status, body string) {
	c.t.Helper()
	c.until("a response", func(f http2.Frame) bool {
		if f.Header().StreamID != stream {
			return false
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s != "" {
				status = s
			}
			return f.StreamEnded()
		case *http2.DataFrame:
			body += string(f.Data())
			return f.StreamEnded()
		case *http2.RSTStreamFrame:
			status = "reset: " + f.ErrCode.String()
			return true
		}
		return false
	})
	return status, body
}

// goneWith reads to the end of the connection and returns what GOAWAY said last.
func (c *h2Client) goneWith() (code http2.ErrCode, told bool) {
	c.t.Helper()
	for {
		f, err := c.framer.ReadFrame()
		var opError *net.OpError
		switch {
		case err == nil:
		case isTimeout(err):
			c.t.Fatal("the connection is still open")
		case err == io.EOF, errors.As(err, &opError), errors.Is(err, io.ErrUnexpectedEOF):
			return code, told
		default:
			return code, told
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code, told = g.ErrCode, true
		}
	}
}

// dumbBackend says when a request has come, and answers once held is closed, even
// if nobody is there any more.
func dumbBackend(held <-chan struct{}, arrived chan<- struct{}) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			arrived <- struct{}{}
			<-held
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")
		}
	}
}
