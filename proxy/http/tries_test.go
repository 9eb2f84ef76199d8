package http_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// dying is a backend that takes requests and dies on those that it is to: having
// read all of one, it resets the connection without a word.
type dying struct {
	addr string
	seen atomic.Int64 // requests read whole
	dies atomic.Bool
}

func newDying(t *testing.T, name string) *dying {
	b := &dying{}
	b.addr = rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			content, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			b.seen.Add(1)
			if b.dies.Load() {
				c.SetLinger(0)
				return
			}
			body := fmt.Sprintf("%s %s %s", name, req.Method, content)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	return b
}

// TestRetryAfterReset has backends die with a request in their hands. What may be
// received twice is answered by the other one, all else is not sent again.
func TestRetryAfterReset(t *testing.T) {
	overAll(t, func(t *testing.T) *rig { return newRig(t, nil) }, func(t *testing.T, p *peer) {
		bad, good := newDying(t, "bad"), newDying(t, "good")
		bad.dies.Store(true)
		p.rig.setRoutes(map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + bad.addr + `","` + good.addr + `"],"retry":{"min_per_second":1000}}}`})
		for i, c := range []struct {
			method, content string
			again           bool
		}{{"GET", "", true}, {"PUT", "content", true}, {"DELETE", "", true}, {"POST", "", false}, {"PATCH", "x", false},
			{"PUT", strings.Repeat("x", 100<<10), false}} {
			for met := false; !met; { // the first target is each in turn
				before := bad.seen.Load()
				sentGood := good.seen.Load()
				var body io.Reader
				if c.content != "" {
					body = strings.NewReader(c.content)
				}
				resp := p.send(t, p.request(c.method, "app.x.test", fmt.Sprint("/", i), body))
				got := readAll(t, resp.Body)
				seen := bad.seen.Load() - before
				met = seen > 0
				// Over HTTP/2 and 3 a body may come with its head, or behind it.
				mayBe := c.again && c.content != "" && !p.isH1() && resp.StatusCode == 200
				again := c.again && (c.content == "" || p.isH1()) || mayBe
				switch {
				case !met || again:
					if want := "good " + c.method + " " + c.content; resp.StatusCode != 200 || got != want {
						t.Errorf("%s of %d bytes: %d %.50q", c.method, len(c.content), resp.StatusCode, got)
					}
					if met && seen != 1 {
						t.Errorf("%s: the dying target saw it %d times", c.method, seen)
					}
				case resp.StatusCode != 502 || seen != 1 || good.seen.Load() != sentGood:
					t.Errorf("%s of %d bytes: %d, the dying target saw it %d times, the other one %d", c.method, len(c.content), resp.StatusCode, seen, good.seen.Load()-sentGood)
				}
			}
		}
	})
}

// TestRetryOfOneTarget goes back to the only target that there is.
func TestRetryOfOneTarget(t *testing.T) {
	var seen atomic.Int64
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		if seen.Add(1)%3 != 0 {
			c.SetLinger(0)
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + addr + `"],"retry":{"attempts":2,"min_per_second":100}}}`})
	for i := range 3 {
		path := fmt.Sprint("/", i)
		resp, body := r.h1Clear().get(t, "app.x.test", path)
		if resp.StatusCode != 200 || body != "ok" {
			t.Errorf("request %d: %d %q after %d tries", i, resp.StatusCode, body, seen.Load())
		}
		if record := r.log.wait(t, path); record["tries"] != 3.0 || record["end"] != "done" {
			t.Errorf("log record %v, want 3 tries", record)
		}
	}
	if n := counterOf(t, r, "sluice_http_retries_total", "reset"); n != 6 {
		t.Errorf("%v retries are counted, want 6", n)
	}
}

