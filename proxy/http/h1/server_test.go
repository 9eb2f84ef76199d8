package h1_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/http/h1"
)

const chunkedPost = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

// differences are all that net/http's server takes and this package refuses, by
// an example each, with the reason. FuzzAgainstServer fails upon any other.
var differences = []struct {
	text   string
	what   string // of the Error
	reason string
}{
	{"GET / HTTP/1.1\nHost: a\n\n", "a line does not end in CR LF", "could be one line or two"},
	{"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "a field line begins with white space", "could be one field or two (RFC 9112 section 5.2)"},
	{chunkedPost + "0\r\nX: y\r\n z\r\n\r\n", "a field line begins with white space", "as above, in a trailer"},
	{chunkedPost + "0\r\nX : y\r\n\r\n", "a field name is not a token that a colon follows", "a trailer is read as a head is"},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "Content-Length is there more than once", "framing is said once"},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0000000000000000001\r\n\r\nx", "Content-Length is not a number", "no body has a length of 19 digits"},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length and Transfer-Encoding are both there", "two readers may take either (RFC 9112 section 6.1)"},
	{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding has no place in HTTP/1.0", "no such thing (RFC 9112 section 6.1)"},
	{"POST / HTTP/1.0\r\nTransfer-Encoding: x\r\n\r\n", "the transfer coding is not chunked", "as above, where net/http reads no further"},
	{"GET / HTTP/1.2\r\nHost: a\r\n\r\n", "the version is neither HTTP/1.0 nor HTTP/1.1", "nobody speaks another one"},
	{"GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", "there must be one Host field that holds a host", "the authority is what routes go by"},
	{"GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", "the request target is not well formed", "user information has no place in an authority (RFC 9110 section 4.2.4)"},
	{"GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "the request target is not well formed", "nothing but http and https is proxied"},
	{"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "the request target is not well formed", "only OPTIONS asks for * (RFC 9112 section 3.2.4)"},
	{"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", "the request target is not well formed", "a fragment is no part of a target"},
	{"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 1001) + "\r\n", "the head has too many fields", "no client needs more than 1000"},
	{chunkedPost + "0\r\n" + strings.Repeat("a:b\r\n", 70) + "\r\n", "the head has too many fields", "nor more than 64 in a trailer"},
	{"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n", "the only expectation that can be met is 100-continue", "net/http looks at the first line only"},
	{chunkedPost + "1 \r\nx\r\n0\r\n\r\n", "a chunk's size is not a hexadecimal number", "only an extension may follow it (RFC 9112 section 7.1)"},
	{chunkedPost + "1;\x01\r\nx\r\n0\r\n\r\n", "a chunk's size is not a hexadecimal number", "control characters have no place in an extension"},
	{chunkedPost + "1;" + strings.Repeat("x", 300) + "\r\nx\r\n0\r\n\r\n", "a chunk's size line is too long", "a size has 16 digits at most"},
}

// TestDifferences makes sure that each of them is one.
func TestDifferences(t *testing.T) {
	std := newStdServer(t)
	for _, d := range differences {
		if _, err := ours([]byte(d.text)); err == nil || err.Error() != d.what {
			t.Errorf("%.80q: %v, want %s", d.text, err, d.what)
		}
		if !std.takes([]byte(d.text)) {
			t.Errorf("net/http refuses %.80q as well: it is no difference (%s)", d.text, d.reason)
		}
	}
}

// ours reads a request and its body. whole is whether they are all there.
func ours(text []byte) (whole bool, err error) {
	var r h1.Request
	complete, err := r.Parse(text)
	if err != nil || !complete {
		return false, err
	}
	_, err = bodyOf(r.Length, text[r.Size():])
	if errors.Is(err, errShort) {
		return false, nil
	}
	return err == nil, err
}

// FuzzAgainstServer sends a request to net/http's very server. What that refuses
// is refused here; what is refused here alone is among the differences.
func FuzzAgainstServer(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	known := map[string]bool{}
	for _, d := range differences {
		f.Add([]byte(d.text))
		known[d.what] = true
	}
	std := newStdServer(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		whole, err := ours(text)
		switch taken := std.takes(text); {
		case whole && !taken:
			t.Fatalf("net/http refuses it: %q", text)
		case err != nil && taken && !known[err.Error()]:
			t.Fatalf("refused here alone (%v): %q", err, text)
		}
	})
}

// stdServer is net/http's server, which is handed connections one by one.
type stdServer struct {
	conns chan net.Conn
	took  chan bool // the handler got a request, and its whole body
	over  chan bool // the connection ended
}

func newStdServer(t testing.TB) *stdServer {
	s := &stdServer{conns: make(chan net.Conn), took: make(chan bool, 1), over: make(chan bool, 1)}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			w.Header().Set("Connection", "close")
			select {
			case s.took <- err == nil:
			default:
			}
		}),
		ErrorLog:                     log.New(io.Discard, "", 0),
		DisableGeneralOptionsHandler: true,
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(s) })
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
	})
	return s
}

func (s *stdServer) Accept() (net.Conn, error) {
	c, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (s *stdServer) Close() error {
	close(s.conns)
	return nil
}

func (s *stdServer) Addr() net.Addr { return &net.TCPAddr{} }

// takes reports whether the handler got the first request of text, whole.
func (s *stdServer) takes(text []byte) bool {
	c := &cannedConn{in: bytes.NewReader(text), over: s.over}
	s.conns <- c
	<-s.over
	select {
	case took := <-s.took:
		// It refuses some only once the handler has had the request.
		resp, err := http.ReadResponse(bufio.NewReader(&c.out), nil)
		return took && (err != nil || resp.StatusCode < 400)
	default:
		return false
	}
}

// cannedConn gives a text, then the end.
type cannedConn struct {
	net.Conn
	mu     sync.Mutex
	in     *bytes.Reader
	out    bytes.Buffer
	closed bool
	over   chan bool
}

func (c *cannedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.in.Read(p)
}

func (c *cannedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *cannedConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *cannedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *cannedConn) SetDeadline(time.Time) error      { return nil }
func (c *cannedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *cannedConn) SetWriteDeadline(time.Time) error { return nil }

func (c *cannedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.over <- true
	}
	return nil
}
