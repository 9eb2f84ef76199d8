package http

import (
	"net/netip"
	"testing"
)

// TestGuessersAreNetworks has one client guess from many addresses of its network:
// its turns are those of one.
func TestGuessersAreNetworks(t *testing.T) {
	for _, tc := range []struct {
		guessers []string // by turns
		other    string
	}{
		{[]string{"2001:db8::1", "2001:db8::2", "2001:db8::ffff:0:0:1"}, "2001:db8:0:1::1"},
		{[]string{"192.0.2.1", "::ffff:192.0.2.1"}, "192.0.2.2"},
	} {
		p, begun := newPasswords(), map[passwordID]*verifying{}
		guesser := func(i byte) netip.Addr { return netip.MustParseAddr(tc.guessers[int(i)%len(tc.guessers)]) }
		for i := range byte(maxClientVerifying) {
			if begun[passwordID{i}], _ = p.begin(passwordID{i}, guesser(i)); begun[passwordID{i}] == nil {
				t.Fatalf("guess %d has to wait", i)
			}
		}
		if v, _ := p.begin(passwordID{100}, guesser(1)); v != nil {
			t.Errorf("%s has more than its turns", guesser(1))
		}
		if v, _ := p.begin(passwordID{101}, netip.MustParseAddr(tc.other)); v == nil {
			t.Errorf("%s has to wait for others", tc.other)
		}
		for id, v := range begun {
			p.end(id, guesser(id[0]), v)
		}
		if len(p.clients) != 1 {
			t.Errorf("%v is left", p.clients)
		}
	}
}
