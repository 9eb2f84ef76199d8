package http_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestDisguisedFramingIsRefused tries the ways in which Transfer-Encoding,
// Content-Length and chunks have been disguised so that one reader saw them and
// the next did not.
func TestDisguisedFramingIsRefused(t *testing.T) {
	heads := map[string]int{ // behind the fields of an ordinary POST; the body is a chunk of none
		"Transfer-Encoding: xchunked": 501, "Transfer-Encoding: chunked, identity": 501, "Transfer-Encoding: identity, chunked": 501,
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: x": 501, "Transfer-Encoding: x\r\nTransfer-Encoding: chunked": 501,
		"Transfer-Encoding: chunked\r\ntransfer-encoding: chunked": 400, "TRANSFER-ENCODING: CHUNKED\r\nContent-Length: 5": 400,
		" Transfer-Encoding: chunked": 400, "\tTransfer-Encoding: chunked": 400, "Transfer-Encoding\t: chunked": 400,
		"Transfer-Encoding : chunked": 400, "X: x\r\n Transfer-Encoding: chunked": 400, "Transfer-Encoding:\r\n\tchunked": 501,
		"Transfer-Encoding: chunked\x00": 400, "Transfer-Encoding: chunked\x0b": 400, "Transfer-Encoding: chunked\x7f": 400,
		"Transfer-Encoding: \"chunked\"": 501, "Transfer-Encoding: chunked;x": 501, "Transfer-Encoding: ,chunked": 501, "Transfer-Encoding: chunked,": 501,
		"Transfer-Encoding": 400, "Transfer-Encoding: chunked\n": 400, "Transfer-Encoding: chunked\r": 400, "\x00Transfer-Encoding: chunked": 400,
		"Transfer\r\n-Encoding: chunked": 400, "Transfer-Encoding;: chunked": 400, "Tr\u00e4nsfer-Encoding: chunked": 400, "Content-Length: 5\x00": 400, "Content-Length: 5\x0b": 400,
		"Content-Length: 4 5": 400, "Content-Length: \"5\"": 400, "Content-Length : 5": 400, "Content-Length: 0x5": 400, "Content-Length: 5.0": 400, "Content-Length: 5e0": 400,
		"Content-Length: \u0665": 400, "Content-Length: 5,5": 400, "Content-Length: -0": 400, "Content-Length: ": 400, "Content-Length: 00000000000000000000005": 400,
		"Content-Length: 5\r\n 5": 400, "Content-Length: 18446744073709551621": 400, "Content-Length: 5\r\nContent-Length: 5": 400, "content-length: 5\r\nCONTENT-LENGTH: 6": 400,
	}
	for head, status := range heads {
		t.Run(fmt.Sprintf("%q", head), func(t *testing.T) {
			refusedAndClosed(t, "POST / HTTP/1.1\r\nHost: app.x.test\r\n"+head+"\r\n\r\n0\r\n\r\n"+hiddenRequest, status)
		})
	}
	for _, chunks := range []string{
		"0x0\r\n\r\n", "+0\r\n\r\n", "-0\r\n\r\n", " 0\r\n\r\n", "0 \r\n\r\n", "0\t\r\n\r\n", "\r\n0\r\n\r\n", "0\n\r\n", "0\r\r\n\r\n", "0\n\n", "0;\n\r\n", "0;a=\"\n\"\r\n\r\n", "0;a\rb\r\n\r\n",
		"0;a=\x00\r\n\r\n", "0,0\r\n\r\n", "g\r\n\r\n", "\r\n", ";x\r\n\r\n", "1\r\nx\n0\r\n\r\n", "1\r\nx\r0\r\n\r\n", "1\r\nx0\r\n\r\n", "1\r\nxx\r\n0\r\n\r\n", "2\r\nx\r\n0\r\n\r\n", "1\r\n\r\n0\r\n\r\n",
		"ffffffffffffffff\r\nx\r\n0\r\n\r\n", "fffffffffffffffff0\r\nx\r\n0\r\n\r\n", "8000000000000000\r\nx\r\n", "00000000000000000000000000000001\r\nx\r\n0\r\n\r\n",
		"0\r\n", "0\r\nX\r\n\r\n", "0\r\nX : y\r\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\nX: y\n\r\n", "0\r\nX: a\rb\r\n\r\n", "0\r\nX: \x00\r\n\r\n", "0;" + strings.Repeat("x", 300) + "\r\n\r\n",
		"0\r\n" + strings.Repeat("X: y\r\n", 100) + "\r\n", "0\r\nX: " + strings.Repeat("y", 10<<10) + "\r\n\r\n",
	} {
		t.Run(fmt.Sprintf("chunks %.30q", chunks), func(t *testing.T) {
			refusedAndClosed(t, "POST / HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n"+chunks+hiddenRequest, 400)
		})
	}
}

