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
			"fair": `{"host":"fair.x.test","backend":"` + addr + `","timeouts":{"body":"10ms"},"limits":{"body_rate":"1B"}}`,
			"node": `{"host":"node.x.test","backend":"` + addr + `"}`,
		}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 200 * time.Millisecond })
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			name  string
			pause time.Duration // between one byte and the next; 0: there is none
			want  string
		}{
			{"idle", 0, "408 body_slow"}, {"wait", 20 * time.Millisecond, "408 body_slow"}, {"rate", 20 * time.Millisecond, "408 body_slow"},
			{"fair", 5 * time.Millisecond, "200 done"}, {"node", 0, "408 body_slow"},
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

// TestSlowResponses has a backend that falls silent, or never ends.
func TestSlowResponses(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		kind, silent := "text/plain", r.URL.Query().Has("silent")
		if r.URL.Query().Has("events") {
			kind = "text/event-stream; charset=utf-8"
		}
		w.Header().Set("Content-Type", kind)
		if r.URL.Path == "/head" {
			<-r.Context().Done()
			return
		}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range 30 {
			if _, err := io.WriteString(w, "data: x\n\n"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			if silent {
				<-r.Context().Done()
				return
			}
			<-tick.C
		}
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"idle":  `{"host":"idle.x.test","backend":"` + addr + `","timeouts":{"idle":"400ms"}}`,
			"total": `{"host":"total.x.test","backend":"` + addr + `","timeouts":{"total":"150ms"}}`,
		})
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			host, target string
			whole        bool
			want         string
		}{
			{"idle", "/moves", true, "200 done"},
			{"idle", "/stops?silent", false, "200 idle"},
			{"total", "/long", false, "200 timeout"},
			{"total", "/events?events", true, "200 done"},
			{"total", "/head", true, "504 timeout"},
		} {
			resp := p.send(t, p.request("GET", tc.host+".x.test", tc.target, nil))
			_, err := io.Copy(io.Discard, resp.Body)
			path, _, _ := strings.Cut(tc.target, "?")
			record := p.rig.log.wait(t, path)
			if got := fmt.Sprint(resp.StatusCode, " ", record["end"]); got != tc.want || (err == nil) != tc.whole {
				t.Errorf("%s%s: %s, %v, want %s", tc.host, tc.target, got, err, tc.want)
			}
		}
	})
}
