package portpool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// model does what a Book does by looking at everything each time.
type model struct {
	pools  map[string]*portpool.Pool
	allocs map[port]*portpool.Allocation
	mapped map[port]bool
}

type port struct {
	proto router.Proto
	n     int
}

// free reports whether r may have every one of ports.
func (m *model) free(p *portpool.Pool, r portpool.Request, ports router.PortRange, now time.Time) bool {
	for n := ports.First; n <= ports.Last; n++ {
		for _, proto := range p.Protos() {
			at := port{proto, n}
			a := m.allocs[at]
			own := a != nil && !a.Released.IsZero() && a.Env == r.Env && a.Service == r.Service
			if m.mapped[at] || a != nil && a.State(now) != portpool.Available && !own {
				return false
			}
		}
	}
	return true
}

// had reports whether r's environment had every one of ports last.
func (m *model) had(p *portpool.Pool, r portpool.Request, ports router.PortRange) bool {
	for n := ports.First; n <= ports.Last; n++ {
		for _, proto := range p.Protos() {
			if a := m.allocs[port{proto, n}]; a == nil || a.Released.IsZero() || a.Env != r.Env || a.Service != r.Service {
				return false
			}
		}
	}
	return true
}

// all returns ports one by one.
func all(ports router.Ports) (ns []int) {
	for _, r := range ports {
		for n := r.First; n <= r.Last; n++ {
			ns = append(ns, n)
		}
	}
	return ns
}

// choices returns the ports with which an answer may begin.
func (m *model) choices(r portpool.Request, now time.Time) []int {
	p := m.pools[r.Service]
	var free, own []int
	for _, n := range all(p.Ports) {
		ports := router.PortRange{First: n, Last: n + max(r.Span, 1) - 1}
		inside, reserved := true, false
		for i := ports.First; i <= ports.Last; i++ {
			inside = inside && p.Ports.Contains(i)
			reserved = reserved || p.Reserved.Contains(i)
		}
		if !inside || r.Port != 0 && r.Port != n || !m.free(p, r, ports, now) {
			continue
		}
		if r.Port != 0 {
			return []int{n}
		}
		if !reserved && m.had(p, r, ports) {
			own = append(own, n)
		}
		// Whoever does not ask for a reserved port does not get it, and what rests from one's own use is not picked anew.
		if !reserved && m.free(p, portpool.Request{}, ports, now) {
			free = append(free, n)
		}
	}
	switch {
	case len(own) > 0:
		return own[:1]
	case p.Pick == "random" || len(free) == 0:
		return free
	}
	return free[:1]
}