// TestRetryOfStatus has only the statuses sent again that are to be, and the last
// answer passed on where tries run out.
func TestRetryOfStatus(t *testing.T) {
	overAll(t, func(t *testing.T) *rig { return newRig(t, nil) }, func(t *testing.T, p *peer) {
		var status atomic.Int64
		var seen [2]atomic.Int64
		bad := backend(t, func(w http.ResponseWriter, r *http.Request) {
			seen[0].Add(1)
			w.Header().Set("X-From", "bad")
			w.WriteHeader(int(status.Load()))
			io.WriteString(w, "sorry")
		})
		good := backend(t, func(w http.ResponseWriter, r *http.Request) {
			seen[1].Add(1)
			io.WriteString(w, "good")
		})
		p.rig.setRoutes(map[string]string{
			"app":  `{"host":"app.x.test","backend":{"targets":["` + bad + `","` + good + `"],"retry":{"on":["503","504"],"min_per_second":1000}}}`,
			"only": `{"host":"only.x.test","backend":{"targets":["` + bad + `"],"retry":{"on":["503"],"attempts":3,"min_per_second":1000}}}`,
		})
		ask := func(method string) (answers map[string]int) {
			answers = map[string]int{}
			for range 6 {
				resp := p.send(t, p.request(method, "app.x.test", "/", nil))
				answers[fmt.Sprint(resp.StatusCode, " ", readAll(t, resp.Body), resp.Header.Get("X-From"))]++
			}
			return answers
		}
		status.Store(503)
		if got := ask("GET"); got["200 good"] != 6 {
			t.Errorf("with 503 once again: %v", got)
		}
		if got := ask("POST"); got["200 good"] != 3 || got["503 sorrybad"] != 3 {
			t.Errorf("POST with 503: %v", got)
		}
		status.Store(502)
		if got := ask("GET"); got["200 good"] != 3 || got["502 sorrybad"] != 3 {
			t.Errorf("with 502, which is not to be sent again: %v", got)
		}
		status.Store(503)
		before := seen[0].Load()
		resp, body := p.get(t, "only.x.test", "/only")
		if tries := seen[0].Load() - before; resp.StatusCode != 503 || body != "sorry" || resp.Header.Get("X-From") != "bad" || tries != 4 {
			t.Errorf("%d %q after %d tries, want the last answer after 4", resp.StatusCode, body, tries)
		}
	})
}

// TestRetryOverHTTP2 has a backend that speaks HTTP/2 refuse requests.
func TestRetryOverHTTP2(t *testing.T) {
	var seen atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch seen.Add(1) % 3 {
		case 1:
			w.WriteHeader(503)
			w.(http.Flusher).Flush()
			<-r.Context().Done() // its end is nobody's wish any more
		case 2:
			w.WriteHeader(504)
		default:
			w.Write(body)
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + s.Listener.Addr().String() + `"],"h2c":true,"retry":{"on":["503","504"],"min_per_second":100}}}`})
	}, func(t *testing.T, p *peer) {
		for range 3 {
			if resp, _ := p.get(t, "app.x.test", "/"); resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		if !p.isH1() {
			return // the body may come behind the head
		}
		resp := p.send(t, p.request("PUT", "app.x.test", "/", strings.NewReader("content")))
		if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "content" {
			t.Errorf("with a body: %d %q", resp.StatusCode, body)
		}
	})
}

// TestRetryBudget has everything fail at once: no more is sent again than the
// budget has room for.
func TestRetryBudget(t *testing.T) {
	b := newDying(t, "bad")
	b.dies.Store(true)
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + b.addr + `"],"retry":{"attempts":10,"budget":10,"min_per_second":1}}}`})
	p := r.h1Clear()
	const n = 300
	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() {
			for range n / 6 {
				req, err := http.NewRequestWithContext(t.Context(), "GET", p.url("app.x.test", "/"), nil)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := p.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				if resp.Body.Close(); resp.StatusCode != 502 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	clients.Wait()
	again := b.seen.Load() - n
	// Ten in any case, a tenth of the requests of any ten seconds.
	if made := int64(counterOf(t, r, "sluice_http_retries_total", "reset")); made != again || again < 10 || again > n/10+10 {
		t.Errorf("of %d requests %d were sent again, and %d counted", n, again, made)
	}
	if over := counterOf(t, r, "sluice_http_retries_over_budget_total", ""); over == 0 {
		t.Error("no request was over the budget")
	}
}

// TestTryTimeout gives each try a time of its own.
func TestTryTimeout(t *testing.T) {
	silent := rawBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	live := backend(t, echo)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":  `{"host":"app.x.test","backend":{"targets":["` + silent + `","` + live + `"],"retry":{"try_timeout":"200ms"}}}`,
			"dead": `{"host":"dead.x.test","backend":{"targets":["` + silent + `"],"retry":{"try_timeout":"20ms","attempts":2}}}`,
		})
	}, func(t *testing.T, p *peer) {
		for range 2 {
			if resp, body := p.get(t, "app.x.test", "/"); resp.StatusCode != 200 {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		}
		if resp, _ := p.get(t, "dead.x.test", "/dead"); resp.StatusCode != 504 {
			t.Errorf("with silent targets alone: %d", resp.StatusCode)
		}
		if record := p.rig.log.wait(t, "/dead"); record["tries"] != 3.0 || record["end"] != "backend_slow" {
			t.Errorf("log record %v", record)
		}
	})
}

