package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

func newEdge(t *testing.T, edit ...func(*proxy.Config)) *edge {
	t.Helper()
	e := &edge{states: map[string]error{}, told: make(chan struct{}, 1000)}
	cfg := proxy.Config{
		TLS:       &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }},
		PortState: e.portState,
		Logger:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, f := range edit {
		f(&cfg)
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
	})
	return e
}

func (e *edge) portState(key string, err error) {
	e.mu.Lock()
	e.states[key] = err
	e.mu.Unlock()
	e.told <- struct{}{}
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
	m, err := router.ParseMapping(router.TCP, port, []byte(value))
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

// freePort returns a port that nobody listens on, below the range that the
// kernel gives out by itself: from there the next listener or dial of any test
// on the machine might be given the very same one.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 12000 + rand.IntN(8000)
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no free port between 12000 and 20000")
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

func TestPortsFollowTheTable(t *testing.T) {
	e := newEdge(t)
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
	e := newEdge(t)
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
	e.put(t, freePort(t), greeter(t, "neighbour")) // nothing else is harmed
	other.Close()
	e.waitState(t, key, func(err error) bool { return err == nil })
	if got, err := greeting(port); got != "mine" {
		t.Errorf("greeting %q, %v", got, err)
	}
}

func TestExpiredMappingCloses(t *testing.T) {
	e := newEdge(t)
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
	e := newEdge(t)
	port := freePort(t)
	e.put(t, port, greeter(t, "hello"))
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello\n" {
		t.Fatalf("greeting %q, %v", line, err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if cut := e.Shutdown(over); cut != 1 {
		t.Errorf("cut %d flows, want 1", cut)
	}
	if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the shutdown: %v, want a refusal", err)
	}
}
