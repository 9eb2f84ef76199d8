package http_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// TestH2Floods has clients do over and over what brings nothing. Each is told to
// calm down, and counted; another client is served meanwhile, and the heap stays
// what it was.
func TestH2Floods(t *testing.T) {
	const many = 20_000
	held := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "page")
	})
	for name, tc := range map[string]struct {
		reason string
		flood  func(c *h2Client, i int) error
	}{
		"rapid reset": {"resets", func(c *h2Client, i int) error {
			c.open(uint32(2*i+1), true, get("/held")...)
			return c.framer.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}},
		"made you reset by a window": {"resets", func(c *h2Client, i int) error {
			c.open(uint32(2*i+1), true, get("/held")...)
			return c.framer.WriteWindowUpdate(uint32(2*i+1), 1<<31-1)
		}},
		"made you reset by zero": {"resets", func(c *h2Client, i int) error {
			c.open(uint32(2*i+1), true, get("/held")...)
			return c.framer.WriteWindowUpdate(uint32(2*i+1), 0)
		}},
		"made you reset by DATA": {"resets", func(c *h2Client, i int) error {
			c.open(uint32(2*i+1), true, get("/held")...)
			return c.framer.WriteData(uint32(2*i+1), true, nil)
		}},
		"made you reset by PRIORITY": {"resets", func(c *h2Client, i int) error {
			c.open(uint32(2*i+1), true, get("/held")...)
			return c.framer.WriteRawFrame(http2.FramePriority, 0, uint32(2*i+1), []byte("1234"))
		}},
		"malformed heads": {"resets", func(c *h2Client, i int) error { return c.open(uint32(2*i+1), true, get("/", "Bad: 1")...) }},
		"large heads": {"resets", func(c *h2Client, i int) error {
			return c.open(uint32(2*i+1), true, get("/", strings.Repeat("a: b ", 20))...)
		}},
		"more than may be": {"resets", func(c *h2Client, i int) error {
			return c.open(uint32(2*i+1), true, get("/held")...)
		}},
		"SETTINGS": {"settings", func(c *h2Client, i int) error {
			return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}},
		"PING":               {"pings", func(c *h2Client, i int) error { return c.framer.WritePing(false, [8]byte{byte(i)}) }},
		"answers to no PING": {"other_frames", func(c *h2Client, i int) error { return c.framer.WritePing(true, [8]byte{byte(i)}) }},
		"PRIORITY": {"other_frames", func(c *h2Client, i int) error {
			return c.framer.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: 1})
		}},
		"unknown frames": {"other_frames", func(c *h2Client, i int) error { return c.framer.WriteRawFrame(0xbe, 0, 0, nil) }},
		"settings' acks": {"other_frames", func(c *h2Client, i int) error { return c.framer.WriteSettingsAck() }},
		"WINDOW_UPDATE":  {"window_updates", func(c *h2Client, i int) error { return c.framer.WriteWindowUpdate(0, 1) }},
		"resets of old": {"other_frames", func(c *h2Client, i int) error {
			if i == 0 {
				c.open(1, true, get("/")...)
			}
			return c.framer.WriteRSTStream(1, http2.ErrCodeCancel)
		}},
		"heads for a stream that is gone": {"other_frames", func(c *h2Client, i int) error {
			if i == 0 {
				c.open(1, true, get("/", "Bad: 1")...)
			}
			return c.open(1, true, get("/")...)
		}},
		"empty DATA": {"empty_frames", func(c *h2Client, i int) error {
			if i == 0 {
				c.open(1, false, get("/held")...)
			}
			return c.framer.WriteData(1, false, nil)
		}},
		"padding alone": {"empty_frames", func(c *h2Client, i int) error {
			if i == 0 {
				c.open(1, false, get("/held")...)
			}
			return c.framer.WriteDataPadded(1, false, nil, make([]byte, 5))
		}},
		"DATA by the byte": {"small_frames", func(c *h2Client, i int) error {
			if i == 0 {
				c.open(1, false, get("/held")...)
			}
			return c.framer.WriteData(1, false, []byte("x"))
		}},
		"CONTINUATION": {"continuation", func(c *h2Client, i int) error {
			if i == 0 {
				return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(get("/")...)})
			}
			return c.framer.WriteContinuation(1, false, nil)
		}},
		"a head without end": {"header_bytes", func(c *h2Client, i int) error {
			if i == 0 {
				return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(get("/")...)})
			}
			return c.framer.WriteContinuation(1, false, []byte("\x00\x01a\x7f\x81\x7e"+strings.Repeat("x", 16382-5)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := toBackend(t, addr)(t)
			other := r.h2()
			c := r.rawH2(t)
			watch := watchHeap()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range many {
					if tc.flood(c, i) != nil {
						return
					}
				}
			}()
			for range 5 {
				if resp, body := other.get(t, "app.x.test", "/"); resp.StatusCode != 200 || body != "page" {
					t.Errorf("another client got %d %q", resp.StatusCode, body)
				}
			}
			if code, told := c.goneWith(); told && code != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY says %v", code)
			}
			<-done
			if grown := watch(); grown > 32<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			eventually(t, "the count", func() bool { return r.metric("sluice_http_abusive_connections_total")["h2 "+tc.reason] == 1 })
			eventually(t, "the exchanges to end", func() bool { return r.metric("sluice_http_active_exchanges")[""] == 0 })
		})
	}
	close(held)
}

