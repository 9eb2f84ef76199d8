package http_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// gatekeeper is a service that lets pass who has the cookie pass=1.
func gatekeeper(t *testing.T, asked *atomic.Int64, told func(r *http.Request)) string {
	return backend(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if told != nil {
			told(r)
		}
		switch c, _ := r.Cookie("pass"); {
		case r.Header.Get("X-Break") != "":
			w.WriteHeader(500)
			io.WriteString(w, "inner secrets")
		case c != nil && c.Value == "1":
			w.Header().Set("X-User", "ann")
			w.Header().Add("X-Groups", "lab")
			w.Header().Add("X-Groups", "staff")
			w.Header().Set("X-Own", "not to be copied")
		case r.Header.Get("X-Browser") != "":
			w.Header().Add("Set-Cookie", "state=1")
			w.Header().Add("Set-Cookie", "nonce=2")
			w.Header().Set("Location", "https://login.x.test/")
			w.WriteHeader(302)
		default:
			w.Header().Set("WWW-Authenticate", "Bearer")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(401)
			io.WriteString(w, `{"error":"who are you?"}`)
		}
	})
}

func TestForwardAuth(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Header["X-User"], r.Header["X_user"], r.Header["X-Groups"], r.Header["X-Own"], string(body))
	})
	var asked atomic.Int64
	var mu sync.Mutex
	var seen http.Header
	var line string
	auth := gatekeeper(t, &asked, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen, line = r.Header, r.Method+" "+r.RequestURI
	})
	dead, silent := deadAddr(t), rawBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	broken := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\nhalf")
		}
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":    `{"host":"app.x.test","backend":"` + addr + `","forward_auth":{"backend":"` + auth + `","path":"/verify?g=lab","copy":["X-User","X-Groups"]}}`,
			"dead":   `{"host":"dead.x.test","backend":"` + addr + `","forward_auth":{"backend":"` + dead + `"}}`,
			"silent": `{"host":"silent.x.test","backend":"` + addr + `","forward_auth":{"backend":"` + silent + `","timeout":"50ms","on_failure":403}}`,
			"broken": `{"host":"broken.x.test","backend":"` + addr + `","forward_auth":{"backend":"` + broken + `"}}`,
		})
	}, func(t *testing.T, p *peer) {
		do := func(path string, header ...string) (*http.Response, string) {
			t.Helper()
			req := p.request("POST", "app.x.test", path, strings.NewReader("content"))
			for i := 0; i < len(header); i += 2 {
				req.Header.Add(header[i], header[i+1])
			}
			resp := p.send(t, req)
			return resp, readAll(t, resp.Body)
		}
		resp, body := do("/in?q=1", "Cookie", "pass=1", "X-User", "root", "X_user", "root", "X-Own", "mine", "If-None-Match", "x", "X-Forwarded-Uri", "/forged")
		if want := "[ann] [] [lab staff] [mine]content"; resp.StatusCode != 200 || body != want {
			t.Errorf("let pass: %d, the backend saw %s, want %s", resp.StatusCode, body, want)
		}
		mu.Lock()
		got := line + " " + fmt.Sprint(seen["X-Forwarded-Method"], seen["X-Forwarded-Uri"], seen["X-Forwarded-Host"], seen["X-Forwarded-Proto"], seen["X-Forwarded-For"],
			seen["If-None-Match"], seen["Content-Length"], seen["Cookie"])
		mu.Unlock()
		if want := "GET /verify?g=lab [POST] [/in?q=1] [app.x.test] [" + p.scheme + "] [127.0.0.1] [] [] [pass=1]"; got != want {
			t.Errorf("the service was told %s, want %s", got, want)
		}
		resp, body = do("/refused")
		if got := fmt.Sprint(resp.StatusCode, resp.Header["Www-Authenticate"], resp.Header["Content-Type"], body); got != `401 [Bearer] [application/json]{"error":"who are you?"}` {
			t.Errorf("refused: %s", got)
		}
		resp, _ = do("/login", "X-Browser", "1")
		if got := fmt.Sprint(resp.StatusCode, resp.Header["Location"], resp.Header["Set-Cookie"]); got != "302 [https://login.x.test/] [state=1 nonce=2]" {
			t.Errorf("sent to log in: %s", got)
		}
		resp, body = do("/broken", "X-Break", "1")
		if resp.StatusCode != 503 || strings.Contains(body, "secret") {
			t.Errorf("a service that fails: %d %s", resp.StatusCode, body)
		}
		for host, want := range map[string]int{"dead": 503, "silent": 403, "broken": 503} {
			if got := p.status(t, host+".x.test", "/"+host); got != want {
				t.Errorf("%s: %d, want %d", host, got, want)
			}
		}
		for path, want := range map[string]string{"/in": "done", "/refused": "auth_denied", "/login": "auth_denied", "/broken": "auth_failed", "/dead": "auth_failed", "/silent": "auth_failed"} {
			if record := p.rig.log.wait(t, path); record["end"] != want || want == "auth_failed" && record["err"] == nil {
				t.Errorf("%s: log record %v", path, record)
			}
		}
	})
}

