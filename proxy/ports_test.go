package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
	"github.com/remotegpu/sluice/router"
)

// TestManyBusyPortsHoldNothingUp has 300 ports busy, and the search for their
// owners take for ever: neither the table nor later edits may wait for it, and
// one search must do for many ports.
func TestManyBusyPortsHoldNothingUp(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		release, begun := make(chan struct{}), make(chan int, 1000)
		var searches atomic.Int64
		t.Cleanup(proxy.SetOwners(func(ctx context.Context, busy ...*listen.BusyError) []string {
			searches.Add(1)
			begun <- len(busy)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return listen.Owners(ctx, busy...)
		}))
		backend := greeter(t, "backend")
		const count = 300
		var keys []string
		for range count {
			other, err := net.Listen("tcp", "127.0.0.1:0") // anywhere, and for this test alone
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			port := other.Addr().(*net.TCPAddr).Port
			m, err := router.ParseMapping(router.TCP, port, []byte(backend))
			if err != nil {
				t.Fatal(err)
			}
			e.builder.SetMapping(m)
			keys = append(keys, router.MappingKey(router.TCP, port))
		}
		e.apply()
		for _, key := range keys {
			if err, _ := e.state(key); err == nil || !strings.HasPrefix(err.Error(), "port_busy: ") {
				t.Fatalf("%s: %v, want port_busy", key, err)
			}
		}
		<-begun
		for range 20 {
			port := freePort(t)
			e.put(t, port, backend)
			if got, err := greeting(port); got != "backend" {
				t.Errorf("greeting %q, %v", got, err)
			}
		}
		close(release)
		for _, key := range keys {
			e.waitState(t, key, func(err error) bool { return err != nil && strings.Contains(err.Error(), listen.ThisProcess()) })
		}
		if n := searches.Load(); n > 2 {
			t.Errorf("%d searches for the owners of ports that were busy at once", n)
		}
	})
}

// TestLateOpeningIsLogged frees a busy port: whoever read of it in the log reads
// there that it is well.
func TestLateOpeningIsLogged(t *testing.T) {
	log := &syncBuffer{}
	e := newEdge(t, in(proxy.PortsBind), func(cfg *proxy.Config) { cfg.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	port, free := freePort(t), freePort(t)
	other, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	e.put(t, free, greeter(t, "neighbour"))
	e.put(t, port, greeter(t, "mine"))
	if err, _ := e.state(router.MappingKey(router.TCP, port)); err == nil || strings.Contains(log.String(), "opened a mapped port") {
		t.Fatalf("state %v, and the log is\n%s", err, log.String())
	}
	other.Close()
	e.waitState(t, router.MappingKey(router.TCP, port), func(err error) bool { return err == nil })
	if got := log.String(); strings.Count(got, "opened a mapped port") != 1 || !strings.Contains(got, fmt.Sprintf(`msg="opened a mapped port" port=tcp/%d after=`, port)) {
		t.Errorf("the log is\n%s", got)
	}
}

func TestExpiriesAreIndependent(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		backend := greeter(t, "rented")
		var keys []string
		var last int
		for i := range 40 {
			port := freePort(t)
			m, err := router.ParseMapping(router.TCP, port, fmt.Appendf(nil, `{"backend":%q,"expires_at":"2020-01-01T00:00:00Z"}`, backend))
			if err != nil {
				t.Fatal(err)
			}
			switch i % 4 {
			case 0: // for long, unless it is edited
				m.ExpiresAt = time.Now().Add(time.Hour)
				last = port
			default: // soon, out of order
				m.ExpiresAt = time.Now().Add(time.Duration(1+i*7%40) * 5 * time.Millisecond)
				keys = append(keys, m.Key())
			}
			e.builder.SetMapping(m)
			if i%2 == 0 {
				e.apply()
			}
		}
		e.apply()
		for _, key := range keys {
			e.waitState(t, key, func(err error) bool { return err != nil && strings.Contains(err.Error(), "expired") })
		}
		if got, err := greeting(last); got != "rented" {
			t.Errorf("one that has an hour left: %q, %v", got, err)
		}
	})
}

