package h1_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/h1"
)

// parseRequest parses text as it comes: whole, or a byte more at a time.
func parseRequest(text string, slowly bool) (*h1.Request, bool, error) {
	r, buf := new(h1.Request), []byte(text)
	from := len(buf)
	if slowly {
		from = 0
	}
	for n := from; n <= len(buf); n++ {
		if complete, err := r.Parse(buf[:n]); complete || err != nil {
			return r, complete, err
		}
	}
	return r, false, nil
}

func statusOf(err error) int {
	var e *h1.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

func TestRequestHeads(t *testing.T) {
	const host = "Host: a.test\r\n"
	for _, tc := range []struct {
		text, want string
	}{
		{"GET / HTTP/1.1\r\n" + host + "\r\n", "GET / a.test 1 len=0 keep"},
		{"GET / HTTP/1.0\r\n\r\n", "GET /  0 len=0 close"},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET /  0 len=0 keep"},
		{"GET / HTTP/1.1\r\n" + host + "Connection: x, Close\r\n\r\n", "GET / a.test 1 len=0 close"},
		{"GET / HTTP/1.1\r\n" + host + "Connection: close, keep-alive\r\n\r\n", "GET / a.test 1 len=0 close"},
		{"POST /a%2Fb?c=%zz HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", "POST /a%2Fb?c=%zz a.test 1 len=5 keep"},
		{"POST / HTTP/1.1\r\n" + host + "transfer-encoding: \t Chunked \r\n\r\n", "POST / a.test 1 len=-1 keep"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n", "POST / a.test 1 len=5 keep expect"},
		{"GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n", "GET / a.test 1 len=0 keep"},
		{"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", "POST /  0 len=1 close"},
		{"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: something\r\n\r\n", "417"},
		{"GET http://b.test:81/x?y HTTP/1.1\r\n" + host + "\r\n", "GET http://b.test:81/x?y b.test:81 1 len=0 keep"},
		{"GET HTTPS://b.test HTTP/1.1\r\n" + host + "\r\n", "GET HTTPS://b.test b.test 1 len=0 keep"},
		{"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "OPTIONS * a.test 1 len=0 keep"},
		{"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "CONNECT a.test:443 a.test:443 1 len=0 keep"},
		{"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / [::1]:80 1 len=0 keep"},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET /  1 len=0 keep"},
		{"GET /\"|^{}ü HTTP/1.1\r\n" + host + "X: \x80\xff\t.\r\n\r\n", "GET /\"|^{}ü a.test 1 len=0 keep"},

		{"GET / HTTP/1.1\n" + host + "\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: a.test\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a\r\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n X: a\r\n" + host + "\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X : a\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X\t: a\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X(: a\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "Xü: a\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a long value with a \x1b in it\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + "X: a\x7f\r\n\r\n", "400"},
		{"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET  / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /  HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET / a HTTP/1.1\r\n" + host + "\r\n", "400"},
		{" GET / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET\t/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /\r\n" + host + "\r\n", "400"},
		{"GET HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"G(T / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET / HTTPS/1.1\r\n" + host + "\r\n", "400"},
		{"GET / http/1.1\r\n" + host + "\r\n", "400"},
		{"GET / HTTP/1.1 \r\n" + host + "\r\n", "400"},
		{"GET / HTTP/1.2\r\n" + host + "\r\n", "505"},
		{"GET / HTTP/0.9\r\n" + host + "\r\n", "505"},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		{"GET / HTTP/1.1\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\n" + host + host + "\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: a.test:80:80\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: a.test:x\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "400"},
		{"GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n", "400"},
		{"GET http://u@b.test/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET http:///x HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET ftp://b.test/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET b.test HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET * HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /a#b HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /a\x01b HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /%zz HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"GET /%2 HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: -5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5_0\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551621\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "400"},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "400"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked;q=1\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n", "501"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer_Encoding: chunked\r\n\r\n", "POST / a.test 1 len=0 keep"},
		{"GET / HTTP/1.1\r\n" + host + "Expect: 200-ok\r\n\r\n", "417"},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 1001) + "\r\n", "431"},
	} {
		for _, slowly := range []bool{false, true} {
			r, complete, err := parseRequest(tc.text, slowly)
			got := fmt.Sprint(statusOf(err))
			if err == nil && complete {
				got = fmt.Sprintf("%s %s %s %d len=%d %s", r.Method, r.Target, r.Authority, r.Minor, r.Length,
					map[bool]string{true: "keep", false: "close"}[r.KeepAlive])
				if r.Expect {
					got += " expect"
				}
			}
			if got != tc.want {
				t.Errorf("%q (slowly: %v): %s (%v), want %s", tc.text, slowly, got, err, tc.want)
			}
		}
	}
}

// TestRequestIsRefusedAtOnce checks that no end is waited for by who speaks
// something else.
func TestRequestIsRefusedAtOnce(t *testing.T) {
	for _, text := range []string{"SSH-2.0-x\r\n", "\x16\x03\x01\x02\n", "GET / HTTP/1.1\r\nX y\r\n", "\n"} {
		if _, _, err := parseRequest(text, true); err == nil {
			t.Errorf("%q is waited upon", text)
		}
	}
}

func TestRequestTooLarge(t *testing.T) {
	for text, want := range map[string]int{"GET /" + strings.Repeat("x", 100): 414, "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100): 431} {
		r, _, err := parseRequest(text, false)
		if got := r.TooLarge().Status; err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text[:20], got, err, want)
		}
	}
}

// TestParseAllocatesNothing holds for heads such as a browser's.
func TestParseAllocatesNothing(t *testing.T) {
	request := []byte("GET /lab/tree?reset HTTP/1.1\r\nHost: env-abc.remotegpu.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n" +
		"Accept: text/html,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate, br\r\nCookie: a=b; c=d\r\nConnection: keep-alive\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello")
	var r h1.Request
	var p h1.Response
	fields := &r.Fields
	if n := testing.AllocsPerRun(100, func() {
		r.Reset()
		if ok, err := r.Parse(request); !ok || err != nil {
			t.Fatal(ok, err)
		}
		p.Reset(fields)
		if ok, err := p.Parse(response, false); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a request and a response", n)
	}
}
