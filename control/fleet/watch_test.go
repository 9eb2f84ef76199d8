package fleet_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// world answers looks as it is told.
type world struct {
	mu     sync.Mutex
	fails  map[string]error // by address and port
	silent map[string]bool  // those that answer nothing
	looks  map[string]int
}

func newWorld() *world {
	return &world{fails: map[string]error{}, silent: map[string]bool{}, looks: map[string]int{}}
}

func (w *world) look(ctx context.Context, addr string) error {
	w.mu.Lock()
	w.looks[addr]++
	silent, err := w.silent[addr], w.fails[addr]
	w.mu.Unlock()
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (w *world) HTTPS(ctx context.Context, addr string) error { return w.look(ctx, addr) }
func (w *world) TCP(ctx context.Context, addr string) error   { return w.look(ctx, addr) }

func (w *world) set(addr string, silent bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent[addr], w.fails[addr] = silent, err
}

// watch runs a Watcher of node a among nodes b, c and d.
func watch(t *testing.T, w *world) (*fleet.Registry, *shelf) {
	t.Helper()
	r, s := fleet.NewRegistry("a"), new(shelf)
	metrics := prometheus.NewPedanticRegistry()
	watcher := fleet.NewWatcher(fleet.WatcherConfig{Node: "a", Registry: r, Prober: w, Set: s.Set, Registerer: metrics})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{r.Run, watcher.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		families, err := metrics.Gather()
		if err != nil {
			t.Error(err)
		}
		if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("metrics: %v, %v", problems, err)
		}
	})
	all := []etcd.KV{card("a", `{"state":"ready","addresses":["203.0.113.0"],"https":443}`)}
	for i, node := range []string{"b", "c", "d"} {
		all = append(all, card(node, fmt.Sprintf(`{"state":"ready","addresses":["203.0.113.%d"],"https":443,"mapped":20022}`, i+1)))
	}
	r.Load(1, all)
	return r, s
}

// viewIn returns what the shelf has of a's view.
func viewIn(t *testing.T, s *shelf) (up, down []string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := fleet.View{}
	if err := json.Unmarshal([]byte(s.keys["health/a"]), &v); err != nil {
		t.Fatal(err)
	}
	for subject := range v.Down {
		down = append(down, subject)
	}
	slices.Sort(down)
	return v.Up, down
}

func TestPeersAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r, s := watch(t, w)
		settled := func(wait time.Duration) (up, down []string) {
			time.Sleep(wait)
			synctest.Wait()
			return viewIn(t, s)
		}
		b, c, d := "b 203.0.113.1", "c 203.0.113.2", "d 203.0.113.3"
		if up, down := settled(3 * time.Second); !slices.Equal(up, []string{b, c, d}) || down != nil {
			t.Fatalf("at first up %v, down %v", up, down)
		}
		w.set("[203.0.113.1]:443", false, errors.New("connection refused"))
		if _, down := settled(5 * time.Second); !slices.Equal(down, []string{b}) {
			t.Errorf("five seconds after it refuses connections down: %v", down)
		}
		w.set("[203.0.113.2]:443", true, nil)
		if _, down := settled(7 * time.Second); !slices.Equal(down, []string{b, c}) {
			t.Errorf("seven seconds after it fell silent down: %v", down)
		}
		w.set("[203.0.113.1]:443", false, nil)
		w.set("[203.0.113.2]:443", false, nil)
		if up, _ := settled(7 * time.Second); !slices.Equal(up, []string{b, c, d}) {
			t.Errorf("seven seconds after they are well up: %v", up)
		}
		// The mapped port is looked at now and then, and at once again where it fails.
		w.set("[203.0.113.3]:20022", false, errors.New("connection refused"))
		if _, down := settled(45 * time.Second); !slices.Equal(down, []string{d}) {
			t.Errorf("with a mapped port that is closed down: %v", down)
		}
		w.set("[203.0.113.3]:20022", false, nil)
		if up, _ := settled(7 * time.Second); !slices.Equal(up, []string{b, c, d}) {
			t.Errorf("with the mapped port open up: %v", up)
		}
		// What this node lacks is nobody's fault.
		w.set("[203.0.113.1]:443", false, &fleet.UnableError{Err: errors.New("network is unreachable")})
		if up, _ := settled(time.Minute); !slices.Equal(up, []string{b, c, d}) {
			t.Errorf("without a route up: %v", up)
		}
		// Who is drained is not looked at.
		r.Change(2, []etcd.Change{put("members/b", `{"state":"draining","addresses":["203.0.113.1"],"https":443}`)})
		if up, _ := settled(time.Second); !slices.Equal(up, []string{c, d}) {
			t.Errorf("with one that is drained up: %v", up)
		}
	})
}

func TestWatchingIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, s := watch(t, w)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		for addr, want := range map[string]int{"[203.0.113.1]:443": 120, "[203.0.113.1]:20022": 4} {
			if n := w.looks[addr]; n < want*3/4 || n > want*5/4+1 {
				t.Errorf("%d looks at %s within two minutes, want about %d", n, addr, want)
			}
		}
		if w.looks["[203.0.113.0]:443"] > 0 {
			t.Error("the node looks at itself")
		}
		if len(s.keys) != 1 {
			t.Errorf("keys: %v", s.keys)
		}
	})
}

func TestVotesDecide(t *testing.T) {
	r := fleet.NewRegistry("a")
	view := func(node, down string) etcd.Change {
		v := fleet.View{Down: map[string]string{}}
		for i, peer := range []string{"a", "b", "c", "d"} {
			switch subject := fmt.Sprintf("%s 203.0.113.%d", peer, i); {
			case peer == down:
				v.Down[subject] = "no answer"
			case peer != node:
				v.Up = append(v.Up, subject)
			}
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return put("health/"+node, string(text))
	}
	all := []etcd.KV{}
	for i, node := range []string{"a", "b", "c", "d"} {
		all = append(all, card(node, fmt.Sprintf(`{"state":"ready","addresses":["203.0.113.%d","2001:db8::%d"],"https":443}`, i, i)))
	}
	r.Load(1, all)
	r.Change(2, []etcd.Change{view("a", "c"), view("b", "c")})
	members, _ := r.Members()
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	want := []netip.Addr{netip.MustParseAddr("2001:db8::2")}
	if diff := cmp.Diff(want, members[2].Addresses, same); diff != "" || !members[2].Healthy {
		t.Errorf("the address that answers stays alone, of a healthy node (-want +got):\n%s", diff)
	}
	r.Change(3, []etcd.Change{put("members/c", `{"state":"ready","addresses":["203.0.113.2"]}`)})
	members, _ = r.Members()
	if c := members[2]; c.Healthy || !strings.Contains(c.Why, "2 of the 3 nodes that watch it cannot reach it: no answer") || len(c.Addresses) != 1 {
		t.Errorf("with its only address out: %+v", c)
	}
}

func TestProberOverTheNetwork(t *testing.T) {
	answer := http.StatusOK
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health-proxy" || r.TLS.ServerName != r.Host {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(answer)
	}))
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	p := fleet.NewNetProber(func() string { return "app.example.com" })
	for range 2 { // the second time the session is resumed
		if err := p.HTTPS(t.Context(), addr); err != nil {
			t.Errorf("a node that is well: %v", err)
		}
	}
	answer = http.StatusServiceUnavailable
	if err := p.HTTPS(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("one that is not: %v", err)
	}
	if err := p.TCP(t.Context(), addr); err != nil {
		t.Errorf("an open port: %v", err)
	}

	// One that has no certificate answers with an alert.
	bare, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("there is none")
	}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { serveTLS(bare) })
	if err := p.HTTPS(t.Context(), bare.Addr().String()); err == nil {
		t.Error("no certificate for a name that there is one for: no error")
	}
	if err := fleet.NewNetProber(func() string { return "" }).HTTPS(t.Context(), bare.Addr().String()); err != nil {
		t.Errorf("no certificate, and no name: %v", err)
	}
	bare.Close()
	serving.Wait()
	if err := p.TCP(t.Context(), bare.Addr().String()); err == nil || errors.As(err, new(*fleet.UnableError)) {
		t.Errorf("a closed port: %v", err)
	}

	// One that is frozen: the kernel accepts, and nobody answers.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.HTTPS(ctx, silent.Addr().String()); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("one that says nothing: %v", err)
	}
}

func serveTLS(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, c) // the handshake fails
		c.Close()
	}
}
