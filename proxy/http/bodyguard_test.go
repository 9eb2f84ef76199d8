package http_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// dripping is a body of unknown length that comes as the test has it come.
type dripping struct{ *io.PipeReader }

func drip() (dripping, *io.PipeWriter) {
	r, w := io.Pipe()
	return dripping{r}, w
}

func TestBodySize(t *testing.T) {
	asked := make(chan struct{}, 100)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `","limits":{"body":"100KB"}}`})
	}, func(t *testing.T, p *peer) {
		post := func(body io.Reader, path string) (int, string) {
			t.Helper()
			resp := p.send(t, p.request("POST", "app.x.test", path, body))
			return resp.StatusCode, readAll(t, resp.Body)
		}
		for _, n := range []int{0, 3, 100_000} {
			if status, body := post(bytes.NewReader(make([]byte, n)), "/fits"); status != 200 || body != fmt.Sprint(n, " <nil>") {
				t.Errorf("%d bytes: %d %s", n, status, body)
			}
			if status, body := post(struct{ io.Reader }{bytes.NewReader(make([]byte, n))}, "/fits"); status != 200 || body != fmt.Sprint(n, " <nil>") {
				t.Errorf("%d bytes without a length: %d %s", n, status, body)
			}
		}
		for len(asked) > 0 {
			<-asked
		}
		if status, _ := post(bytes.NewReader(make([]byte, 100_001)), "/told"); status != 413 {
			t.Errorf("a byte too many: %d", status)
		}
		if len(asked) > 0 {
			t.Error("the backend was asked for a body whose length is too large")
		}
		body, w := drip()
		go func() {
			defer w.Close()
			for range 4 {
				if _, err := w.Write(make([]byte, 30_000)); err != nil {
					return
				}
			}
		}()
		if status, _ := post(body, "/untold"); status != 413 {
			t.Errorf("20,000 bytes too many, without a length: %d", status)
		}
		for _, path := range []string{"/told", "/untold"} {
			if record := p.rig.log.wait(t, path); record["end"] != "body_limit" || record["status"] != 413.0 {
				t.Errorf("%s: log record %v", path, record)
			}
		}
		if status, _ := post(strings.NewReader("x"), "/after"); status != 200 {
			t.Errorf("the next request: %d", status)
		}
	})
}

// TestSlowBodies sends bodies that stop, or come too slowly.
func TestSlowBodies(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"idle": `{"host":"idle.x.test","backend":"` + addr + `","timeouts":{"idle":"60ms"}}`,
			"wait": `{"host":"wait.x.test","backend":"` + addr + `","timeouts":{"body":"100ms"}}`,
			"rate": `{"host":"rate.x.test","backend":"` + addr + `","timeouts":{"body":"100ms"},"limits":{"body_rate":"1GB"}}`,
			"node": `{"host":"node.x.test","backend":"` + addr + `"}`,
		}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 200 * time.Millisecond })
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			name  string
			pause time.Duration // between one byte and the next; 0: there is none
			want  string
		}{
			{"idle", 0, "408 body_slow"}, {"wait", 20 * time.Millisecond, "408 body_slow"}, {"rate", 20 * time.Millisecond, "408 body_slow"},
			{"node", 0, "408 body_slow"},
		} {
			body, w := drip()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer w.Close()
				w.Write([]byte("x"))
				for range 20 {
					if tc.pause == 0 {
						<-t.Context().Done() // for ever
						return
					}
					tick := time.NewTimer(tc.pause)
					<-tick.C
					if _, err := w.Write([]byte("x")); err != nil {
						return
					}
				}
			}()
			resp := p.send(t, p.request("POST", tc.name+".x.test", "/"+tc.name, body))
			record := p.rig.log.wait(t, "/"+tc.name)
			if got := fmt.Sprint(resp.StatusCode, " ", record["end"]); got != tc.want {
				t.Errorf("%s: %s, want %s (%v)", tc.name, got, tc.want, record["err"])
			}
			body.Close()
		}
	})
}