// TestH2AbuseIsCountedFromTheStart wants every series before the first client.
func TestH2AbuseIsCountedFromTheStart(t *testing.T) {
	series := newRig(t, nil).metric("sluice_http_abusive_connections_total")
	for _, reason := range []string{"resets", "settings", "pings", "empty_frames", "small_frames", "window_updates", "other_frames", "continuation", "header_bytes"} {
		if n, there := series["h2 "+reason]; !there || n != 0 {
			t.Errorf("%s: %v, %v; want 0", reason, n, there)
		}
	}
}

// TestH2ResetStreamsCount has a client open as many streams as may be, and reset
// them.
func TestH2ResetStreamsCount(t *testing.T) {
	const limit = 8
	held, arrived := make(chan struct{}), make(chan struct{}, 100)
	addr := rawBackend(t, dumbBackend(held, arrived))
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Streams = limit })
	c := r.rawH2(t)
	for i := range limit {
		if err := c.open(uint32(2*i+1), true, get(fmt.Sprint("/", i))...); err != nil {
			t.Fatal(err)
		}
		soon(t, "the request", arrived)
	}
	// All are under way: one more is refused.
	c.open(2*limit+1, true, get("/more")...)
	if status, _ := c.response(2*limit + 1); status != "reset: REFUSED_STREAM" {
		t.Errorf("one more: %s", status)
	}
	for i := range limit {
		c.framer.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	}
	// What a reset exchange holds is let go of soon, and its place is free then.
	eventually(t, "the exchanges to end", func() bool { return r.metric("sluice_http_active_exchanges")[""] == 0 })
	close(held)
	c.open(2*limit+3, true, get("/then")...)
	if status, body := c.response(2*limit + 3); status != "200" || body != "page" {
		t.Errorf("then %s %q", status, body)
	}
}

// TestH2SlowWindows has a client open a window of a byte and take its time: the
// stream is reset, the connection goes on.
func TestH2SlowWindows(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/none" {
			io.Copy(w, zeros(1<<20))
		}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 300 * time.Millisecond })
	c := r.rawH2(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	c.open(1, true, get("/large")...)
	c.open(101, true, get("/drip")...)
	dripping := make(chan struct{})
	var drip sync.WaitGroup
	drip.Go(func() { // a byte now and then is not going on
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.framer.WriteWindowUpdate(101, 1)
			case <-dripping:
				return
			}
		}
	})
	ended := 0
	c.until("both to be reset", func(f http2.Frame) bool {
		if reset, ok := f.(*http2.RSTStreamFrame); ok {
			if ended++; reset.ErrCode != http2.ErrCodeCancel {
				t.Errorf("stream %d ended with %v", reset.StreamID, reset.ErrCode)
			}
		}
		return ended == 2
	})
	close(dripping)
	drip.Wait()
	c.open(103, true, get("/none")...)
	if status, body := c.response(103); status != "200" || body != "" {
		t.Errorf("then %s %q", status, body)
	}
	if record := r.log.wait(t, "/large"); record["end"] != "stalled" {
		t.Errorf("log record %v", record)
	}
}

// TestH2SlowBodies has a client send half a body and no more.
func TestH2SlowBodies(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 300 * time.Millisecond })
	c := r.rawH2(t)
	c.open(1, false, append([]string{":method: POST"}, get("/slow", "content-length: 10")[1:]...)...)
	c.framer.WriteData(1, false, []byte("12345"))
	if status, _ := c.response(1); status != "408" {
		t.Errorf("the stream ended with %s", status)
	}
	if record := r.log.wait(t, "/slow"); record["end"] != "body_slow" {
		t.Errorf("log record %v", record)
	}
}

// TestH2SlowHeads has clients begin what they do not end.
func TestH2SlowHeads(t *testing.T) {
	r := newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"body":"hi"}}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Head = 200 * time.Millisecond })
	half := r.rawH2(t)
	half.conn.Write([]byte{0, 0, 50, 1, 4, 0, 0, 0, 1, 'x'})
	block := r.rawH2(t)
	block.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.fields(get("/")...)})
	for name, c := range map[string]*h2Client{"half a frame": half, "half a field block": block} {
		if _, told := c.goneWith(); told {
			t.Logf("%s: told", name)
		}
	}
	silent := r.dialTLS("app.x.test", "h2")
	silent.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, silent); isTimeout(err) {
		t.Error("no preface: the connection is still open")
	}
}
