package http_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

// pinged reads comments until two have come.
func pinged(t *testing.T, r io.Reader) {
	t.Helper()
	const two = ": ping\n\n: ping\n\n"
	got := make([]byte, len(two))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != two {
		t.Fatalf("%q, %v, want comments", got, err)
	}
}

func pinging(addr, more string) func(t *testing.T) *rig {
	return func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `","compress":true,
			"response_headers":{"set":{"X-Edited":"yes"}},"events":{"ping":"100ms"` + more + `}}`})
	}
}

// TestPing has the backend send its head, and events only once the client has
// read comments.
func TestPing(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.(http.Flusher).Flush()
		for _, event := range []string{"data: 1\n\n", "data: 2\n\n"} {
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
			io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
	})
	overAll(t, pinging(addr, ""), func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/events", nil)
		req.Header.Set("Accept-Encoding", "gzip")
		resp := p.send(t, req)
		pinged(t, resp.Body)
		next <- struct{}{}
		in := bufio.NewReader(resp.Body)
		line := ": ping\n"
		for strings.HasPrefix(line, ": ping") || line == "\n" {
			var err error
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		next <- struct{}{}
		if rest := readAll(t, in); line+rest != "data: 1\n\ndata: 2\n\n" {
			t.Errorf("%q, then %q", line, rest)
		}
		if record := p.rig.log.wait(t, "/events"); record["status"] != 200.0 || record["end"] != "done" || record["bytes_down"].(float64) < 34 {
			t.Errorf("log record %v", record)
		}
	})
}

// TestPingBeforeHead has the backend answer only once the client has read
// comments: with events, with an error, with events that are encoded, and not at
// all.
func TestPingBeforeHead(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-next:
		case <-r.Context().Done():
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/event-stream")
		switch r.URL.Path {
		case "/error":
			h.Set("Content-Type", "application/json")
			w.WriteHeader(429)
			io.WriteString(w, `{"error":"slow down"}`+strings.Repeat(" ", 10000))
		case "/encoded":
			h.Set("Content-Encoding", "br")
			io.WriteString(w, "?")
		case "/gone":
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, "data: 1\n\n")
		}
	})
	overAll(t, pinging(addr, `,"early":true`), func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			path, want string
			status     float64
		}{
			{"/events", "data: 1\n\n", 200},
			{"/error", "event: error\ndata: {\"status\":429,\"body\":\"{\\\"error\\\":\\\"slow down\\\"}", 429},
			{"/encoded", "event: error\ndata: {\"status\":200,\"body\":\"?\"}\n\n", 200},
			{"/gone", "event: error\ndata: {\"status\":502,\"body\":\"the backend ended the connection before it had answered\\n\"}\n\n", 502},
		} {
			req := p.request("POST", "app.x.test", tc.path, strings.NewReader(`{"stream":true}`))
			req.Header.Set("Accept", "application/json;q=0.1, text/event-stream")
			req.Header.Set("Accept-Encoding", "gzip")
			resp := p.send(t, req)
			if h := resp.Header; resp.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("X-Edited") != "yes" {
				t.Errorf("%s: %d, header %v", tc.path, resp.StatusCode, h)
			}
			pinged(t, resp.Body)
			next <- struct{}{}
			got := readAll(t, resp.Body)
			for strings.HasPrefix(got, ": ping\n\n") {
				got = got[len(": ping\n\n"):]
			}
			if !strings.HasPrefix(got, tc.want) || !strings.HasSuffix(got, "\n\n") || len(got) > 9000 {
				t.Errorf("%s: %q, want %q", tc.path, got, tc.want)
			}
			if record := p.rig.log.wait(t, tc.path); record["status"] != tc.status {
				t.Errorf("%s: log record %v", tc.path, record)
			}
		}
	})
}

// TestNoPingBeforeHead checks answers that come before the first comment, and
// requests for anything but events.
func TestNoPingBeforeHead(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(429)
		io.WriteString(w, text)
	})
	overAll(t, pinging(addr, `,"early":true`), func(t *testing.T, p *peer) {
		for _, accept := range []string{"text/event-stream", "*/*"} {
			req := p.request("GET", "app.x.test", "/", nil)
			req.Header.Set("Accept", accept)
			req.Header.Set("Accept-Encoding", "gzip")
			resp := p.send(t, req)
			if resp.StatusCode != 429 || resp.Header.Get("Content-Encoding") != "gzip" || decoded(t, resp) != text {
				t.Errorf("%d, header %v", resp.StatusCode, resp.Header)
			}
		}
	})
}

// TestAbortWhilePinged has the client leave while comments come.
func TestAbortWhilePinged(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- struct{}{}
	})
	overAll(t, pinging(addr, `,"early":true`), func(t *testing.T, p *peer) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := p.request("GET", "app.x.test", "/left", nil).WithContext(ctx)
		req.Header.Set("Accept", "text/event-stream")
		resp := p.send(t, req)
		pinged(t, resp.Body)
		cancel()
		soon(t, "the backend to notice", gone)
		if record := p.rig.log.wait(t, "/left"); record["end"] != "client_gone" {
			t.Errorf("log record %v", record)
		}
	})
}