// TestPatientBodies has a body pause for longer than the node would wait: the
// route waits for longer, or the response has begun, and the backend decides.
func TestPatientBodies(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/both-ways" {
			http.NewResponseController(w).EnableFullDuplex()
			w.(http.Flusher).Flush()
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"long": `{"host":"long.x.test","backend":"` + addr + `","timeouts":{"idle":"1m"}}`,
			"node": `{"host":"node.x.test","backend":"` + addr + `"}`,
		}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 100 * time.Millisecond })
	}, func(t *testing.T, p *peer) {
		for host, path := range map[string]string{"long.x.test": "/long", "node.x.test": "/both-ways"} {
			body, w := drip()
			begun := make(chan struct{})
			go func() {
				defer w.Close()
				w.Write([]byte("x"))
				if path == "/both-ways" {
					<-begun
				}
				pause := time.NewTimer(300 * time.Millisecond)
				<-pause.C
				w.Write([]byte("x"))
			}()
			resp := p.send(t, p.request("POST", host, path, body))
			close(begun)
			if got := readAll(t, resp.Body); resp.StatusCode != 200 || got != "2 <nil>" {
				t.Errorf("%s: %d %q", path, resp.StatusCode, got)
			}
		}
	})
}

// TestClientTakesNothing has clients take nothing of a response: the backend is let
// go, in the route's time or else the node's.
func TestClientTakesNothing(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, zeros(largeBody))
		gone <- struct{}{}
	})
	for _, tc := range []struct {
		timeouts string
		idle     time.Duration
		end      string
	}{{`,"timeouts":{"idle":"200ms"}`, 0, "idle"}, {"", 200 * time.Millisecond, "stalled"}} {
		overAll(t, func(t *testing.T) *rig {
			return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"` + tc.timeouts + `}`},
				func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = tc.idle })
		}, func(t *testing.T, p *peer) {
			resp := p.send(t, p.request("GET", "app.x.test", "/stalled", nil))
			soon(t, "the backend to be let go", gone)
			if record := p.rig.log.wait(t, "/stalled"); record["end"] != tc.end {
				t.Errorf("log record %v, want the end %s", record, tc.end)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("what was cut short passed for complete")
			}
		})
	}
}

// TestSlowResponses has a backend that falls silent, or never ends.
func TestSlowResponses(t *testing.T) {
	proceed := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/head":
			<-r.Context().Done()
			return
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		}
		io.WriteString(w, "data: x\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-proceed: // of events
		}
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"idle":  `{"host":"idle.x.test","backend":"` + addr + `","timeouts":{"idle":"100ms"}}`,
			"total": `{"host":"total.x.test","backend":"` + addr + `","timeouts":{"total":"100ms"}}`,
			"long":  `{"host":"long.x.test","backend":"` + addr + `","timeouts":{"total":"2s"}}`,
		})
	}, func(t *testing.T, p *peer) {
		events := p.send(t, p.request("GET", "long.x.test", "/events", nil))
		for _, tc := range []struct {
			host, path string
			status     int // 0: that or 504, where the head came too late
			end        string
		}{
			{"idle", "/stops", 200, "idle"}, {"total", "/head", 504, "timeout"}, {"total", "/stops-too", 0, "timeout"}, {"long", "/long", 0, "timeout"},
		} {
			resp := p.send(t, p.request("GET", tc.host+".x.test", tc.path, nil))
			_, err := io.Copy(io.Discard, resp.Body)
			record := p.rig.log.wait(t, tc.path)
			if record["end"] != tc.end || tc.status != 0 && resp.StatusCode != tc.status || (err == nil) != (resp.StatusCode == 504) {
				t.Errorf("%s%s: %d %v, %v", tc.host, tc.path, resp.StatusCode, record["end"], err)
			}
		}
		proceed <- struct{}{} // later than their total time, had they one
		if _, err := io.Copy(io.Discard, events.Body); err != nil || events.StatusCode != 200 {
			t.Errorf("events: %d, %v", events.StatusCode, err)
		}
	})
}
