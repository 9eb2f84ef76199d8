package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// greeter listens on host and sends name to whoever connects.
func greeter(t *testing.T, host, name string) upstream.Endpoint {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	greet(t, ln, name)
	return endpointOf(ln.Addr())
}

func greet(t *testing.T, ln net.Listener, name string) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
}

func endpointOf(a net.Addr) upstream.Endpoint {
	ap := netip.MustParseAddrPort(a.String())
	return upstream.Endpoint{Host: ap.Addr().String(), Port: int(ap.Port())}
}

// closedPort returns an endpoint of host that refuses: bound, so that nobody
// else gets the port meanwhile, and not listening.
func closedPort(t *testing.T, host string) upstream.Endpoint {
	t.Helper()
	return bound(t, host, -1)
}

// deafPort returns an endpoint of host that never answers: its queue is full,
// so that further SYNs are dropped.
func deafPort(t *testing.T, host string) upstream.Endpoint {
	t.Helper()
	ep := bound(t, host, 0)
	for range 8 {
		c, err := net.DialTimeout("tcp", ep.String(), 100*time.Millisecond)
		if err != nil {
			return ep
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not fill")
	return ep
}

func bound(t *testing.T, host string, backlog int) upstream.Endpoint {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := netip.MustParseAddr(host).As4()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}); err != nil {
		t.Fatal(err)
	}
	if backlog >= 0 {
		if err := unix.Listen(fd, backlog); err != nil {
			t.Fatal(err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Endpoint{Host: host, Port: sa.(*unix.SockaddrInet4).Port}
}

// readAll reads what a greeter says.
func readAll(t *testing.T, c net.Conn) string {
	t.Helper()
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(b)
}

func backend(t testing.TB, value string) *router.Backend {
	t.Helper()
	m, err := router.ParseMapping(router.TCP, 20022, []byte(`{"backend":`+value+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return m.Backend
}

func backendOf(t testing.TB, eps ...upstream.Endpoint) *router.Backend {
	t.Helper()
	quoted := make([]string, len(eps))
	for i, ep := range eps {
		quoted[i] = fmt.Sprintf("%q", ep)
	}
	return backend(t, "["+strings.Join(quoted, ",")+"]")
}

func TestDialEndpoint(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	d := upstream.NewDialer(upstream.Config{Registerer: reg})
	c, err := d.DialEndpoint(t.Context(), greeter(t, "127.0.0.1", "one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		name                string
		level, option, want int
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
	} {
		if got := sockopt(t, c, o.level, o.option); got != o.want {
			t.Errorf("%s is %d, want %d", o.name, got, o.want)
		}
	}
	if got := readAll(t, c); got != "one" {
		t.Errorf("read %q, want %q", got, "one")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	for _, f := range families {
		if f.GetName() == "sluice_upstream_connect_seconds" && f.Metric[0].Histogram.GetSampleCount() != 1 {
			t.Errorf("%v, want one observation", f)
		}
	}
}

func sockopt(t *testing.T, c syscall.Conn, level, option int) (value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var operr error
	if err := raw.Control(func(fd uintptr) { value, operr = unix.GetsockoptInt(int(fd), level, option) }); err != nil || operr != nil {
		t.Fatal(err, operr)
	}
	return value
}

func TestDialErrorsInWords(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	notFound := &net.DNSError{Err: "no such host", Name: "gone.x.test", IsNotFound: true}
	closed := closedPort(t, "127.0.0.1")
	d.SetLookup(func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "one.x.test" {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		return nil, notFound
	})
	deaf := deafPort(t, "127.0.0.1")
	for _, tc := range []struct {
		ep   upstream.Endpoint
		want string
		is   error
	}{
		{closed, fmt.Sprintf("dial backend %v: connect: connection refused", closed), syscall.ECONNREFUSED},
		{upstream.Endpoint{Host: "one.x.test", Port: closed.Port},
			fmt.Sprintf("dial backend one.x.test:%d: %v: connect: connection refused", closed.Port, closed), syscall.ECONNREFUSED},
		{upstream.Endpoint{Host: "gone.x.test", Port: 80}, "dial backend gone.x.test:80: lookup gone.x.test: no such host", notFound},
		{deaf, fmt.Sprintf("dial backend %v: no connection within 150ms: i/o timeout", deaf), nil},
	} {
		c, err := d.DialEndpoint(t.Context(), tc.ep, 150*time.Millisecond)
		if err == nil {
			c.Close()
		}
		if err == nil || err.Error() != tc.want || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("got  %v\nwant %s, which is %v", err, tc.want, tc.is)
		}
	}
	var timeout net.Error
	if _, err := d.DialEndpoint(t.Context(), deaf, 50*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v is not a net.Error with Timeout", err)
	}
}

func TestDialOutcomes(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	d := upstream.NewDialer(upstream.Config{Registerer: reg})
	d.SetLookup(func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no server answers") })
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	deaf := deafPort(t, "127.0.0.1")
	for _, dial := range []struct {
		ctx context.Context
		ep  upstream.Endpoint
	}{
		{t.Context(), greeter(t, "127.0.0.1", "x")},
		{t.Context(), closedPort(t, "127.0.0.1")},
		{t.Context(), deaf},
		{t.Context(), upstream.Endpoint{Host: "x.test", Port: 1}},
		{canceled, deaf},
		{short, deaf},
		{t.Context(), upstream.Endpoint{Host: "255.255.255.255", Port: 1}}, // never possible by TCP
	} {
		if c, err := d.DialEndpoint(dial.ctx, dial.ep, 100*time.Millisecond); err == nil {
			c.Close()
		}
	}
	want := map[string]float64{
		"connected": 1, "refused": 1, "timeout": 1, "unreachable": 1, "unresolved": 0, "canceled": 2, "local": 0, "other": 1,
	}
	if got := counters(t, reg, "sluice_upstream_dials_total"); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// counters returns the values of a counter by the value of its one label.
func counters(t *testing.T, reg prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				values[m.Label[0].GetValue()] = m.Counter.GetValue()
			}
		}
	}
	return values
}

func TestDialTakesTheNextTarget(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	bad, good := closedPort(t, "127.0.0.1"), greeter(t, "127.0.0.1", "good")
	b := backendOf(t, bad, good)
	for i := range 4 {
		c, ep, _, err := d.Dial(t.Context(), b, nil, netip.Addr{}, time.Second)
		if err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		if got := readAll(t, c); got != "good" || ep != good {
			t.Errorf("flow %d: %q from %v, want %v", i, got, ep, good)
		}
		// The bad one was tried once and is at the end of every list now.
		if order, err := d.Targets(b, nil); err != nil || order[0] != good || order[1] != bad {
			t.Errorf("flow %d: order %v, %v", i, order, err)
		}
	}
}

func TestDialWhenAllTargetsFail(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := backendOf(t, closedPort(t, "127.0.0.1"), closedPort(t, "127.0.0.2"))
	for range 3 { // what failed before is tried all the same
		_, ep, _, err := d.Dial(t.Context(), b, nil, netip.Addr{}, time.Second)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) || ep != (upstream.Endpoint{}) {
			t.Fatalf("got %v, %v", ep, err)
		}
		for _, target := range b.Targets {
			if want := fmt.Sprintf("dial backend %v: connect: connection refused", target.Address); !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	first, second := deafPort(t, "127.0.0.1"), greeter(t, "127.0.0.1", "x")
	b := backendOf(t, first, second)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, _, _, err := d.Dial(ctx, b, nil, netip.Addr{}, 10*time.Second); err == nil {
		c.Close()
		t.Error("dialled on although the context had ended")
	}
	// The client left; that says nothing about the target, whose turn it is
	// again after the other's.
	for _, want := range []upstream.Endpoint{second, first} {
		if order, err := d.Targets(b, nil); err != nil || order[0] != want {
			t.Errorf("order %v, %v, want %v first", order, err, want)
		}
	}
}

func TestNameWithSeveralAddresses(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	// The same port on two addresses, the first of which is deaf.
	deaf := deafPort(t, "127.0.0.1")
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", deaf.Port))
	if err != nil {
		t.Fatal(err)
	}
	greet(t, ln, "second")
	d.SetLookup(func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:127.0.0.2")}, nil
	})
	ep := upstream.Endpoint{Host: "two.x.test", Port: deaf.Port}
	for i := range 3 {
		// Each address has half of the time at first, and the deaf one comes
		// last from then on.
		timeout := 4 * time.Second
		began := time.Now()
		c, err := d.DialEndpoint(t.Context(), ep, timeout)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); got != "second" {
			t.Errorf("dial %d: read %q", i, got)
		}
		if took := time.Since(began); i == 0 && took < timeout/2 || i > 0 && took >= timeout/2 {
			t.Errorf("dial %d took %v of %v", i, took, timeout)
		}
	}
	addrs, err := d.Resolve(t.Context(), ep)
	want := fmt.Sprintf("[127.0.0.2:%d 127.0.0.1:%[1]d]", deaf.Port)
	if got := fmt.Sprint(addrs); err != nil || got != want {
		t.Errorf("resolved to %s, %v, want %s", got, err, want)
	}
}

func TestNameOfTheHostsFile(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	ep := greeter(t, "127.0.0.1", "local")
	ep.Host = "localhost"
	c, err := d.DialEndpoint(t.Context(), ep, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c); got != "local" {
		t.Errorf("read %q", got)
	}
}

func TestEndpointString(t *testing.T) {
	for want, ep := range map[string]upstream.Endpoint{
		"web-3:8080":          {Host: "web-3", Port: 8080},
		"[2001:db8::1]:65535": {Host: "2001:db8::1", Port: 65535},
	} {
		if got := ep.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func BenchmarkDialEndpoint(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	d := upstream.NewDialer(upstream.Config{})
	ep := endpointOf(ln.Addr())
	b.ReportAllocs()
	for b.Loop() {
		c, err := d.DialEndpoint(b.Context(), ep, time.Second)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
	}
}
