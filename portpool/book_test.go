package portpool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func pool(t *testing.T, service, value string) *portpool.Pool {
	t.Helper()
	p, err := portpool.Parse(service, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// never is for pools that pick the lowest port.
func never(int) int { panic("a random number for a pool that picks the lowest") }

// take chooses for a request and writes what was chosen, at revision rev.
func take(t *testing.T, b *portpool.Book, r portpool.Request, now time.Time, rev int64) *portpool.Grant {
	t.Helper()
	g, err := b.Choose(r, now, never)
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	for _, c := range g.Claims {
		b.Set(c.Proto, c.Port, &portpool.Allocation{Env: r.Env, Service: r.Service, Since: now}, rev)
	}
	return g
}

func release(b *portpool.Book, g *portpool.Grant, now time.Time, rest time.Duration, rev int64) {
	for _, c := range g.Claims {
		a, _ := b.Allocation(c.Proto, c.Port)
		b.Set(c.Proto, c.Port, a.Release(now, rest), rev)
	}
}

func TestSamePortAgain(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20003","backend_port":22}`))
	ssh := func(env string) portpool.Request { return portpool.Request{Env: env, Service: "ssh"} }

	take(t, b, ssh("a"), start, 1)
	second := take(t, b, ssh("b"), start, 2)
	release(b, second, start, time.Minute, 3)
	if g := take(t, b, ssh("c"), start, 4); g.Ports.First != 20002 {
		t.Errorf("while 20001 rests another environment got %v", g.Ports)
	}
	g := take(t, b, ssh("b"), start, 5)
	if g.Ports.First != 20001 || g.Claims[0].Since != 3 {
		t.Errorf("the environment that had 20001 got %v, on the condition that it is as of %d", g.Ports, g.Claims[0].Since)
	}
	release(b, g, start, time.Minute, 6)
	if g := take(t, b, ssh("d"), start.Add(time.Minute), 7); g.Ports.First != 20001 {
		t.Errorf("after the rest of 20001 another environment got %v", g.Ports)
	}
	if g := take(t, b, ssh("b"), start.Add(time.Minute), 8); g.Ports.First != 20003 {
		t.Errorf("whose old port is somebody else's got %v", g.Ports)
	}
	_, err := b.Choose(ssh("e"), start.Add(time.Minute), never)
	var exhausted *portpool.ExhaustedError
	if !errors.As(err, &exhausted) || exhausted.Stats != (portpool.Stats{Size: 4, Held: 4}) {
		t.Errorf("a pool without free ports: %v", err)
	}
}

// A clock that once was ahead ends no rest before its time, once it is right.
func TestClockSetBack(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20001","backend_port":22}`))
	first := take(t, b, portpool.Request{Env: "a", Service: "ssh"}, start, 1)
	release(b, first, start, time.Hour, 2)
	ahead, err := b.Choose(portpool.Request{Env: "b", Service: "ssh"}, start.Add(24*time.Hour), never)
	if err != nil || ahead.Ports.First != 20000 {
		t.Fatalf("a day later: %v, %v", ahead, err)
	}
	b.Set(router.TCP, 20001, &portpool.Allocation{Env: "c", Service: "ssh", Since: start, Released: start, Until: start.Add(time.Hour)}, 3)
	if g, err := b.Choose(portpool.Request{Env: "b", Service: "ssh"}, start, never); err == nil {
		t.Errorf("while both ports rest: %v", g.Ports)
	}
	if g := take(t, b, portpool.Request{Env: "b", Service: "ssh"}, start.Add(time.Hour), 4); g.Ports.First != 20000 {
		t.Errorf("after the rest: %v", g.Ports)
	}
}

// A port that its pool has set aside since is for nobody who does not ask for it.
func TestOldPortSetAside(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20001","backend_port":22}`))
	g := take(t, b, portpool.Request{Env: "a", Service: "ssh"}, start, 1)
	release(b, g, start, time.Hour, 2)
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20001","backend_port":22,"reserved":"20000"}`))
	if g := take(t, b, portpool.Request{Env: "a", Service: "ssh"}, start, 3); g.Ports.First != 20001 {
		t.Errorf("whose old port is reserved by now got %v", g.Ports)
	}
	if g := take(t, b, portpool.Request{Env: "a", Service: "ssh", Port: 20000}, start, 4); g.Ports.First != 20000 {
		t.Errorf("who asks for it got %v", g.Ports)
	}
}

func TestBothProtocolsUnderOneNumber(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "rdp", `{"ports":"3389-3392","backend_port":3389,"protocol":"tcp+udp","reserved":"3390"}`))
	b.SetMapped(router.UDP, 3389, true)
	g := take(t, b, portpool.Request{Env: "a", Service: "rdp"}, start, 1)
	want := []portpool.Claim{{Proto: router.TCP, Port: 3391}, {Proto: router.UDP, Port: 3391}}
	if diff := cmp.Diff(want, g.Claims); diff != "" {
		t.Errorf("beside a mapping on udp/3389 and the reserved 3390: %s", diff)
	}
	want[0].Port, want[1].Port = 3390, 3390
	if g := take(t, b, portpool.Request{Env: "b", Service: "rdp", Port: 3390}, start, 2); !cmp.Equal(g.Claims, want) {
		t.Errorf("the reserved port, asked for: %v", g.Claims)
	}
	if s, want := b.Stats(b.Pool("rdp"), start), (portpool.Stats{Size: 4, Held: 2, Mapped: 1, Available: 1}); s != want {
		t.Errorf("stats %+v, want %+v", s, want)
	}
}