// TestAuthorityOfTheTargetCounts sends an absolute-form target beside another
// Host: the target's authority decides, and is all that a backend sees.
func TestAuthorityOfTheTargetCounts(t *testing.T) {
	var one, other recorder
	r := newRig(t, map[string]string{
		"one":   `{"host":"one.x.test","backend":"` + rawBackend(t, one.serve) + `"}`,
		"other": `{"host":"other.x.test","backend":"` + rawBackend(t, other.serve) + `"}`,
	})
	for request, status := range map[string]int{
		"GET http://other.x.test/a HTTP/1.1\r\nHost: one.x.test\r\n":        200,
		"GET HTTP://OTHER.x.test:8080?b HTTP/1.1\r\nHost: one.x.test\r\n":   200,
		"GET http://other.x.test/c HTTP/1.0\r\nConnection: close\r\n":       200,
		"GET http://other.x.test@one.x.test/ HTTP/1.1\r\nHost: a\r\n":       400,
		"GET http://other.x.test\\@one.x.test/ HTTP/1.1\r\nHost: a\r\n":     400,
		"GET http:other.x.test/ HTTP/1.1\r\nHost: one.x.test\r\n":           400,
		"GET //other.x.test/d HTTP/1.1\r\nHost: other.x.test\r\n":           200,
		"GET other.x.test/ HTTP/1.1\r\nHost: one.x.test\r\n":                400,
		"GET http://other.x.test/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n":       400,
		"GET http://other.x.test/ HTTP/1.1\r\nX: y\r\n":                     400,
		"GET http://other.x.test:80:80/ HTTP/1.1\r\nHost: one.x.test\r\n":   400,
		"GET http://[other.x.test]/ HTTP/1.1\r\nHost: one.x.test\r\n":       400,
		"GET http://other.x.test%00/ HTTP/1.1\r\nHost: one.x.test\r\n":      400,
		"CONNECT other.x.test:80 HTTP/1.1\r\nHost: other.x.test:80\r\n":     501,
		"GET gopher://other.x.test/ HTTP/1.1\r\nHost: one.x.test\r\n":       400,
		"OPTIONS * HTTP/1.1\r\nHost: other.x.test\r\nConnection: close\r\n": 200,
	} {
		resp := exchange1(t, r.dialClear(), request+"\r\n")
		readAll(t, resp.Body)
		if resp.StatusCode != status {
			t.Errorf("%q: %d, want %d", request, resp.StatusCode, status)
		}
	}
	if seen := one.requests(); len(seen) > 0 {
		t.Errorf("the backend of Host saw %q", seen)
	}
	for _, line := range strings.Split(other.text(), "\r\n") {
		if target, is := strings.CutPrefix(line, "GET "); is && target[0] != '/' {
			t.Errorf("the backend was asked for %q", target)
		}
		if host, is := strings.CutPrefix(line, "Host: "); is && !strings.EqualFold(strings.TrimSuffix(host, ":8080"), "other.x.test") {
			t.Errorf("the backend was told Host %q", host)
		}
	}
}

// TestEscapedLinesStayEscaped has targets that would be more than a line, were
// they decoded on the way.
func TestEscapedLinesStayEscaped(t *testing.T) {
	var rec recorder
	addr := rawBackend(t, rec.serve)
	r := newRig(t, map[string]string{
		"app":   `{"host":"app.x.test","backend":"` + addr + `","request_headers":{"set":{"X-Uri":"${uri}"}}}`,
		"strip": `{"host":"app.x.test","path":"/code","strip_prefix":true,"backend":"` + addr + `"}`,
		"moved": `{"host":"app.x.test","path":"/moved","redirect":"https://app.x.test${uri}"}`,
	})
	const lines = "%20HTTP/1.1%0d%0aX-Injected:%20yes%0d%0aX:%0a%00"
	for _, target := range []string{
		"/a" + lines, "/a?" + lines, "/code/a" + lines, "/%63ode/a" + lines, "/x/../code/a" + lines, "/code/../code/a" + lines,
		"/moved/a" + lines, "/%6doved/a" + lines,
	} {
		c := r.dialClear()
		resp := exchange1(t, c, "GET "+target+" HTTP/1.1\r\nHost: app.x.test\r\nConnection: close\r\n\r\n")
		readAll(t, resp.Body)
		if resp.Header.Get("X-Injected") != "" || strings.ContainsAny(resp.Header.Get("Location"), "\r\n\x00 ") {
			t.Errorf("%s: the client got %v", target, resp.Header)
		}
	}
	if strings.Contains(rec.text(), "\nX-Injected") || strings.Contains(rec.text(), "\x00") {
		t.Errorf("the backend was sent %q", rec.text())
	}
	if len(rec.requests()) == 0 {
		t.Error("no request reached the backend")
	}
}

