package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

// ends is an slog.Handler that keeps why flows ended.
type ends struct {
	mu   sync.Mutex
	seen []string
}

func (e *ends) Enabled(context.Context, slog.Level) bool { return true }
func (e *ends) WithAttrs([]slog.Attr) slog.Handler       { return e }
func (e *ends) WithGroup(string) slog.Handler            { return e }

func (e *ends) Handle(_ context.Context, r slog.Record) error {
	var end, err string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "end":
			end = a.Value.String()
		case "err":
			err = a.Value.String()
		}
		return true
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, end+": "+err)
	return nil
}

func (e *ends) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := e.seen
	e.seen = nil
	return seen
}

// TestLoopsAreCutOff puts mappings that lead back to themselves where nobody
// refuses them, as with a name that moved to this node after it was accepted:
// one connection must not become many.
func TestLoopsAreCutOff(t *testing.T) {
	one, two, three := freePort(t), freePort(t), freePort(t)
	at := func(host string, port int) string { return fmt.Sprintf("%s:%d", host, port) }
	for _, tc := range []struct {
		name     string
		mappings map[int]string
	}{
		{"to itself", map[int]string{one: at("127.0.0.1", one)}},
		{"to itself by IPv6", map[int]string{one: at("[::ffff:127.0.0.1]", one)}},
		{"to itself by name", map[int]string{one: at("localhost", one)}},
		{"in a circle", map[int]string{one: at("127.0.0.1", two), two: at("127.0.0.1", three), three: at("127.0.0.1", one)}},
		{"into a circle", map[int]string{one: at("127.0.0.1", two), two: at("127.0.0.1", three), three: at("127.0.0.1", two)}},
		{"to itself and elsewhere", map[int]string{one: fmt.Sprintf(`{"backend": [%q, %q]}`, at("127.0.0.1", one), at("127.0.0.1", 1))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := &ends{}
			e := newEdge(t, func(c *proxy.Config) {
				c.AccessLog, c.Own = slog.New(log), netip.Addr.IsLoopback
			})
			for port, value := range tc.mappings {
				e.put(t, port, value)
			}
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", one))
			if err == nil {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				_, err = io.ReadAll(c)
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection ended by %v, want a reset", err)
			}
			over, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			e.Shutdown(over) // which ends when every flow has
			if seen := log.take(); len(seen) != 1 || !strings.HasPrefix(seen[0], "connect_failed: ") || !strings.Contains(seen[0], "of this node itself") {
				t.Errorf("there were these flows:\n%s\nwant one, and words about the loop", strings.Join(seen, "\n"))
			}
		})
	}
}

// TestBackendsOnThisNode reaches what is here and no loop: a mapped port that
// leads elsewhere, and another program's.
func TestBackendsOnThisNode(t *testing.T) {
	e := newEdge(t, func(c *proxy.Config) { c.Own = netip.Addr.IsLoopback })
	one, two := freePort(t), freePort(t)
	e.put(t, one, fmt.Sprintf("127.0.0.1:%d", two))
	e.put(t, two, greeter(t, "elsewhere"))
	if got, err := greeting(one); got != "elsewhere" {
		t.Errorf("by way of another mapping: %q, %v", got, err)
	}
}

func TestUDPLoopIsCutOff(t *testing.T) {
	log := &ends{}
	e := newEdge(t, func(c *proxy.Config) { c.AccessLog, c.Own = slog.New(log), netip.Addr.IsLoopback })
	port := freePort(t)
	m, err := router.ParseMapping(router.UDP, port, fmt.Appendf(nil, "localhost:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	e.builder.SetMapping(m)
	e.apply()
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for limit := time.Now().Add(patience); len(seen) == 0 && time.Now().Before(limit); {
		runtime.Gosched()
		seen = append(seen, log.take()...)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	e.Shutdown(over)
	if seen = append(seen, log.take()...); len(seen) != 1 || !strings.Contains(seen[0], "of this node itself") {
		t.Errorf("there were these sessions:\n%s\nwant one, and words about the loop", strings.Join(seen, "\n"))
	}
}
