package upstream_test

import (
	"fmt"
	"maps"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// threeAddresses is a Dialer to which web.x.test has three addresses by IPv4 and
// one by IPv6.
func threeAddresses(t *testing.T) *upstream.Dialer {
	t.Helper()
	d := upstream.NewDialer(upstream.Config{CookieKey: []byte("0123456789abcdef0123456789abcdef")})
	t.Cleanup(d.Close)
	d.SetLookup(names(map[string][]string{"web.x.test": {"10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"}}))
	if _, err := d.Resolve(t.Context(), upstream.Endpoint{Host: "web.x.test", Port: 80}); err != nil {
		t.Fatal(err)
	}
	return d
}

// firstAddress begins a flow and returns where it is sent first.
func firstAddress(t *testing.T, d *upstream.Dialer, b *router.Backend, by upstream.Asker) (string, *upstream.Attempt) {
	t.Helper()
	a, err := d.AttemptFor(b, nil, by)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, state := a.Next()
	if state != upstream.Ready {
		t.Fatalf("state %v", state)
	}
	return addr.Addr().String(), &a
}

func TestAddressesTakeTurns(t *testing.T) {
	d := threeAddresses(t)
	b := backend(t, `"web.x.test:80"`)
	begin := func(flows int) map[string]int {
		got := map[string]int{}
		for range flows {
			addr, a := firstAddress(t, d, b, upstream.Asker{})
			got[addr]++
			a.Done()
		}
		return got
	}
	if got := begin(30); !maps.Equal(got, map[string]int{"10.0.0.1": 10, "10.0.0.2": 10, "10.0.0.3": 10}) {
		t.Errorf("30 flows began at %v", got)
	}
	// The others share what one that failed had; nobody has it all.
	fail := func(want string) {
		for {
			addr, a := firstAddress(t, d, b, upstream.Asker{})
			if addr == want {
				a.Failed(time.Millisecond, syscall.ECONNREFUSED)
				a.Done()
				return
			}
			a.Done()
		}
	}
	fail("10.0.0.2")
	if got := begin(30); !maps.Equal(got, map[string]int{"10.0.0.1": 15, "10.0.0.3": 15}) {
		t.Errorf("one has failed, and 30 flows began at %v", got)
	}
	fail("10.0.0.1")
	fail("10.0.0.3")
	if got := begin(6); !maps.Equal(got, map[string]int{"2001:db8::1": 6}) {
		t.Errorf("all of the first family have failed, and 6 flows began at %v", got)
	}
}

// TestAddressesAreAllTried sees that an attempt that begins anywhere leaves no
// address out.
func TestAddressesAreAllTried(t *testing.T) {
	d := threeAddresses(t)
	b := backend(t, `"web.x.test:80"`)
	for range 3 {
		a, err := d.Attempt(b, nil, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.AddrPort]bool{}
		for {
			addr, _, state := a.Next()
			if state == upstream.Exhausted {
				break
			}
			seen[addr] = true
		}
		if len(seen) != 4 {
			t.Errorf("tried %v, want four addresses", seen)
		}
		a.Done()
	}
}

func TestAddressesByClient(t *testing.T) {
	d := threeAddresses(t)
	b := backend(t, `{"targets":["web.x.test:80"],"balance":"source_hash"}`)
	used := map[string]int{}
	for i := range 60 {
		by := upstream.Asker{Client: clientAddr(i)}
		first, a := firstAddress(t, d, b, by)
		a.Done()
		used[first]++
		for range 3 {
			again, a := firstAddress(t, d, b, by)
			if a.Done(); again != first {
				t.Fatalf("client %d: at %s, then at %s", i, first, again)
			}
		}
	}
	if len(used) != 3 {
		t.Errorf("60 clients are at %v, want three addresses", used)
	}
}

// TestAddress goes the way of those who keep connections by themselves.
func TestAddress(t *testing.T) {
	d := threeAddresses(t)
	b := httpBackend(t, `{"targets":["web.x.test:80"],"sticky":{"cookie":"at"}}`)
	begin := func(token string) (netip.AddrPort, *upstream.Attempt) {
		_, a := begun(t, d, b, token)
		return a.Address(), a
	}
	addr, a := begin("")
	token := a.Token()
	a.Done()
	for range 9 {
		again, a := begin(token)
		if again != addr || a.Token() != "" {
			t.Fatalf("came back to %v, want %v, with a new token %q", again, addr, a.Token())
		}
		a.Done()
	}
	// Where another address had to do, the client stays there.
	_, a = begin(token)
	other := netip.MustParseAddrPort("10.0.0.3:80")
	if addr == other {
		t.Fatal("the first flow began at the third address")
	}
	a.Used(other)
	moved := a.Token()
	a.Done()
	if again, a := begin(moved); again != other || a.Token() != "" {
		t.Errorf("came back to %v, want %v", again, other)
	}
	for _, bad := range []string{token[:len(token)-1], token + "x", "." + token, token + ".x"} {
		_, a := begin(bad)
		a.Done()
	}
}

func begun(t *testing.T, d *upstream.Dialer, b *router.Backend, token string) (upstream.Endpoint, *upstream.Attempt) {
	t.Helper()
	a, err := d.AttemptFor(b, nil, upstream.Asker{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	ep, ok := a.NextTarget()
	if !ok {
		t.Fatal("no target")
	}
	return ep, &a
}

// TestAddressesAreEjected has the exchanges of one address fail.
func TestAddressesAreEjected(t *testing.T) {
	d := threeAddresses(t)
	b := httpBackend(t, `{"targets":["web.x.test:80"],"eject":{"failures":3}}`)
	bad := netip.MustParseAddrPort("10.0.0.2:80")
	exchange := func() netip.AddrPort {
		_, a := begun(t, d, b, "")
		defer a.Done()
		addr := a.Address()
		a.Judge(addr == bad)
		return addr
	}
	for range 9 {
		exchange()
	}
	got := map[string]int{}
	for range 10 {
		got[fmt.Sprint(exchange().Addr())]++
	}
	if !maps.Equal(got, map[string]int{"10.0.0.1": 5, "10.0.0.3": 5}) {
		t.Errorf("exchanges went to %v", got)
	}
}
