package http_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

// rawH3 is a client that says over QUIC what a test has it say.
type rawH3 struct {
	t       *testing.T
	conn    *quic.Conn
	control *quic.SendStream // after settled
}

// rawH3 dials r by QUIC and says nothing.
func (r *rig) rawH3(t *testing.T) *rawH3 {
	t.Helper()
	return r.narrowH3(t, 0)
}

// narrowH3 is rawH3 for a client that takes no more than window bytes of each
// stream before it reads them; 0: as many as usual.
func (r *rig) narrowH3(t *testing.T, window uint64) *rawH3 {
	t.Helper()
	conn, err := quic.DialAddr(t.Context(), r.quic.LocalAddr().String(),
		&tls.Config{RootCAs: r.roots, ServerName: "app.x.test", NextProtos: []string{"h3"}},
		&quic.Config{InitialStreamReceiveWindow: window})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseWithError(0x100, "") })
	return &rawH3{t: t, conn: conn}
}

// settled opens a control stream with empty SETTINGS.
func (c *rawH3) settled() *rawH3 {
	c.control = c.uni(0x0)
	c.write(c.control, h3Frame(0x4, nil))
	return c
}

// uni opens a unidirectional stream of a type.
func (c *rawH3) uni(kind uint64, content ...byte) *quic.SendStream {
	c.t.Helper()
	s, err := c.conn.OpenUniStreamSync(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(s, append(quicvarint.Append(nil, kind), content...))
	return s
}

// write writes b; the server may have ended the stream or the connection already.
func (c *rawH3) write(w io.Writer, b []byte) { w.Write(b) }

// request opens a stream and writes parts, then its end.
func (c *rawH3) request(parts ...[]byte) *quic.Stream {
	c.t.Helper()
	s := c.begin(parts...)
	s.Close()
	return s
}

// begin is request without the end.
func (c *rawH3) begin(parts ...[]byte) *quic.Stream {
	c.t.Helper()
	s, err := c.conn.OpenStreamSync(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(s, bytes.Join(parts, nil))
	return s
}

// closedBy waits for the server to end the connection, and returns the code.
func (c *rawH3) closedBy() uint64 {
	c.t.Helper()
	soon(c.t, "the connection's end", c.conn.Context().Done())
	var app *quic.ApplicationError
	if err := context.Cause(c.conn.Context()); !errors.As(err, &app) || !app.Remote {
		c.t.Fatalf("the connection ended by %v", err)
	}
	return uint64(app.ErrorCode)
}

// resetBy waits for the server to end s, and returns the code.
func (c *rawH3) resetBy(s *quic.Stream) uint64 {
	c.t.Helper()
	_, err := c.answer(s)
	var reset *quic.StreamError
	if !errors.As(err, &reset) || !reset.Remote {
		c.t.Fatalf("the stream ended by %v", err)
	}
	return uint64(reset.ErrorCode)
}

// h3Answer is what came on a stream.
type h3Answer struct {
	heads []map[string]string // informational ones, the final one, the trailer
	body  string
}

// status is that of the final head.
func (a *h3Answer) status() string {
	for _, h := range a.heads {
		if s := h[":status"]; s != "" && s[0] != '1' {
			return s
		}
	}
	return ""
}

// answer reads s to its end.
func (c *rawH3) answer(s *quic.Stream) (*h3Answer, error) {
	c.t.Helper()
	type result struct {
		a   *h3Answer
		err error
	}
	done := make(chan result, 1)
	go func() {
		a, err := readH3Answer(s)
		done <- result{a, err}
	}()
	got := soon(c.t, "the stream's end", done)
	return got.a, got.err
}

func readH3Answer(s io.Reader) (*h3Answer, error) {
	a, in := &h3Answer{}, quicvarint.NewReader(s)
	for {
		kind, err := quicvarint.Read(in)
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		length, err := quicvarint.Read(in)
		if err != nil {
			return a, err
		}
		content := make([]byte, length)
		n, err := io.ReadFull(in, content)
		if kind == 0x0 {
			a.body += string(content[:n])
		}
		if err != nil {
			return a, err
		}
		if kind == 0x1 {
			head := map[string]string{}
			for next := qpack.NewDecoder().Decode(content); ; {
				f, err := next()
				if err == io.EOF {
					break
				}
				if err != nil {
					return a, err
				}
				head[f.Name] += f.Value
			}
			a.heads = append(a.heads, head)
		}
	}
}

// h3Frame is a frame.
func h3Frame(kind uint64, content []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(content))), content...)
}

// h3Data is a DATA frame.
func h3Data(content string) []byte { return h3Frame(0x0, []byte(content)) }

// h3Fields is a HEADERS frame with lines of the form "name: value".
func h3Fields(lines ...string) []byte {
	var b bytes.Buffer
	e := qpack.NewEncoder(&b)
	e.WriteField(qpack.HeaderField{}) // has the encoder write its prefix
	b.Truncate(2)
	for _, line := range lines {
		name, value, _ := strings.Cut(line[1:], ": ")
		e.WriteField(qpack.HeaderField{Name: line[:1] + name, Value: value})
	}
	return h3Frame(0x1, b.Bytes())
}

// h3Head is h3Fields with the pseudo-header fields of a request for app.x.test.
func h3Head(method, path string, lines ...string) []byte {
	return h3Fields(append([]string{":method: " + method, ":scheme: https", ":authority: app.x.test", ":path: " + path}, lines...)...)
}

func varint(v uint64) []byte { return quicvarint.Append(nil, v) }