// TestAnEditOutlivesAnExpiry edits a mapping again and again, each time to
// expire soon, and at last never.
func TestAnEditOutlivesAnExpiry(t *testing.T) {
	e := newEdge(t, in(proxy.PortsBind))
	backend, port := greeter(t, "rented"), freePort(t)
	for range 1500 { // more than are kept
		m, err := router.ParseMapping(router.TCP, port, []byte(backend))
		if err != nil {
			t.Fatal(err)
		}
		m.ExpiresAt = time.Now().Add(time.Hour)
		e.builder.SetMapping(m)
		e.apply()
	}
	soon := time.Now().Add(50 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	e.put(t, port, fmt.Sprintf(`{"backend":%q,"expires_at":%q}`, backend, soon))
	e.put(t, port, backend)
	other := freePort(t)
	e.put(t, other, fmt.Sprintf(`{"backend":%q,"expires_at":%q}`, backend, time.Now().Add(100*time.Millisecond).UTC().Format(time.RFC3339Nano)))
	e.waitState(t, router.MappingKey(router.TCP, other), func(err error) bool { return err != nil })
	if got, err := greeting(port); got != "rented" {
		t.Errorf("after the time that an earlier value had: %q, %v", got, err)
	}
}

// echoUDP answers each datagram with itself.
func echoUDP(t *testing.T) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { pc.Close(); serving.Wait() })
	return pc.LocalAddr().String()
}

func dialUDP(t *testing.T, host string, port int) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// echo sends text and wants it back, to a socket that takes answers from the
// address it wrote to alone.
func echo(t *testing.T, c *net.UDPConn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != text {
		t.Fatalf("to %v %q came back: %q, %v", c.RemoteAddr(), text, buf[:n], err)
	}
}

// TestUDPPorts sends each datagram once: none may be lost on the way from the
// common socket to the port's own and back.
func TestUDPPorts(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		backend, port := echoUDP(t), freePort(t)
		udpRefused(t, port)
		for range 3 {
			e.putProto(t, router.UDP, port, backend)
			udpServes(t, port)
			for round := range 3 {
				for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
					c := dialUDP(t, host, port)
					for i := range 5 {
						echo(t, c, fmt.Sprintf("%s %d %d", host, round, i))
					}
					echo(t, c, strings.Repeat("x", 60000))
				}
			}
			e.builder.DeleteMapping(router.UDP, port)
			e.apply()
			udpRefused(t, port)
		}
	})
}

// TestUDPSessionsOutliveTheirMapping keeps a session when its mapping is deleted,
// for which the closed port's socket has to stay; puts the mapping again beside
// it; and ends the session when nothing else needs the socket.
func TestUDPSessionsOutliveTheirMapping(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		port := freePort(t)
		value := fmt.Sprintf(`{"backend":%q,"on_delete":"keep"}`, echoUDP(t))
		remove := func() {
			e.builder.DeleteMapping(router.UDP, port)
			e.apply()
		}
		e.putProto(t, router.UDP, port, value)
		kept := dialUDP(t, "127.0.0.1", port)
		for range 3 {
			echo(t, kept, "with the mapping")
			remove()
			echo(t, kept, "without it")
			stranger := dialUDP(t, "127.0.0.2", port)
			stranger.Write([]byte("let me in"))
			echo(t, kept, "as ever") // after the stranger's, whose answer would be there
			stranger.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, err := stranger.Read(make([]byte, 64)); err == nil {
				t.Errorf("a client that came after the delete got %d bytes", n)
			}
			e.putProto(t, router.UDP, port, value)
			echo(t, stranger, "and now")
		}
		remove()
		if n := e.Cut(func(l4.FlowInfo) bool { return true }); n == 0 {
			t.Error("no session was left to cut")
		}
		udpRefused(t, port)
		e.putProto(t, router.UDP, port, value)
		udpServes(t, port)
		echo(t, kept, "anew")
	})
}

// TestUDPSessionsDrain deletes a mapping whose session goes on until its time
// has come, or is taken over by the same mapping, put again.
func TestUDPSessionsDrain(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		drained, repaired := freePort(t), freePort(t)
		value := fmt.Sprintf(`{"backend":%q,"on_delete":"drain 500ms"}`, echoUDP(t))
		begin := func(port int) *net.UDPConn {
			e.putProto(t, router.UDP, port, value)
			c := dialUDP(t, "127.0.0.1", port)
			echo(t, c, "with the mapping")
			return c
		}
		remove := func(port int) {
			e.builder.DeleteMapping(router.UDP, port)
			e.apply()
		}
		live := func(port int) (n int) {
			for f := range e.Flows() {
				if f.Port == port {
					n++
				}
			}
			return n
		}
		again := begin(repaired)
		remove(repaired)
		e.putProto(t, router.UDP, repaired, value)
		c := begin(drained)
		remove(drained)
		echo(t, c, "without it")
		eventually(t, "the session ends", func() error {
			if n := live(drained); n > 0 {
				return fmt.Errorf("%d live sessions", n)
			}
			return nil
		})
		udpRefused(t, drained)
		if n := live(repaired); n != 1 {
			t.Errorf("%d sessions of the mapping that was put again, want the one it had", n)
		}
		echo(t, again, "as ever")
	})
}

