package listen_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/remotegpu/sluice/proxy/listen"
)

// TestReceivers wants the kernel's two ways of listing sockets to know ours,
// and no socket that is connected.
func TestReceivers(t *testing.T) {
	want := map[string][]netip.AddrPort{}
	not := map[string]netip.AddrPort{}
	for _, host := range append(loopbacks(t), "") {
		ln, err := listen.TCP(t.Context(), host+":0")
		if host == "::1" {
			ln, err = listen.TCP(t.Context(), "[::1]:0")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		want["tcp"] = append(want["tcp"], addrOf(ln.Addr()))
	}
	pc, err := listen.UDP(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	want["udp"] = append(want["udp"], addrOf(pc.LocalAddr()))
	for network, to := range map[string]netip.AddrPort{"tcp": want["tcp"][0], "udp": netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), want["udp"][0].Port())} {
		c := dial(t, network, to)
		defer c.Close()
		not[network] = addrOf(c.LocalAddr())
	}
	for name, list := range map[string]func(string) ([]listen.Socket, error){"asked": listen.Receivers, "listed": listen.Listed} {
		for network := range want {
			all, err := list(network)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want[network] {
				if !slices.ContainsFunc(all, func(s listen.Socket) bool { return s.Local == w && s.Inode != 0 }) {
					t.Errorf("%s: no %s socket at %v among %v", name, network, w, all)
				}
			}
			if slices.ContainsFunc(all, func(s listen.Socket) bool { return s.Local == not[network] }) {
				t.Errorf("%s: the %s client at %v is there", name, network, not[network])
			}
		}
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, 88))
	f.Add([]byte{88, 0, 0, 0, 20, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if found, _, err := listen.ParseDiag(b); err == nil && len(found) > len(b)/16 {
			t.Errorf("%d sockets in %d bytes", len(found), len(b))
		}
	})
}
