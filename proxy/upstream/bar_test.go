package upstream_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Names that environments have for backends lead to no address that is barred, in
// whatever form they come. What stands there as an address is let through, and so is
// all that is no environment's.
func TestBarredAddresses(t *testing.T) {
	bar := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("169.254.0.0/16")}
	d := upstream.NewDialer(upstream.Config{Bar: bar})
	d.SetLookup(names(map[string][]string{
		"bad.x.test":  {"127.0.0.1", "::1", "::ffff:127.0.0.2", "64:ff9b::7f00:1", "0.0.0.0", "::", "169.254.169.254"},
		"both.x.test": {"127.0.0.1", "10.0.0.1"}, "good.x.test": {"10.0.0.1", "fd00::1"}, "localhost": {"127.0.0.1"}, "localhost.": {"127.0.0.1"},
	}))
	for _, tc := range []struct {
		backend string
		want    []string // where an environment's leads
	}{
		{backend: "bad.x.test:22"},
		{backend: "both.x.test:22", want: []string{"10.0.0.1:22"}},
		{backend: "good.x.test:22", want: []string{"10.0.0.1:22", "[fd00::1]:22"}},
		{backend: "127.0.0.1:22", want: []string{"127.0.0.1:22"}},
		{backend: "[::1]:22", want: []string{"[::1]:22"}},
		{backend: "localhost:22", want: []string{"127.0.0.1:22"}},
		{backend: "LocalHost.:22", want: []string{"127.0.0.1:22"}},
	} {
		for _, udp := range []bool{false, true} {
			proto, begin := router.TCP, d.Attempt
			if udp {
				proto, begin = router.UDP, d.AttemptUDP
			}
			m, err := router.ParseMapping(proto, 20000, fmt.Appendf(nil, `{"backend":%q,"env":"a"}`, tc.backend))
			if err != nil {
				t.Fatal(err)
			}
			a, err := begin(m.Backend, nil, netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			if got := readyAt(t, &a); !slices.Equal(got, tc.want) {
				t.Errorf("%v %s of an environment leads to %v, want %v; %v", proto, tc.backend, got, tc.want, a.Err())
			}
			b, err := begin(backend(t, fmt.Sprintf("%q", tc.backend)), nil, netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			if got := readyAt(t, &b); len(got) == 0 {
				t.Errorf("%v %s of nobody leads nowhere: %v", proto, tc.backend, b.Err())
			}
		}
	}
}

// readyAt returns the addresses that a comes to.
func readyAt(t *testing.T, a *upstream.Attempt) (all []string) {
	t.Helper()
	defer a.Done()
	for {
		switch addr, _, state := a.Next(); state {
		case upstream.Ready:
			all = append(all, addr.String())
		case upstream.Unresolved:
			if err := a.Resolve(t.Context()); err != nil {
				t.Fatal(err)
			}
		default:
			return all
		}
	}
}