// TestUDPPortRests follows the socket of a steered port: it opens for the first
// datagram, and closes some time after the last session.
func TestUDPPortRests(t *testing.T) {
	registry := prometheus.NewRegistry()
	e := newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) { cfg.Registerer = registry })
	backend, port := echoUDP(t), freePort(t)
	e.putProto(t, router.UDP, port, backend)
	sockets := func(want float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v ports have a socket", want), func() error {
			if got := gathered(t, registry, "sluice_proxy_udp_sockets", ""); got != want {
				return fmt.Errorf("%v have", got)
			}
			return nil
		})
	}
	sockets(0)
	c := dialUDP(t, "127.0.0.1", port)
	for i := range 3 {
		echo(t, c, fmt.Sprint("hello ", i))
		sockets(1)
		// An idle timeout might end it before a slow answer.
		if n := e.Cut(func(l4.FlowInfo) bool { return true }); n != 1 {
			t.Errorf("there were %d sessions, want one", n)
		}
		sockets(0)
	}
	echo(t, c, "once more")
	sockets(1)
	e.builder.DeleteMapping(router.UDP, port)
	e.apply()
	sockets(0)
	udpRefused(t, port)
}

// TestUDPPortsChangeHands sends each datagram once, at any time while the socket
// of the port opens, rests and closes, none of which may cost one. Edits end the
// sessions: an idle timeout might do so before a slow answer.
func TestUDPPortsChangeHands(t *testing.T) {
	proxy.SetPace(time.Millisecond, time.Hour)
	t.Cleanup(func() { proxy.SetPace(testRest, testForeign) }) // after the engine's end
	e := newEdge(t, in(proxy.PortsSteer))
	backends, port := []string{echoUDP(t), echoUDP(t)}, freePort(t)
	clients := []*net.UDPConn{dialUDP(t, "127.0.0.1", port), dialUDP(t, "127.0.0.2", port), dialUDP(t, "127.0.0.1", port)}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for round := range 120 {
		e.putProto(t, router.UDP, port, backends[round%2])
		for range round % 20 { // a socket closes some 12 ms after its last session
			<-tick.C
		}
		for i, c := range clients {
			echo(t, c, fmt.Sprintf("%d %d", round, i))
		}
	}
}

func TestFirstDatagramsOfUnwantedClientsOpenNothing(t *testing.T) {
	registry := prometheus.NewRegistry()
	e := newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) { cfg.Registerer = registry })
	backend, port := echoUDP(t), freePort(t)
	e.putProto(t, router.UDP, port, fmt.Sprintf(`{"backend":%q,"deny":["127.0.0.0/8"]}`, backend))
	dialUDP(t, "127.0.0.1", port).Write([]byte("let me in"))
	eventually(t, "the datagram is counted", func() error {
		if got := gathered(t, registry, "sluice_proxy_first_datagrams_dropped_total", "denied"); got != 1 {
			return fmt.Errorf("%v are", got)
		}
		return nil
	})
	if got := gathered(t, registry, "sluice_proxy_udp_sockets", ""); got != 0 {
		t.Errorf("%v ports have a socket", got)
	}
	eventually(t, "its mapping has the datagram for refused", func() error {
		for _, account := range e.Mappings() {
			if account.Refused != 1 || account.Started != 0 {
				return fmt.Errorf("its account is %+v", account)
			}
		}
		return nil
	})
}

// gathered returns the value of a metric, of the series with the given label
// value where there are several.
func gathered(t *testing.T, registry *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, label)
	return 0
}

func TestForeignSocketsAreReported(t *testing.T) {
	registry, log := prometheus.NewRegistry(), &syncBuffer{}
	port := freePort(t)
	e := newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) {
		cfg.Registerer = registry
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		cfg.Ports = router.Ports{{First: port, Last: port}}
	})
	e.put(t, port, greeter(t, "mine"))
	name := listenInChild(t, port)
	eventually(t, "the other program is reported", func() error {
		if got := gathered(t, registry, "sluice_proxy_foreign_sockets", "deaf"); got != 1 {
			return fmt.Errorf("%v are", got)
		}
		return nil
	})
	if text := log.String(); !strings.Contains(text, "gets nothing") || !strings.Contains(text, name) {
		t.Errorf("the log does not name %s:\n%s", name, text)
	}
	if got, err := greeting(port); got != "mine" {
		t.Errorf("greeting %q, %v", got, err)
	}
	e.builder.DeleteMapping(router.TCP, port)
	e.apply()
	eventually(t, "the other program hears", func() error {
		if got := gathered(t, registry, "sluice_proxy_foreign_sockets", "hearing"); got != 1 {
			return fmt.Errorf("%v do", got)
		}
		return nil
	})
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("the other program's port: %v", err)
	}
	c.Close()
	// What is mapped where another program listens is busy, and names it.
	e.put(t, port, greeter(t, "mine"))
	e.waitState(t, router.MappingKey(router.TCP, port), func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "port_busy") && strings.Contains(err.Error(), name)
	})
}

