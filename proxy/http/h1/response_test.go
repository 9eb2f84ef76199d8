package h1_test

import (
	"fmt"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

func parseResponse(text string, toHead, slowly bool) (*h1.Response, bool, error) {
	r, buf := new(h1.Response), []byte(text)
	r.Reset(new(field.List))
	from := len(buf)
	if slowly {
		from = 0
	}
	for n := from; n <= len(buf); n++ {
		if complete, err := r.Parse(buf[:n], toHead); complete || err != nil {
			return r, complete, err
		}
	}
	return r, false, nil
}

func TestResponseHeads(t *testing.T) {
	for _, tc := range []struct {
		text   string
		toHead bool
		want   string
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, "200 len=5 keep"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", false, "200 len=5 close"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, "200 len=0 keep"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, "200 len=-1 keep"},
		{"HTTP/1.1 200 OK\r\n\r\nall the rest", false, "200 len=-2 close"},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, "200 len=5 close"},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", false, "200 len=5 keep"},
		{"HTTP/1.1 204 No Content\r\n\r\n", false, "204 len=0 keep"},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false, "304 len=0 keep"},
		{"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false, "103 len=0 keep"},
		{"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, "200 len=0 keep"},
		{"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", false, "200 len=0 keep"},
		{"HTTP/1.1 599 \xc3\xbc\r\nContent-Length: 0\r\n\r\n", false, "599 len=0 keep"},

		{"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n", false, "error"},
		{"HTTP/1.1 20 OK\r\n\r\n", false, "error"},
		{"HTTP/1.1 2000 OK\r\n\r\n", false, "error"},
		{"HTTP/1.1 099 OK\r\n\r\n", false, "error"},
		{"HTTP/1.1  200 OK\r\n\r\n", false, "error"},
		{"HTTP/2.0 200 OK\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 a\x00b\r\n\r\n", false, "error"},
		{"SSH-2.0-OpenSSH_9.2\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", false, "error"},
		{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nX : a\r\n\r\n", false, "error"},
		{"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", false, "error"},
	} {
		for _, slowly := range []bool{false, true} {
			r, complete, err := parseResponse(tc.text, tc.toHead, slowly)
			got := "error"
			if err == nil && complete {
				got = fmt.Sprintf("%d len=%d %s", r.Status, r.Length, map[bool]string{true: "keep", false: "close"}[r.KeepAlive])
			}
			if got != tc.want {
				t.Errorf("%q (slowly: %v): %s (%v), want %s", tc.text, slowly, got, err, tc.want)
			}
		}
	}
}