// TestNothingIsSentAgainBehindAHead has the backend die in the middle of its
// answer: the client has to learn of it.
func TestNothingIsSentAgainBehindAHead(t *testing.T) {
	overAll(t, func(t *testing.T) *rig { return newRig(t, nil) }, func(t *testing.T, p *peer) {
		var seen atomic.Int64
		addr := rawBackend(t, func(c *net.TCPConn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				seen.Add(1)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
			}
		})
		p.rig.setRoutes(map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + addr + `"],"retry":true}}`})
		resp, err := p.Do(p.request("GET", "app.x.test", "/", nil))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil || seen.Load() != 1 {
			t.Errorf("%v after %d tries, want an error after one", err, seen.Load())
		}
	})
}

// TestEjection has a target answer with 500: it is passed over, and shown.
func TestEjectionByStatus(t *testing.T) {
	var fails atomic.Bool
	var seen atomic.Int64
	bad := backend(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		if fails.Load() {
			w.WriteHeader(500)
		}
	})
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	r := newRig(t, map[string]string{
		"app":  `{"host":"app.x.test","backend":{"targets":["` + bad + `","` + good + `"],"eject":{"failures":3,"status_5xx":true,"time":"1h","max_time":"1h"}}}`,
		"only": `{"host":"only.x.test","backend":{"targets":["` + bad + `"],"eject":{"failures":3,"status_5xx":true,"time":"1h","max_time":"1h"}}}`,
	})
	p := r.h1Clear()
	fails.Store(true)
	for range 40 {
		p.get(t, "app.x.test", "/")
	}
	if n := seen.Load(); n != 3 {
		t.Errorf("the failing target saw %d requests, want 3", n)
	}
	fails.Store(false)
	// Where there is no other it is used all the same.
	if resp, _ := p.get(t, "only.x.test", "/"); resp.StatusCode != 200 {
		t.Errorf("where the target is the only one: %d", resp.StatusCode)
	}
}

// TestEjectionByReset counts what dies without an answer.
func TestEjectionByReset(t *testing.T) {
	bad, good := newDying(t, "bad"), newDying(t, "good")
	bad.dies.Store(true)
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + bad.addr + `","` + good.addr + `"],
		"retry":{"min_per_second":100},"eject":{"failures":2,"time":"1h","max_time":"1h"}}}`})
	p := r.h1Clear()
	for range 20 {
		if resp, body := p.get(t, "app.x.test", "/"); resp.StatusCode != 200 || body != "good GET " {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
	if n := bad.seen.Load(); n != 2 {
		t.Errorf("the dying target saw %d requests, want 2", n)
	}
}

func TestStickyCookie(t *testing.T) {
	overAll(t, func(t *testing.T) *rig { return newRig(t, nil) }, func(t *testing.T, p *peer) {
		targets, servers := []string{}, map[string]*net.TCPListener{}
		for i := range 4 {
			name := fmt.Sprint("backend-", i)
			ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) })}
			var serving sync.WaitGroup
			serving.Go(func() { s.Serve(ln) })
			t.Cleanup(func() { s.Close(); serving.Wait() })
			s.SetKeepAlivesEnabled(false)
			servers[name] = ln
			targets = append(targets, fmt.Sprintf("%q", ln.Addr()))
		}
		p.rig.setRoutes(map[string]string{"app": `{"host":"app.x.test","backend":{"targets":[` + strings.Join(targets, ",") + `],"sticky":{"cookie":"at","max_age":"1h","same_site":"strict"}}}`})
		resp, home := p.get(t, "app.x.test", "/")
		cookies := resp.Cookies()
		if len(cookies) != 1 || cookies[0].Name != "at" || !cookies[0].HttpOnly || cookies[0].MaxAge != 3600 ||
			cookies[0].SameSite != http.SameSiteStrictMode || cookies[0].Secure != (p.name != "h1 clear") || strings.Contains(cookies[0].Value, "127") {
			t.Fatalf("cookies %v", cookies)
		}
		ask := func() (*http.Response, string) {
			req := p.request("GET", "app.x.test", "/", nil)
			req.Header.Add("Cookie", "a=b")
			req.AddCookie(cookies[0])
			resp := p.send(t, req)
			return resp, readAll(t, resp.Body)
		}
		for range 8 {
			if resp, body := ask(); body != home || len(resp.Cookies()) != 0 {
				t.Fatalf("came back to %s with cookies %v, want %s and none", body, resp.Cookies(), home)
			}
		}
		servers[home].Close()
		resp, body := ask()
		if again := resp.Cookies(); resp.StatusCode != 200 || body == home || len(again) != 1 || again[0].Value == cookies[0].Value {
			t.Errorf("the target is gone: %d %s, cookies %v", resp.StatusCode, body, again)
		}
	})
}

