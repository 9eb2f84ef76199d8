package http_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// status sends a GET with header lines and returns the status.
func (p *peer) status(t *testing.T, host, target string, header ...string) int {
	t.Helper()
	req := p.request("GET", host, target, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp := p.send(t, req)
	readAll(t, resp.Body)
	return resp.StatusCode
}

func TestRateLimits(t *testing.T) {
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"all":   `{"host":"all.x.test","respond":{},"limits":{"rate":{"requests":2,"per":"1h"}}}`,
			"slow":  `{"host":"slow.x.test","respond":{},"limits":{"rate":{"requests":120,"per":"1h","burst":1,"by":"client"}}}`,
			"key":   `{"host":"key.x.test","respond":{},"limits":{"rate":[{"requests":1,"per":"1h","by":"header:X-Api-Key"}]}}`,
			"env-a": `{"host":"a.x.test","respond":{},"env":"e1","limits":{"rate":{"requests":3,"per":"1h","by":"env"}}}`,
			"env-b": `{"host":"b.x.test","respond":{},"env":"e1","limits":{"rate":{"requests":3,"per":"1h","by":"env"}}}`,
			"env-c": `{"host":"c.x.test","respond":{},"env":"e2","limits":{"rate":{"requests":3,"per":"1h","by":"env"}}}`,
			"login": `{"host":"login.x.test","respond":{},"env":"e3","limits":{"rate":{"requests":1,"per":"1h","by":"env"}}}`,
			"api":   `{"host":"api.x.test","respond":{},"env":"e3","limits":{"rate":{"requests":4,"per":"1h","by":"env"}}}`,
			"page":  `{"host":"page.x.test","respond":{},"cors":{"origins":["https://page.x.test"]},"limits":{"rate":{"requests":2,"per":"1h"}}}`,
			"both":  `{"host":"both.x.test","respond":{},"limits":{"rate":[{"requests":5,"per":"1h"},{"requests":1,"per":"1h","by":"header:X-Api-Key"}]}}`,
		})
	}, func(t *testing.T, p *peer) {
		expect := func(want int, host string, header ...string) {
			t.Helper()
			if got := p.status(t, host, "/", header...); got != want {
				t.Errorf("%s %v: %d, want %d", host, header, got, want)
			}
		}
		for _, want := range []int{200, 200, 429, 429} {
			expect(want, "all.x.test")
		}
		for _, want := range []int{204, 204, 429} { // a browser's question counts
			req := p.request("OPTIONS", "page.x.test", "/", nil)
			req.Header.Set("Origin", "https://page.x.test")
			req.Header.Set("Access-Control-Request-Method", "GET")
			if resp := p.send(t, req); resp.StatusCode != want {
				t.Errorf("preflight: %d, want %d", resp.StatusCode, want)
			}
		}
		expect(429, "page.x.test")
		expect(200, "slow.x.test")
		resp, body := p.get(t, "slow.x.test", "/limited")
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if resp.StatusCode != 429 || err != nil || after < 25 || after > 30 || resp.Header.Get("Cache-Control") != "no-store" || body == "" {
			t.Errorf("%d, %v, %q", resp.StatusCode, resp.Header, body)
		}
		if record := p.rig.log.wait(t, "/limited"); record["end"] != "rate_limit" || record["status"] != 429.0 {
			t.Errorf("log record %v", record)
		}
		expect(200, "key.x.test", "X-Api-Key", "one")
		expect(429, "key.x.test", "X-Api-Key", "one")
		expect(200, "key.x.test", "X-Api-Key", "two")
		expect(200, "key.x.test")
		expect(429, "key.x.test")
		for _, want := range []int{200, 429, 429} {
			expect(want, "login.x.test")
		}
		for _, want := range []int{200, 200, 200, 200, 429} { // whatever became of the few
			expect(want, "api.x.test")
		}
		for i, want := range []int{200, 200, 200, 429, 429} {
			expect(want, []string{"a", "b"}[i%2]+".x.test")
		}
		expect(200, "c.x.test")
		// What one limit refuses takes nothing of the other.
		expect(200, "both.x.test", "X-Api-Key", "one")
		for range 10 {
			expect(429, "both.x.test", "X-Api-Key", "one")
		}
		for _, key := range []string{"two", "three", "four", "five"} {
			expect(200, "both.x.test", "X-Api-Key", key)
		}
		expect(429, "both.x.test", "X-Api-Key", "six")
		if got := p.rig.metric("sluice_http_refused_total")["rate_limit"]; got != 23 {
			t.Errorf("%v refused by rate, want 23", got)
		}
	})
}