func TestUnknownMode(t *testing.T) {
	if _, err := proxy.New(engineConfig("magic")); err == nil || !strings.Contains(err.Error(), `"magic" is not known`) {
		t.Errorf("got %v", err)
	}
}

func TestModeIsSaid(t *testing.T) {
	for _, mode := range []proxy.PortsMode{proxy.PortsBind, proxy.PortsAuto, ""} {
		registry, log := prometheus.NewRegistry(), &syncBuffer{}
		e := newEdge(t, in(mode), func(cfg *proxy.Config) {
			cfg.Registerer = registry
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		})
		want := proxy.PortsBind
		if mode != proxy.PortsBind && steer.Supported() == nil {
			want = proxy.PortsSteer
		}
		if e.PortsMode() != want {
			t.Errorf("mode %q became %q, want %q", mode, e.PortsMode(), want)
		}
		if gathered(t, registry, "sluice_proxy_ports_mode", string(want)) != 1 {
			t.Error("the metrics do not tell")
		}
		if text := log.String(); strings.Count(text, "mode="+string(want)+" why=") != 1 {
			t.Errorf("the log does not tell:\n%s", text)
		}
	}
}

// TestManyMappings loads 40,000 mappings in one table.
func TestManyMappings(t *testing.T) {
	e := newEdge(t, in(proxy.PortsSteer))
	backend := greeter(t, "one of many")
	const first, last = 20000, 39999
	parsed, err := router.ParseMapping(router.TCP, first, []byte(backend))
	if err != nil {
		t.Fatal(err)
	}
	for port := first; port <= last; port++ {
		for _, proto := range []router.Proto{router.TCP, router.UDP} {
			m := *parsed
			m.Proto, m.Port = proto, port
			e.builder.SetMapping(&m)
		}
	}
	e.apply()
	for port := first; port <= last; port += 499 {
		if got, err := greeting(port); got != "one of many" {
			state, _ := e.state(router.MappingKey(router.TCP, port))
			t.Errorf("port %d: %q, %v, %v", port, got, err, state)
		}
	}
	for port := first; port <= last; port++ {
		e.builder.DeleteMapping(router.TCP, port)
		e.builder.DeleteMapping(router.UDP, port)
	}
	e.apply()
	for port := first; port <= last; port += 499 {
		if _, err := greeting(port); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %d after the delete: %v, want a refusal", port, err)
		}
	}
}

// syncBuffer is a bytes.Buffer for several writers and readers.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// BenchmarkEdit edits one of 40,000 mappings: its backend, or whether it is
// there.
func BenchmarkEdit(b *testing.B) {
	for _, mode := range []proxy.PortsMode{proxy.PortsBind, proxy.PortsSteer} {
		e, err := proxy.New(engineConfig(mode))
		if err != nil {
			b.Fatal(err)
		}
		var builder router.Builder
		var versions [2]*router.Mapping
		for i := range versions {
			if versions[i], err = router.ParseMapping(router.TCP, 20000, fmt.Appendf(nil, "10.0.3.1:%d", 22+i)); err != nil {
				b.Fatal(err)
			}
		}
		if mode == proxy.PortsSteer { // else they would be as many sockets
			for port := 20001; port < 60000; port++ {
				m := *versions[0]
				m.Port = port
				builder.SetMapping(&m)
			}
		}
		builder.SetMapping(versions[0])
		e.Apply(builder.Table(1))
		b.Run(string(mode)+"/backend", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				builder.SetMapping(versions[i%2])
				e.Apply(builder.Table(int64(i)))
			}
		})
		b.Run(string(mode)+"/port", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					builder.DeleteMapping(router.TCP, 20000)
				} else {
					builder.SetMapping(versions[0])
				}
				e.Apply(builder.Table(int64(i)))
			}
		})
		over, cancel := context.WithCancel(b.Context())
		cancel()
		e.Shutdown(over)
	}
}