// TestHashOfHeaderAndCookie sends what hashes alike to one target, whoever
// asks.
func TestHashOfHeaderAndCookie(t *testing.T) {
	var targets []string
	for i := range 4 {
		targets = append(targets, fmt.Sprintf("%q", backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, i) })))
	}
	list := strings.Join(targets, ",")
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"header": `{"host":"header.x.test","backend":{"targets":[` + list + `],"balance":"hash","hash":{"header":"X-User"}}}`,
			"cookie": `{"host":"cookie.x.test","backend":{"targets":[` + list + `],"balance":"hash","hash":{"cookie":"user"}}}`,
		})
	}, func(t *testing.T, p *peer) {
		homes := map[string]string{}
		seen := map[string]bool{}
		for i := range 120 {
			user := fmt.Sprint("user-", i%40)
			for _, by := range []string{"header", "cookie"} {
				req := p.request("GET", by+".x.test", "/", nil)
				if by == "header" {
					req.Header.Set("x-user", user)
				} else {
					req.Header.Set("Cookie", "other=x; user="+user+"; xuser=1")
				}
				body := readAll(t, p.send(t, req).Body)
				seen[body] = true
				if home, known := homes[user]; known && home != body {
					t.Fatalf("%s by %s is at %s and at %s", user, by, home, body)
				}
				homes[user] = body
			}
		}
		if len(seen) != 4 {
			t.Errorf("all users are at %v", seen)
		}
	})
}

// TestLeastRequests keeps requests away from a target that has one under way,
// although its client's connection is the same.
func TestLeastRequests(t *testing.T) {
	for _, balance := range []string{"least_requests", "p2c"} {
		hold, held := make(chan struct{}), make(chan string, 1)
		serve := func(name string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hold" {
					held <- name
					<-hold
				}
				io.WriteString(w, name)
			}
		}
		one, two := backend(t, serve("one")), backend(t, serve("two"))
		r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + one + `","` + two + `"],"balance":"` + balance + `"}}`})
		p := r.h2()
		var waiting sync.WaitGroup
		waiting.Go(func() { p.get(t, "app.x.test", "/hold") })
		busy := soon(t, "the request to be held", held)
		for range 20 {
			if _, body := p.get(t, "app.x.test", "/"); body == busy {
				t.Errorf("%s: a request went to the target that is busy", balance)
			}
		}
		close(hold)
		waiting.Wait()
	}
}

// TestAddressIsLogged wants the address that a name stood for in the log.
func TestAddressIsLogged(t *testing.T) {
	live := backend(t, echo)
	_, port, _ := net.SplitHostPort(live)
	r := newRig(t, map[string]string{
		"name": `{"host":"name.x.test","backend":"localhost:` + port + `"}`,
		"addr": `{"host":"addr.x.test","backend":"` + live + `"}`,
	}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Dialer = upstream.NewDialer(upstream.Config{}) })
	p := r.h1Clear()
	for range 2 { // a new connection, and one from the pool
		p.get(t, "name.x.test", "/name")
	}
	p.get(t, "addr.x.test", "/addr")
	if record := r.log.wait(t, "/name"); record["backend"] != "localhost:"+port || record["address"] != live {
		t.Errorf("log record %v, want the address %s", record, live)
	}
	if record := r.log.wait(t, "/addr"); record["backend"] != live || record["address"] != nil {
		t.Errorf("log record %v", record)
	}
}

// counterOf returns the value of a counter with that label, or "" for none.
func counterOf(t *testing.T, r *rig, name, label string) (sum float64) {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			if label == "" || len(m.Label) > 0 && m.Label[0].GetValue() == label {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