// TestEditsKeepBuckets wants a limit that is edited to go on from where it was.
func TestEditsKeepBuckets(t *testing.T) {
	route := func(burst int) map[string]string {
		return map[string]string{"it": fmt.Sprintf(`{"host":"app.x.test","respond":{},"limits":{"rate":{"requests":3600,"per":"1h","burst":%d}}}`, burst)}
	}
	r := newRig(t, route(1))
	p := r.h1Clear()
	if first, second := p.status(t, "app.x.test", "/"), p.status(t, "app.x.test", "/"); first != 200 || second != 429 {
		t.Errorf("%d, %d", first, second)
	}
	r.setRoutes(route(3))
	for i, want := range []int{200, 200, 429} {
		if got := p.status(t, "app.x.test", "/"); got != want {
			t.Errorf("request %d after the edit: %d, want %d", i, got, want)
		}
	}
}

func TestConcurrencyLimits(t *testing.T) {
	arrived, proceed := make(chan struct{}, 16), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			arrived <- struct{}{}
			<-proceed
		}
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":   `{"host":"app.x.test","backend":"` + addr + `","env":"e","limits":{"concurrency":[{"requests":3},{"requests":2,"by":"env"},{"requests":1,"by":"header:X-Key"}]}}`,
			"other": `{"host":"other.x.test","backend":"` + addr + `","env":"e","limits":{"concurrency":{"requests":2,"by":"env"}}}`,
		})
	}, func(t *testing.T, p *peer) {
		var waiting sync.WaitGroup
		hold := func(host, key string) {
			req := p.request("GET", host, "/wait", nil)
			req.Header.Set("X-Key", key)
			waiting.Go(func() {
				if resp, err := p.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
			soon(t, "a request", arrived)
		}
		hold("app.x.test", "one")
		if got := p.status(t, "app.x.test", "/", "X-Key", "one"); got != 429 {
			t.Errorf("a second one of the same key: %d", got)
		}
		if got := p.status(t, "app.x.test", "/", "X-Key", "two"); got != 200 {
			t.Errorf("one of another key: %d", got)
		}
		hold("other.x.test", "")
		resp, _ := p.get(t, "app.x.test", "/third")
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("a third of the environment: %d %v", resp.StatusCode, resp.Header)
		}
		if record := p.rig.log.wait(t, "/third"); record["end"] != "concurrency_limit" {
			t.Errorf("log record %v", record)
		}
		proceed <- struct{}{}
		proceed <- struct{}{}
		waiting.Wait()
		eventually(t, "the places to be free", func() bool { return p.status(t, "app.x.test", "/", "X-Key", "one") == 200 })
	})
}

// TestMappingRequests wants a mapping's requests to be held against its limits,
// together with those of routes of its environment.
func TestMappingRequests(t *testing.T) {
	addr := backend(t, echo)
	m, err := router.ParseMapping(router.TCP, 20022, []byte(`{"http":"`+addr+`","env":"e1","requests":{
		"limits":{"body":"3B","rate":{"requests":2,"per":"1h","by":"env"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, map[string]string{"r": `{"host":"app.x.test","ports":"8443","respond":{},"env":"e1","limits":{"rate":{"requests":2,"per":"1h","by":"env"}}}`},
		func(_ *proxyhttp.Config, r *rig) {
			r.info = func(info *proxyhttp.ConnInfo) {
				if !info.TLS {
					info.Mapping = m
				}
			}
		})
	p := r.h1Clear()
	if got := p.send(t, p.request("POST", "any.x.test", "/", strings.NewReader("four"))).StatusCode; got != 413 {
		t.Errorf("a large body: %d", got)
	}
	if got := p.status(t, "any.x.test", "/"); got != 200 {
		t.Errorf("the mapping: %d", got)
	}
	if got := r.h2().status(t, "app.x.test", "/"); got != 429 {
		t.Errorf("the route: %d", got)
	}
}
