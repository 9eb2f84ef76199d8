package h1_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

var requestSeeds = []string{
	"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
	"POST /a?b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
	"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nX: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"GET http://u:p@b.test:8/x HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n x\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: [::1%25x]\r\n\r\n",
	"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\nExpect: 100-continue\r\n\r\nx",
}

// FuzzRequest holds the parser against net/http's server: what that refuses is
// refused here, and what both take they understand alike.
func FuzzRequest(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var r h1.Request
		complete, err := r.Parse(text)
		slow, slowComplete, slowErr := parseRequest(string(text), true)
		if complete != slowComplete || (err == nil) != (slowErr == nil) || complete && slow.Size() != r.Size() {
			t.Fatalf("whole: %v, %v; byte by byte: %v, %v", complete, err, slowComplete, slowErr)
		}
		if err != nil {
			var e *h1.Error
			if !errors.As(err, &e) || e.Status < 400 {
				t.Fatalf("error %v", err)
			}
		}
		if err != nil || !complete {
			return
		}
		std, err := serverReads(text)
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		sameRequest(t, &r, std)
		ours, oursErr := bodyOf(r.Length, text[r.Size():])
		theirs, theirsErr := io.ReadAll(std.Body)
		if oursErr == nil && (theirsErr != nil || !bytes.Equal(ours, theirs)) {
			t.Fatalf("body %q, for net/http %q, %v", ours, theirs, theirsErr)
		}
	})
}

// serverReads reads a request as net/http's server does, with the checks that it
// makes beyond ReadRequest.
func serverReads(text []byte) (*http.Request, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
	if err != nil {
		return nil, err
	}
	if r.ProtoMajor != 1 {
		return nil, errors.New("unsupported version")
	}
	if r.ProtoAtLeast(1, 1) && r.Host == "" && !bytes.Contains(bytes.ToLower(text), []byte("host:")) && r.Method != "CONNECT" {
		return nil, errors.New("no Host")
	}
	if !httpguts.ValidHostHeader(r.Host) {
		return nil, errors.New("malformed Host")
	}
	for name, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, errors.New("invalid field name")
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return nil, errors.New("invalid field value")
			}
		}
	}
	return r, nil
}

func sameRequest(t *testing.T, r *h1.Request, std *http.Request) {
	t.Helper()
	if r.Method != std.Method || r.Target != std.RequestURI || r.Minor != std.ProtoMinor {
		t.Fatalf("%s %s %d, for net/http %s %s %d", r.Method, r.Target, r.Minor, std.Method, std.RequestURI, std.ProtoMinor)
	}
	if r.Authority != std.Host && r.Method != "CONNECT" {
		t.Fatalf("authority %q, for net/http %q", r.Authority, std.Host)
	}
	if r.Length != std.ContentLength {
		t.Fatalf("length %d, for net/http %d", r.Length, std.ContentLength)
	}
	if r.KeepAlive && std.Close && r.Minor == 1 {
		t.Fatal("would go on where net/http would not")
	}
	sameFields(t, &r.Fields, std.Header)
}

// sameFields compares fields but for those that net/http takes out.
func sameFields(t *testing.T, l *field.List, std http.Header) {
	t.Helper()
	ours := http.Header{}
	for _, line := range l.Lines() {
		name := textproto.CanonicalMIMEHeaderKey(line.Name)
		ours[name] = append(ours[name], line.Value)
	}
	for _, name := range []string{"Host", "Transfer-Encoding", "Content-Length", "Trailer", "Pragma", "Cache-Control"} {
		delete(ours, name)
		delete(std, name)
	}
	for name, values := range ours {
		if !slices.Equal(values, std[name]) {
			t.Fatalf("%s: %q, for net/http %q", name, values, std[name])
		}
		if got := l.Get(strings.ToUpper(name)); got != values[0] {
			t.Fatalf("Get(%q) = %q, want %q", strings.ToUpper(name), got, values[0])
		}
	}
	if len(ours) != len(std) {
		t.Fatalf("fields %q, for net/http %q", ours, std)
	}
}

var errShort = errors.New("the body has not come whole")

func bodyOf(length int64, rest []byte) ([]byte, error) {
	switch {
	case length == h1.Chunked:
		content, _, done, _, err := decode(string(rest), max(1, len(rest)))
		if err == nil && !done {
			err = errShort
		}
		return []byte(content), err
	case length == h1.UntilEnd:
		return rest, nil
	case int64(len(rest)) < length:
		return rest, errShort
	}
	return rest[:length], nil
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.0 200 OK\r\n\r\nall",
		"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nEtag: x\r\n\r\n", "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
	} {
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, toHead bool) {
		r, complete, err := parseResponse(string(text), toHead, false)
		_, slowComplete, slowErr := parseResponse(string(text), toHead, true)
		if complete != slowComplete || (err == nil) != (slowErr == nil) {
			t.Fatalf("whole: %v, %v; byte by byte: %v, %v", complete, err, slowComplete, slowErr)
		}
		if err != nil || !complete {
			return
		}
		method := "GET"
		if toHead {
			method = "HEAD"
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		if r.Status != std.StatusCode || r.Minor != std.ProtoMinor {
			t.Fatalf("%d %d, for net/http %d %d", r.Status, r.Minor, std.StatusCode, std.ProtoMinor)
		}
		sameFields(t, r.Fields, std.Header)
		ours, oursErr := bodyOf(r.Length, text[r.Size():])
		theirs, theirsErr := io.ReadAll(std.Body)
		if r.Status >= 200 && oursErr == nil && (theirsErr != nil || !bytes.Equal(ours, theirs)) {
			t.Fatalf("body %q, for net/http %q, %v", ours, theirs, theirsErr)
		}
	})
}

// FuzzChunks holds the decoder against net/http's, and against itself with the
// bytes coming otherwise.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n", "a;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "5\r\nhello", "zz\r\n", "1\r\nx\n"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, text []byte, step int) {
		content, rest, done, _, err := decode(string(text), len(text)+1)
		again, restAgain, doneAgain, _, errAgain := decode(string(text), 1+step&0xff)
		if content != again && err == nil || done != doneAgain || (err == nil) != (errAgain == nil) || done && rest != restAgain {
			t.Fatalf("whole: %q, %q, %v, %v; in parts: %q, %q, %v, %v", content, rest, done, err, again, restAgain, doneAgain, errAgain)
		}
		if !done {
			return
		}
		std, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(text)))
		if err != nil || string(std) != content {
			t.Fatalf("%q, for net/http %q, %v", content, std, err)
		}
	})
}