func TestExactPort(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20009","backend_port":22}`))
	b.Set(router.TCP, 20001, &portpool.Allocation{Reserved: "the office VPN", Since: start}, 1)
	b.SetMapped(router.TCP, 20002, true)
	take(t, b, portpool.Request{Env: "a", Service: "ssh", Port: 20003}, start, 2)
	gone := take(t, b, portpool.Request{Env: "a", Service: "ssh", Port: 20004, Span: 2}, start, 3)
	release(b, gone, start, time.Hour, 4)
	pending, err := b.Choose(portpool.Request{Env: "c", Service: "ssh", Port: 20007}, start, never)
	if err != nil {
		t.Fatal(err)
	}
	b.Claim(pending)
	for _, tc := range []struct {
		port, span int
		want       string
	}{
		{20001, 0, "tcp port 20001 is reserved: the office VPN"},
		{20002, 0, "delete ports/tcp/20002, or ask for another port"},
		{20003, 0, "is held by ssh of environment a since 2026-11-01T12:00:00Z"},
		{20005, 0, "was released by environment a and rests until 2026-11-01T13:00:00Z"},
		{20006, 2, "is being allocated to somebody else"},
		{20010, 0, "port: 20010 lies outside the pool ssh (20000-20009)"},
		{20009, 2, "port: 20009-20010 lies outside the pool"},
		{-1, 0, "lies outside the pool"},
		{65535, 2, "lies outside the pool"},
		{20008, 33, "span: must be from 1 to 32, not 33"},
		{20008, -1, "span: must be from 1 to 32, not -1"},
	} {
		_, err := b.Choose(portpool.Request{Env: "b", Service: "ssh", Port: tc.port, Span: tc.span}, start, never)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("port %d, span %d: %v, want %q", tc.port, tc.span, err, tc.want)
		}
	}
	b.Unclaim(pending)
	take(t, b, portpool.Request{Env: "b", Service: "ssh", Port: 20006, Span: 2}, start, 5)
	if g := take(t, b, portpool.Request{Env: "a", Service: "ssh", Port: 20005}, start, 6); g.Claims[0].Since != 4 {
		t.Errorf("the environment's own port, resting: %+v", g.Claims)
	}
	if _, err := b.Choose(portpool.Request{Env: "a", Service: "code"}, start, never); err == nil || !strings.Contains(err.Error(), `there is no pool "code"; there are: ssh`) {
		t.Errorf("a service without a pool: %v", err)
	}
}

func TestShrunkPool(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20009","backend_port":22}`))
	for i := range int64(4) {
		take(t, b, portpool.Request{Env: fmt.Sprint(i), Service: "ssh"}, start, i+1)
	}
	b.SetPool(pool(t, "ssh", `{"ports":"20001,20003-20004","backend_port":22}`))
	if got := b.Outside(); !cmp.Equal(got, map[string][]int{"ssh": {20000, 20002}}) {
		t.Errorf("outside: %v", got)
	}
	for want, ports := range map[string][]int{
		"": {}, "ports_outside: environments hold 1 port outside of it, 1, and keep them until they end (sluice port audit)": {1},
		"ports_outside: environments hold 4 ports outside of it, 1,3-5, and keep them until they end (sluice port audit)":                         {1, 3, 4, 5},
		"ports_outside: environments hold 11 ports outside of it, 1,3,5,7,9,11,13,15,17,19,..., and keep them until they end (sluice port audit)": {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21},
	} {
		if got := portpool.OutsideText(ports); got != want {
			t.Errorf("%v: %s", ports, got)
		}
	}
	if g := take(t, b, portpool.Request{Env: "e", Service: "ssh"}, start, 9); g.Ports.First != 20004 {
		t.Errorf("of the shrunk pool: %v", g.Ports)
	}
}