// TestBookLikeModel makes random changes to a Book and to a model of it, and
// wants them to choose alike after each.
func TestBookLikeModel(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); compareWithModel(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func compareWithModel(t *testing.T, rng *rand.Rand) {
	b := portpool.NewBook()
	m := &model{pools: map[string]*portpool.Pool{}, allocs: map[port]*portpool.Allocation{}, mapped: map[port]bool{}}
	now := start
	rev := int64(0)
	values := []string{
		`{"ports":"60-70","backend_port":22}`, `{"ports":"60-63,64-66,127-130","backend_port":22,"reserved":"64,129"}`,
		`{"ports":"62-129","backend_port":22,"pick":"random","reserved":"100-120"}`, `{"ports":"65530-65535","backend_port":22,"protocol":"tcp+udp"}`,
		`{"ports":"60-64,66-68","backend_port":22,"protocol":"udp"}`,
	}
	for step := range 800 {
		rev++
		m.compareOutside(t, b)
		service := []string{"ssh", "rdp"}[rng.IntN(2)]
		at := port{router.Proto(rng.IntN(2)), []int{60 + rng.IntN(12), 127 + rng.IntN(4), 65530 + rng.IntN(6)}[rng.IntN(3)]}
		switch what := rng.IntN(10); {
		case m.pools[service] == nil || what == 0:
			m.pools[service] = pool(t, service, values[rng.IntN(len(values))])
			b.SetPool(m.pools[service])
		case what == 1:
			m.mapped[at] = rng.IntN(3) == 0
			b.SetMapped(at.proto, at.n, m.mapped[at])
		case what == 2:
			now = now.Add(time.Duration(rng.IntN(40)-8) * time.Second) // clocks are set back, too
		case what == 3:
			m.allocs[at] = &portpool.Allocation{Reserved: "x", Since: now}
			b.Set(at.proto, at.n, m.allocs[at], rev)
		case what <= 5:
			if a := m.allocs[at]; a != nil && a.Reserved == "" && a.Released.IsZero() {
				m.allocs[at] = a.Release(now, time.Duration(rng.IntN(60))*time.Second)
			} else {
				delete(m.allocs, at)
			}
			b.Set(at.proto, at.n, m.allocs[at], rev)
		default:
			r := portpool.Request{Env: string('a' + rune(rng.IntN(4))), Service: service, Span: rng.IntN(4)}
			if rng.IntN(4) == 0 {
				r.Port = at.n
			}
			want := m.choices(r, now)
			g, err := b.Choose(r, now, rng.IntN)
			if err != nil {
				if len(want) > 0 {
					t.Fatalf("step %d: %+v: %v; the model has %v", step, r, err, want)
				}
				checkStats(t, m, service, now, err)
				continue
			}
			if !slices.Contains(want, g.Ports.First) || g.Ports.Size() != max(r.Span, 1) {
				t.Fatalf("step %d: %+v: %v; the model has %v", step, r, g.Ports, want)
			}
			for _, c := range g.Claims {
				a := &portpool.Allocation{Env: r.Env, Service: service, Since: now}
				m.allocs[port{c.Proto, c.Port}] = a
				b.Set(c.Proto, c.Port, a, rev)
			}
		}
	}
}

// compareOutside compares what is held outside of pools with a count.
func (m *model) compareOutside(t *testing.T, b *portpool.Book) {
	t.Helper()
	want := map[string][]int{}
	for at, a := range m.allocs {
		if p := m.pools[a.Service]; p != nil && a.Released.IsZero() && a.Reserved == "" && !p.Ports.Contains(at.n) && !slices.Contains(want[a.Service], at.n) {
			want[a.Service] = append(want[a.Service], at.n)
		}
	}
	for service := range want {
		slices.Sort(want[service])
	}
	if got := b.Outside(); !reflect.DeepEqual(got, want) {
		t.Fatalf("outside of pools are %v, by counting %v", got, want)
	}
	for service, p := range m.pools {
		if got := b.Stranded(p); !slices.Equal(got, want[service]) {
			t.Fatalf("stranded of %s: %v, by counting %v", service, got, want[service])
		}
	}
}

// checkStats compares the numbers of an exhausted pool with a count.
func checkStats(t *testing.T, m *model, service string, now time.Time, err error) {
	t.Helper()
	var exhausted *portpool.ExhaustedError
	if !errors.As(err, &exhausted) {
		return // a port that was asked for
	}
	p := m.pools[service]
	var want portpool.Stats
	for _, n := range all(p.Ports) {
		want.Size++
		state := portpool.Available
		for _, proto := range p.Protos() {
			at := port{proto, n}
			s := portpool.Available
			if m.mapped[at] {
				s = portpool.Mapped
			}
			if a := m.allocs[at]; a != nil && a.State(now) != portpool.Available {
				s = a.State(now)
			}
			if s == portpool.Available && p.Reserved.Contains(n) {
				s = portpool.Reserved
			}
			if state == portpool.Available {
				state = s
			}
		}
		*map[portpool.State]*int{
			portpool.Available: &want.Available, portpool.Allocated: &want.Held, portpool.Reserved: &want.Reserved,
			portpool.Quarantined: &want.Quarantined, portpool.Mapped: &want.Mapped,
		}[state]++
	}
	if exhausted.Stats != want {
		t.Fatalf("stats of %s %+v, by counting %+v", service, exhausted.Stats, want)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, held := range []int{0, 9000, 39000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			book := portpool.NewBook()
			p, err := portpool.Parse("ssh", []byte(`{"ports":"20000-59999","backend_port":22}`))
			if err != nil {
				b.Fatal(err)
			}
			book.SetPool(p)
			for i := range held {
				book.Set(router.TCP, 20000+i, &portpool.Allocation{Env: fmt.Sprint(i), Service: "ssh", Since: start}, int64(i+1))
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := book.Choose(portpool.Request{Env: "x", Service: "ssh"}, start, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
