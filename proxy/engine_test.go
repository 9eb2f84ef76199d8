package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
	"github.com/remotegpu/sluice/router"
)

// patience bounds waits for conditions; nothing asserts how long one took.
const patience = 20 * time.Second

// edge is an Engine and what it said of its ports.
type edge struct {
	*proxy.Engine
	builder router.Builder
	rev     int64

	mu     sync.Mutex
	states map[string]error
	told   chan struct{} // gets a token after each report
}

// eachMode runs f as a subtest in each ports mode that this machine allows.
// What it says where it does not allow one is tested as well.
func eachMode(t *testing.T, f func(t *testing.T, e *edge)) {
	t.Helper()
	t.Run("bind", func(t *testing.T) { f(t, newEdge(t, in(proxy.PortsBind))) })
	t.Run("steer", func(t *testing.T) {
		unsupported := steer.Supported()
		if unsupported == nil {
			f(t, newEdge(t, in(proxy.PortsSteer)))
			return
		}
		t.Logf("steered ports are not tested: %v", unsupported)
		_, err := proxy.New(engineConfig(proxy.PortsSteer))
		if err == nil || !strings.Contains(err.Error(), unsupported.Error()) {
			t.Errorf("the error is %v, want it to hold %q", err, unsupported)
		}
	})
}

// in has the engine open ports in a mode.
func in(mode proxy.PortsMode) func(*proxy.Config) {
	return func(cfg *proxy.Config) { cfg.PortsMode = mode }
}

func engineConfig(mode proxy.PortsMode) proxy.Config {
	return proxy.Config{
		PortsMode: mode,
		TLS:       &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }},
		Logger:    slog.New(slog.DiscardHandler),
	}
}

func newEdge(t *testing.T, edit ...func(*proxy.Config)) *edge {
	t.Helper()
	before := openFiles(t)
	e := &edge{states: map[string]error{}, told: make(chan struct{}, 100000)}
	cfg := engineConfig(proxy.PortsAuto)
	cfg.PortState = e.portState
	for _, change := range edit {
		change(&cfg)
	}
	var err error
	e.Engine, err = proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		e.Shutdown(over)
		eventually(t, "as many files are open as before", func() error {
			if after := openFiles(t); after > before {
				return fmt.Errorf("%d files are open, %d were", after, before)
			}
			return nil
		})
	})
	return e
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	limit := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
	}
}

func (e *edge) portState(key string, err error) {
	e.mu.Lock()
	e.states[key] = err
	e.mu.Unlock()
	select {
	case e.told <- struct{}{}:
	default: // there are enough
	}
}

func (e *edge) state(key string) (err error, told bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	err, told = e.states[key]
	return err, told
}

// waitState waits until the report on key fulfils ok.
func (e *edge) waitState(t *testing.T, key string, ok func(error) bool) {
	t.Helper()
	limit := time.After(patience)
	for {
		if err, told := e.state(key); told && ok(err) {
			return
		}
		select {
		case <-e.told:
		case <-limit:
			err, _ := e.state(key)
			t.Fatalf("the state of %s is still %v", key, err)
		}
	}
}

func (e *edge) put(t *testing.T, port int, value string) {
	t.Helper()
	e.putProto(t, router.TCP, port, value)
}

func (e *edge) putProto(t *testing.T, proto router.Proto, port int, value string) {
	t.Helper()
	m, err := router.ParseMapping(proto, port, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	e.builder.SetMapping(m)
	e.apply()
}

func (e *edge) apply() {
	e.rev++
	e.Apply(e.builder.Table(e.rev))
}

// greeter is a backend that says its name to each connection.
func greeter(t *testing.T, name string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				fmt.Fprintln(c, name)
				io.Copy(io.Discard, c) // until the client is done
			})
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	return ln.Addr().String()
}

// greeted connects to a port of the engine that leads to a greeter, and returns
// the connection once that has answered.
func greeted(t *testing.T, port int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatalf("read %q, %v", line, err)
	}
	return c
}

