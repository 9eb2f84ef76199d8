package fleet_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/remotegpu/sluice/control/fleet"
)

func TestAddressesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses")
	if kept := fleet.KeptAddresses(path); kept != nil {
		t.Errorf("without a file %v are kept", kept)
	}
	for _, want := range [][]netip.Addr{
		{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")}, {netip.MustParseAddr("203.0.113.8")},
	} {
		if err := fleet.KeepAddresses(path, want); err != nil {
			t.Fatal(err)
		}
		if kept := fleet.KeptAddresses(path); !slices.Equal(kept, want) {
			t.Errorf("kept %v, want %v", kept, want)
		}
	}
	for _, text := range []string{"", "203.0.113.7\n2001:db8::zz\n", "10.0.0.1\n", "fe80::1%eth0\n", "127.0.0.1"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if kept := fleet.KeptAddresses(path); kept != nil {
			t.Errorf("of a file with %q %v are kept, want none", text, kept)
		}
	}
	if err := fleet.KeepAddresses(filepath.Join(path, "addresses"), nil); err == nil {
		t.Error("addresses are kept below a file")
	}
}

// The first record of a new process replaces the old one's: a node that serves must
// not lose its addresses by that.
func TestToldNodeIsReadyOnceItHasAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := netip.MustParseAddr("203.0.113.7")
		for _, kept := range [][]netip.Addr{{known}, nil} {
			cfg := config(kept...)
			cfg.Told = true
			s := new(shelf)
			r, err := fleet.New(cfg, s)
			if err != nil {
				t.Fatal(err)
			}
			r.SetState(fleet.Ready) // as after an upgrade, before anything is written
			stop := start(t, r)
			want := fleet.Ready
			if kept == nil {
				want = fleet.Joining
			}
			if n, records := s.last(t); n.State != want || !slices.Equal(n.Addresses, kept) || records != 1 {
				t.Errorf("with %v known it is %s at %v first (%d records), want %s", kept, n.State, n.Addresses, records, want)
			}
			r.SetAddresses([]netip.Addr{known})
			synctest.Wait()
			if n, _ := s.last(t); n.State != fleet.Ready || !slices.Equal(n.Addresses, []netip.Addr{known}) {
				t.Errorf("told its address it is %s at %v, want ready", n.State, n.Addresses)
			}
			stop()
		}
	})
}