// TestUpgradesCarryNoRequests asks for upgrades behind which more requests
// follow: they go through routes like all others, unless the backend did change
// to another protocol.
func TestUpgradesCarryNoRequests(t *testing.T) {
	for offer, upgrades := range map[string]bool{"h2c": false, "h2c, websocket": false, "HTTP/2.0": false, "TLS/1.0": false, "websocket": true, "H2C": false} {
		t.Run(offer, func(t *testing.T) {
			var rec recorder
			r := newRig(t, map[string]string{
				"app":   `{"host":"app.x.test","backend":"` + rawBackend(t, rec.serve) + `"}`,
				"admin": `{"host":"app.x.test","path":"/smuggled","respond":{"status":403}}`,
			})
			c := r.dialClear()
			io.WriteString(c, "GET /up HTTP/1.1\r\nHost: app.x.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+offer+
				"\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"+hiddenRequest)
			in := bufio.NewReader(c)
			for _, want := range []int{200, 403} {
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				if readAll(t, resp.Body); resp.StatusCode != want {
					t.Errorf("%d, want %d", resp.StatusCode, want)
				}
			}
			if got := fmt.Sprint(rec.requests()); got != "[GET /up ]" {
				t.Errorf("the backend saw %s", got)
			}
			sent := strings.ToLower(rec.text())
			if strings.Contains(sent, "http2-settings") || strings.Contains(sent, "\r\nupgrade:") != upgrades {
				t.Errorf("the backend was sent %q", sent)
			}
		})
	}
}

// TestUnaskedUpgrade has a backend change protocols though nobody asked it to.
func TestUnaskedUpgrade(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
			io.Copy(io.Discard, c)
		}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		for range 2 {
			if resp, body := p.get(t, "app.x.test", "/"); resp.StatusCode != 502 || strings.Contains(body, "forged") {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		}
	})
}

// TestEarlyAnswersLeaveNothingBehind has a backend answer before it has the
// body, and the client never send it, or send it late: no other request gets
// into what is left of it, on either side.
func TestEarlyAnswersLeaveNothingBehind(t *testing.T) {
	var rec recorder
	addr := rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.RequestURI), req.RequestURI)
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			rec.mu.Lock()
			rec.seen = append(rec.seen, req.Method+" "+req.RequestURI+" "+string(body))
			rec.mu.Unlock()
		}
	})
	r := toBackend(t, addr)(t)
	p := r.h1Clear()
	for i, framing := range []string{
		"Content-Length: 44\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 44\r\nExpect: 100-continue\r\n",
		"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
	} {
		for _, late := range []string{"", "G", hiddenRequest} {
			c := r.dialClear()
			path := fmt.Sprintf("/early/%d/%d", i, len(late))
			io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: app.x.test\r\n"+framing+"\r\n")
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err == nil && resp.StatusCode == 100 { // it may, or may not, come first
				resp, err = http.ReadResponse(in, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if body := readAll(t, resp.Body); body != path {
				t.Errorf("%s got %q", path, body)
			}
			io.WriteString(c, late)
			c.(*net.TCPConn).CloseWrite()
			// Whatever else comes is a refusal of what was no request.
			if rest, _ := io.ReadAll(in); strings.Contains(string(rest), "200 OK") {
				t.Errorf("%s: then %q", path, rest)
			}
			for range 2 {
				other := path + "/other"
				if _, body := p.get(t, "app.x.test", other); body != other {
					t.Fatalf("%s got %q", other, body)
				}
			}
		}
	}
	for _, seen := range rec.requests() {
		if strings.HasPrefix(seen, "GET /smuggled") {
			t.Errorf("the backend saw %q", seen)
		}
	}
}
