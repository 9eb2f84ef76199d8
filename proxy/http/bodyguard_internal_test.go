package http

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// timedBody is a body whose bytes come one by one, each after a pause.
type timedBody struct {
	noBody
	pauses  []time.Duration
	stopped chan struct{}
}

func (b *timedBody) size() int64 { return -1 }
func (b *timedBody) stop()       { close(b.stopped) }

func (b *timedBody) Read(p []byte) (int, error) {
	if len(b.pauses) == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(b.pauses[0]):
		b.pauses = b.pauses[1:]
		return 1, nil
	case <-b.stopped:
		return 0, errBodyOver
	}
}

// TestBodyGuardTakesTime measures when slow bodies end, by a clock of its own.
func TestBodyGuardTakesTime(t *testing.T) {
	const s = time.Second
	for name, tc := range map[string]struct {
		limits  bodyLimits
		pauses  []time.Duration
		backend time.Duration // that is taken for each byte
		want    error
		after   time.Duration
	}{
		"in time":                  {bodyLimits{idle: 10 * s, wait: 30 * s}, []time.Duration{9 * s, 9 * s, 9 * s}, 0, nil, 27 * s},
		"silent":                   {bodyLimits{idle: 10 * s}, []time.Duration{9 * s, 11 * s}, 0, errBodyIdle, 19 * s},
		"silent from the start":    {bodyLimits{idle: 10 * s}, []time.Duration{time.Hour}, 0, errBodyIdle, 10 * s},
		"slow all in all":          {bodyLimits{idle: 10 * s, wait: 20 * s}, []time.Duration{9 * s, 9 * s, 9 * s}, 0, errBodySlow, 20 * s},
		"a second for each byte":   {bodyLimits{wait: 2 * s, rate: 1}, []time.Duration{s, s, s, s, s, s}, 0, nil, 6 * s},
		"too slow for its rate":    {bodyLimits{wait: 2 * s, rate: 1}, []time.Duration{1700 * time.Millisecond, 1700 * time.Millisecond}, 0, errBodySlow, 3 * s},
		"the backend takes longer": {bodyLimits{idle: 3 * s, wait: 5 * s}, []time.Duration{s, s, s}, time.Minute, nil, 3*s + 3*time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := &exchange{body: &timedBody{pauses: tc.pauses, stopped: make(chan struct{})}}
				x.guardBody(tc.limits)
				began := time.Now()
				var err error
				for p := make([]byte, 10); err == nil; {
					var n int
					if n, err = x.body.Read(p); n > 0 {
						time.Sleep(tc.backend)
					}
				}
				if err == io.EOF {
					err = nil
				}
				took := time.Since(began)
				if failed := x.body.failure(); (failed != nil) != (tc.want != nil) || failed != nil && (failed.class != endBodySlow || failed.status != 408) {
					t.Errorf("failure %v", failed)
				}
				x.guard.end()
				if !errors.Is(err, tc.want) || took < tc.after || took > tc.after+100*time.Millisecond {
					t.Errorf("%v after %v, want %v after %v", err, took, tc.want, tc.after)
				}
			})
		})
	}
}

// TestSilenceIsOfBothSides has one side move while the other does not.
func TestSilenceIsOfBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &exchange{}
		began := time.Now()
		var ended atomic.Int64
		w := watchSilenceBesides(&x.guard.heard, 10*time.Second, func() { ended.Store(int64(time.Since(began))) })
		defer w.stop()
		time.Sleep(9 * time.Second)
		w.moved()
		time.Sleep(9 * time.Second)
		x.guard.heard.Store(time.Now().UnixNano())
		time.Sleep(time.Hour)
		if got := time.Duration(ended.Load()); got != 28*time.Second {
			t.Errorf("ended after %v, want 28s", got)
		}
	})
}

// streamed is a body that has not come with its head.
type streamed struct {
	noBody
	io.Reader
}

func (streamed) size() int64                  { return -1 }
func (streamed) atHand() ([]byte, bool)       { return nil, false }
func (s streamed) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// TestBodyGuardEndsBehindAnotherTry has a backend refuse a request by HTTP/2 whose
// body it has, and take it when it comes again: the guard ends nevertheless, and
// its timer with it.
func TestBodyGuardEndsBehindAnotherTry(t *testing.T) {
	site, ln := h2Site(t)
	route, err := router.ParseRoute("app", []byte(`{"host":"app.x.test","backend":{"targets":["`+ln.Addr().String()+`"],"h2c":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		f, _ := accept(t, ln)
		for refused := false; ; {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch fr := frame.(type) {
			case *http2.SettingsFrame:
				if !fr.IsAck() {
					f.WriteSettingsAck()
				}
			case *http2.DataFrame:
				switch {
				case !fr.StreamEnded():
				case !refused:
					refused = true
					f.WriteRSTStream(fr.StreamID, http2.ErrCodeRefusedStream)
				default:
					f.WriteHeaders(http2.HeadersFrameParam{StreamID: fr.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true})
				}
			}
		}
	}()
	said := &recorded{}
	x := h2Exchange()
	x.body, x.down = streamed{Reader: strings.NewReader("content")}, said
	x.req = request{method: "POST", authority: "app.x.test", header: new(field.List), host: "app.x.test"}
	x.req.target, _ = parseTarget("/")
	x.hop.backend, x.hop.body = route.Backend, bodyLimits{idle: time.Hour}
	s := &Server{forward: site.pool.forwarder}
	if failed := s.forwardBounded(x); failed != nil || said.status != 200 {
		t.Fatalf("%v, %d", failed, said.status)
	}
	if _, again := x.body.(*regained); !again {
		t.Errorf("the request went out once: its body is %T", x.body)
	}
	x.guard.mu.Lock()
	defer x.guard.mu.Unlock()
	if !x.guard.over || x.guard.timer.Stop() {
		t.Error("the guard looks on")
	}
}