func TestRandomPick(t *testing.T) {
	b := portpool.NewBook()
	b.SetPool(pool(t, "ssh", `{"ports":"20000-20004,30000-30004","backend_port":22,"pick":"random"}`))
	rng := rand.New(rand.NewPCG(1, 2))
	got := map[int]bool{}
	for range 400 {
		g, err := b.Choose(portpool.Request{Env: "a", Service: "ssh"}, start, rng.IntN)
		if err != nil {
			t.Fatal(err)
		}
		got[g.Ports.First] = true
	}
	if len(got) != 10 {
		t.Errorf("of 10 free ports 400 choices were %v", got)
	}
	for i := range int64(10) {
		g, err := b.Choose(portpool.Request{Env: fmt.Sprint(i), Service: "ssh"}, start, rng.IntN)
		if err != nil {
			t.Fatalf("with %d of 10 held: %v", i, err)
		}
		b.Set(router.TCP, g.Ports.First, &portpool.Allocation{Env: fmt.Sprint(i), Service: "ssh", Since: start}, i+1)
	}
}

// An older change than what is known comes late from the watch.
func TestOldNewsIsNoNews(t *testing.T) {
	b := portpool.NewBook()
	b.Set(router.TCP, 20000, &portpool.Allocation{Env: "b", Service: "ssh", Since: start}, 7)
	b.Set(router.TCP, 20000, &portpool.Allocation{Env: "a", Service: "ssh", Since: start}, 5)
	b.Set(router.TCP, 20000, nil, 6)
	if a, rev := b.Allocation(router.TCP, 20000); a == nil || a.Env != "b" || rev != 7 {
		t.Errorf("the newest of three: %+v at %d", a, rev)
	}
}

// FuzzAllocation wants what is accepted to make sense, and to stay what it is
// once written.
func FuzzAllocation(f *testing.F) {
	for _, s := range []string{
		`{"env":"a","service":"ssh","since":"2026-11-01T12:00:00Z"}`,
		`{"env":"a","service":"ssh","since":"2026-11-01T12:00:00Z","released":"2026-11-01T13:00:00+08:00","until":"2026-11-01T14:00:00Z"}`,
		`{"reserved":"the office VPN","since":"2026-11-01T12:00:00Z"}`, `{"reserved":"x","env":"a"}`, `{`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		a, err := portpool.ParseAllocation(value)
		if err != nil {
			var fe *router.FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("%q: the error %v is no FieldError", value, err)
			}
			return
		}
		out, err := a.MarshalJSON()
		if err != nil {
			return // a year beyond 9999
		}
		again, err := portpool.ParseAllocation(out)
		if err != nil {
			t.Fatalf("%q was written as %q: %v", value, out, err)
		}
		for _, now := range []time.Time{{}, start, a.Since, a.Released, a.Until} {
			if a.State(now) != again.State(now) {
				t.Fatalf("%q is %s at %v, written and read it is %s", value, a.State(now), now, again.State(now))
			}
		}
		if a.Env != again.Env || a.Service != again.Service || a.Reserved != again.Reserved {
			t.Fatalf("%q was written as %q", value, out)
		}
	})
}

func TestKeys(t *testing.T) {
	for _, proto := range []router.Proto{router.TCP, router.UDP} {
		p, port, err := portpool.ParseKey(portpool.Key(proto, 20022))
		if err != nil || p != proto || port != 20022 {
			t.Errorf("%v: %v %d %v", proto, p, port, err)
		}
	}
	for _, key := range []string{"", "allocations/", "allocations/tcp/", "allocations/tcp/0", "allocations/tcp/65536", "allocations/tcp/022", "ports/tcp/22", "allocations/sctp/1"} {
		if _, _, err := portpool.ParseKey(key); err == nil {
			t.Errorf("%q passes for a key", key)
		}
	}
}
