package certs_test

import (
	"crypto/tls"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// many is how many names a large cluster may have.
const many = 10_000

// memory is a store under a name of its own.
type memory = certs.Store

// shelf is a store with many certificates on it, at hand by name.
type shelf struct {
	memory
	stored map[string][]*certs.Stored
}

func (s *shelf) Stored(name string) []*certs.Stored { return slices.Clone(s.stored[name]) }
func (s *shelf) Served(name string) []*certs.Stored { return s.Stored(name) }
func (s *shelf) StoredNames() []string              { return slices.Collect(maps.Keys(s.stored)) }
func (s *shelf) StoredTrouble(name string) error    { return nil }

// manyStored returns a shelf with n certificates, every tenth of them a wildcard,
// and their names.
func manyStored(t testing.TB, n int) (*shelf, []certs.Domain) {
	t.Helper()
	store := &shelf{certstest.NewStore(), map[string][]*certs.Stored{}}
	wanted := make([]certs.Domain, n)
	for i := range wanted {
		name := fmt.Sprintf("n%d.x.test", i)
		if i%10 == 0 {
			name = fmt.Sprintf("*.w%d.x.test", i)
		}
		wanted[i].Name = name
		chain, key := newPair(t, 90*24*time.Hour, name)
		s, err := certs.ParseStored("ca", name, chain, key, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		store.stored[name] = []*certs.Stored{s}
	}
	return store, wanted
}

func manyConfig(t testing.TB, store *shelf) certs.Config {
	return certs.Config{Store: store, Providers: providers(t, map[string]dns.Config{"main": {
		Provider: "rfc2136", Settings: dns.Settings{"server": "127.0.0.1:1", "key_name": "k", "key": "c2VjcmV0"},
	}})}
}

// Nor does it wait for anybody: the lookups go on while all locks are held, which
// one that took any of them would never return from.
func TestGetCertificateOfManyDoesNotAllocate(t *testing.T) {
	store, wanted := manyStored(t, many)
	m, err := certs.New(manyConfig(t, store))
	if err != nil {
		t.Fatal(err)
	}
	// What nobody wants is served as well, by another way.
	for _, listed := range [][]certs.Domain{nil, wanted} {
		m.SetDomains(listed)
		for _, name := range []string{"n1.x.test", "n9999.x.test", "any.w5000.x.test"} {
			h := hello(name)
			var n float64
			var failed error
			m.HoldLocks(func() {
				n = testing.AllocsPerRun(1000, func() {
					if _, err := m.GetCertificate(h); err != nil {
						failed = err
					}
				})
			})
			if failed != nil {
				t.Fatal(failed)
			}
			if n != 0 {
				t.Errorf("%s of %d listed: %v allocations for a lookup, want 0", name, len(listed), n)
			}
		}
	}
	for _, d := range wanted {
		cert, err := m.GetCertificate(hello(strings.Replace(d.Name, "*.", "any.", 1)))
		if err != nil || cert.Leaf.DNSNames[0] != d.Name {
			t.Fatalf("%s: %v", d.Name, err)
		}
	}
}

// Handshakes look their certificate up on all processors at once.
func BenchmarkGetCertificate(b *testing.B) {
	for _, n := range []int{10, many} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, wanted := manyStored(b, n)
			m, err := certs.New(manyConfig(b, store))
			if err != nil {
				b.Fatal(err)
			}
			m.SetDomains(wanted)
			hellos := make([]*tls.ClientHelloInfo, n)
			for i := range hellos {
				hellos[i] = hello(strings.Replace(wanted[i].Name, "*.", "any.", 1))
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, err := m.GetCertificate(hellos[i%n]); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// What a node does with the certificates on its shelf as it starts; reading and
// parsing them is the shelf's.
func BenchmarkStart(b *testing.B) {
	store, wanted := manyStored(b, many)
	var before, after runtime.MemStats
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		m, err := certs.New(manyConfig(b, store))
		if err != nil {
			b.Fatal(err)
		}
		m.SetDomains(wanted)
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if _, err := m.GetCertificate(hello("n1.x.test")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/many, "B/name")
}

// A renewal among many names costs what one among few does.
func BenchmarkRenewed(b *testing.B) {
	store, wanted := manyStored(b, many)
	m, err := certs.New(manyConfig(b, store))
	if err != nil {
		b.Fatal(err)
	}
	m.SetDomains(wanted)
	b.ReportAllocs()
	for b.Loop() {
		m.TakeStored([]string{"n1.x.test"})
	}
}