// TestGrantsAreNotDropped has a client name the fields of a grant in Connection,
// which would take them off on their way.
func TestGrantsAreNotDropped(t *testing.T) {
	var asked atomic.Int64
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header["X-User"]) })
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `","forward_auth":{"backend":"` + gatekeeper(t, &asked, nil) + `","copy":["X-User"]}}`})
	c := said(t, r.dialClear(), "GET / HTTP/1.1\r\nHost: app.x.test\r\nCookie: pass=1\r\nConnection: X-User\r\nX-User: root\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, resp.Body); body != "[ann]" {
		t.Errorf("the backend saw %s", body)
	}
}

func TestForwardAuthIsCached(t *testing.T) {
	var asked atomic.Int64
	auth := gatekeeper(t, &asked, nil)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header["X-User"]) })
	overAll(t, func(t *testing.T) *rig {
		asked.Store(0)
		one := `"backend":"` + addr + `","forward_auth":{"backend":"` + auth + `","copy":["X-User"],"cache":{"ttl":"1h","by":["Cookie"]}}}`
		return newRig(t, map[string]string{"a": `{"host":"a.x.test",` + one, "b": `{"host":"b.x.test",` + one})
	}, func(t *testing.T, p *peer) {
		var counts []int64
		ask := func(host, path, cookie string, want int) {
			t.Helper()
			req := p.request("GET", host, path, nil)
			if cookie != "" {
				req.Header.Set("Cookie", cookie)
			}
			req.Header.Set("X-User", "root")
			resp := p.send(t, req)
			if body := readAll(t, resp.Body); resp.StatusCode != want || want == 200 && body != "[ann]" {
				t.Errorf("%s%s %s: %d %s", host, path, cookie, resp.StatusCode, body)
			}
			counts = append(counts, asked.Load())
		}
		ask("a.x.test", "/", "pass=1", 200)
		ask("a.x.test", "/other", "pass=1", 200)
		ask("a.x.test", "/", "pass=1; more=1", 200)
		ask("b.x.test", "/", "pass=1", 200)
		ask("b.x.test", "/", "pass=1", 200)
		ask("a.x.test", "/", "pass=2", 401)
		ask("a.x.test", "/", "pass=2", 401)
		ask("a.x.test", "/", "", 401)
		if want := []int64{1, 1, 2, 3, 3, 4, 5, 6}; !slices.Equal(counts, want) {
			t.Errorf("the service was asked %v times, want %v", counts, want)
		}
	})
}

// TestTrailersSpeakForNobody has clients say in a trailer what is forward_auth's or
// the route's to say. Some backends put trailer and head together.
func TestTrailersSpeakForNobody(t *testing.T) {
	service := backend(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-User", "somebody") })
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Header.Get("X-User"), " ", r.Trailer)
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `",
			"forward_auth":{"backend":"` + service + `","copy":["X-User"]},
			"request_headers":{"set":{"X-Env":"live"},"remove":["X-Debug"]}}`})
	}, func(t *testing.T, p *peer) {
		req := p.request("POST", "app.x.test", "/", pieces("content"))
		req.Trailer = http.Header{"X-User": {"admin"}, "X_user": {"admin"}, "X-Env": {"test"}, "X-Debug": {"1"}, "X-Sum": {"42"}}
		if got := readAll(t, p.send(t, req).Body); !strings.HasPrefix(got, "somebody ") || strings.Contains(got, "admin") ||
			strings.Contains(got, "test") || strings.Contains(got, "1]") || !strings.Contains(got, "X-Sum:[42]") {
			t.Errorf("the backend saw %s", got)
		}
	})
}