// nextPort is the port that freePort looks at next. They lie below the range that
// the kernel gives out by itself: from there the next listener or dial of any
// test might be given the very same one.
var nextPort atomic.Int32

// freePort returns a port that nobody listens on, another one each time until
// all have had their turn: a steered port does not look as if it were taken.
func freePort(t *testing.T) int {
	t.Helper()
	const first, count = 12000, 8000
	for range count {
		port := first + int(nextPort.Add(1))%count
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatalf("no free port from %d to %d", first, first+count-1)
	return 0
}

func greeting(port int) (string, error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestPortsFollowTheTable(t *testing.T) { eachMode(t, testPortsFollowTheTable) }

func testPortsFollowTheTable(t *testing.T, e *edge) {
	one, two, port := greeter(t, "one"), greeter(t, "two"), freePort(t)

	e.put(t, port, one)
	if got, err := greeting(port); got != "one" {
		t.Fatalf("greeting %q, %v", got, err)
	}
	e.put(t, port, two)
	if got, err := greeting(port); got != "two" {
		t.Fatalf("after the edit: greeting %q, %v", got, err)
	}
	for range 20 { // deleted and put again at once: the port must be free
		e.builder.DeleteMapping(router.TCP, port)
		e.apply()
		if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("after the delete: %v, want a refusal", err)
		}
		e.put(t, port, one)
		if got, err := greeting(port); got != "one" {
			t.Fatalf("after the new put: greeting %q, %v", got, err)
		}
	}
}

func TestBusyPortIsReportedAndTakenWhenFree(t *testing.T) {
	eachMode(t, testBusyPortIsReportedAndTakenWhenFree)
}

func testBusyPortIsReportedAndTakenWhenFree(t *testing.T, e *edge) {
	port := freePort(t)
	other, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	key := router.MappingKey(router.TCP, port)
	e.put(t, port, greeter(t, "mine"))
	if err, _ := e.state(key); err == nil || !strings.Contains(err.Error(), "port_busy") {
		t.Fatalf("state %v, want port_busy", err)
	}
	e.waitState(t, key, func(err error) bool { return err != nil && strings.Contains(err.Error(), listen.ThisProcess()) })
	e.put(t, freePort(t), greeter(t, "neighbour")) // nothing else is harmed
	other.Close()
	e.waitState(t, key, func(err error) bool { return err == nil })
	if got, err := greeting(port); got != "mine" {
		t.Errorf("greeting %q, %v", got, err)
	}
}

func TestExpiredMappingCloses(t *testing.T) { eachMode(t, testExpiredMappingCloses) }

func testExpiredMappingCloses(t *testing.T, e *edge) {
	port := freePort(t)
	key := router.MappingKey(router.TCP, port)
	backend := greeter(t, "rented")
	m, err := router.ParseMapping(router.TCP, port, fmt.Appendf(nil, `{"backend":%q}`, backend))
	if err != nil {
		t.Fatal(err)
	}
	m.ExpiresAt = time.Now().Add(300 * time.Millisecond)
	e.builder.SetMapping(m)
	e.apply()
	e.waitState(t, key, func(err error) bool { return err != nil && strings.Contains(err.Error(), "expired") })
	if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after expiry: %v, want a refusal", err)
	}
	e.put(t, port, fmt.Sprintf(`{"backend":%q,"expires_at":"2020-01-01T00:00:00Z"}`, backend))
	if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a mapping that had expired when put: %v, want a refusal", err)
	}
	e.put(t, port, backend)
	if got, err := greeting(port); got != "rented" {
		t.Errorf("renewed: greeting %q, %v", got, err)
	}
}

func TestShutdownSaysHowManyFlowsItCut(t *testing.T) {
	eachMode(t, testShutdownSaysHowManyFlowsItCut)
}

func testShutdownSaysHowManyFlowsItCut(t *testing.T, e *edge) {
	port := freePort(t)
	e.put(t, port, greeter(t, "hello"))
	greeted(t, port)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if cut := e.Shutdown(over); cut != 1 {
		t.Errorf("cut %d flows, want 1", cut)
	}
	if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the shutdown: %v, want a refusal", err)
	}
}
