package router_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

type routeShape struct {
	name        string
	route, host func(i int) string
}

// routeShapes are tables of n routes and, of each, the host that route i is for.
var routeShapes = []routeShape{
	{"exact", func(i int) string { return fmt.Sprintf(`{"host":"env-%d.remotegpu.com","respond":{}}`, i) }, envHost},
	{"wildcard", func(i int) string { return fmt.Sprintf(`{"host":"*.s%d.x-gpu.com","respond":{}}`, i) },
		func(i int) string { return fmt.Sprintf("abc.s%d.x-gpu.com", i) }},
	{"regex all literal", func(i int) string { return fmt.Sprintf(`{"host":"~^env-%d\\.remotegpu\\.com$","respond":{}}`, i) }, envHost},
	{"regex own suffix", func(i int) string {
		return fmt.Sprintf(`{"host":"~^(?<id>[a-z0-9]+)-s%d\\.x-gpu\\.com$","respond":{}}`, i)
	}, func(i int) string { return fmt.Sprintf("a1b2c3-s%d.x-gpu.com", i) }},
	{"regex own prefix", func(i int) string {
		return fmt.Sprintf(`{"host":"~^s%d-(?<id>[a-z0-9]+)\\.x-gpu\\.com$","respond":{}}`, i)
	}, func(i int) string { return fmt.Sprintf("s%d-a1b2c3.x-gpu.com", i) }},
	{"regex own middle", func(i int) string {
		return fmt.Sprintf(`{"host":"~^env-(?<id>[a-z0-9]+)-s%d-(?<svc>[a-z]+)\\.x-gpu\\.com$","respond":{}}`, i)
	}, func(i int) string { return fmt.Sprintf("env-a1b2c3-s%d-ssh.x-gpu.com", i) }},
	{"regex of choices", func(i int) string {
		return fmt.Sprintf(`{"host":"~^(?<svc>ssh|jupyter|code)-s%d-(?<id>.+)\\.x-gpu\\.com$","respond":{}}`, i)
	}, func(i int) string { return fmt.Sprintf("jupyter-s%d-a1b2c3.x-gpu.com", i) }},
}

func envHost(i int) string { return fmt.Sprintf("env-%d.remotegpu.com", i) }

// tableOf compiles n routes.
func tableOf(t testing.TB, n int, route func(i int) string) *router.Table {
	var b router.Builder
	for i := range n {
		b.SetRoute(mustRoute(t, fmt.Sprintf("r%d", i), route(i)))
	}
	return b.Table(1)
}

// hostsOf returns n hosts in no order, their bytes side by side: those of a
// request were read just now, and are no part of what finding a route costs.
func hostsOf(n int, host func(i int) string) []string {
	var all strings.Builder
	ends := make([]int, n)
	for at, i := range rand.Perm(n) {
		all.WriteString(host(i))
		ends[at] = all.Len()
	}
	hosts, begin := make([]string, n), 0
	for at, end := range ends {
		hosts[at], begin = all.String()[begin:end], end
	}
	return hosts
}

func requestFor(host string) router.Request {
	return router.Request{Host: host, Port: 443, Method: "GET", Path: "/jupyter/lab"}
}

// TestMatchDoesNotAllocate matches in every shape of table, captures included.
func TestMatchDoesNotAllocate(t *testing.T) {
	for _, shape := range routeShapes {
		table, hosts := tableOf(t, 1000, shape.route), hostsOf(1000, shape.host)
		next := 0
		allocs := testing.AllocsPerRun(1000, func() {
			req := requestFor(hosts[next%len(hosts)])
			next++
			r, captures := table.Match(&req)
			if r == nil {
				t.Fatalf("%s matched nothing", req.Host)
			}
			captures.Get("id")
			table.MatchTLS(req.Host, 443)
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", shape.name, allocs)
		}
	}
}

// BenchmarkMatch asks tables of 10 and of 10,000 routes in turn, since figures
// of different seconds do not compare on a busy machine. "times" is how many
// times the match among 10 that among 10,000 takes, where hosts of ten routes
// are asked for, and in the case of "cold" where those of all are, in no order:
// most of what a match reads is in no cache then. A map of Go shows what that
// alone comes to.
func BenchmarkMatch(b *testing.B) {
	for _, shape := range routeShapes {
		few, many := newAsking(b, 10, shape), newAsking(b, 10_000, shape)
		all := many.hosts
		for name, hosts := range map[string][]string{shape.name: all[:10], shape.name + " cold": all} {
			many.hosts = hosts
			b.Run(name, func(b *testing.B) {
				compareAsking(b, few, many, (*asking).match)
			})
			if shape.name == "exact" {
				b.Run("map of "+name, func(b *testing.B) { compareAsking(b, few, many, (*asking).lookUp) })
			}
		}
	}
}

func compareAsking(b *testing.B, few, many *asking, ask func(*asking, *testing.B)) {
	few.took, few.next, many.took, many.next = nil, 0, nil, 0
	for b.Loop() {
		ask(few, b)
		ask(many, b)
	}
	b.ReportMetric(few.median(), "ns-of-10")
	b.ReportMetric(many.median(), "ns-of-10k")
	b.ReportMetric(many.median()/few.median(), "times")
}

// asking asks a table for its hosts.
type asking struct {
	table *router.Table
	plain map[string]*router.Table
	hosts []string
	next  int
	took  []time.Duration // a batch each
}

func newAsking(b *testing.B, n int, shape routeShape) *asking {
	a := &asking{table: tableOf(b, n, shape.route), plain: map[string]*router.Table{}}
	for _, host := range hostsOf(n, shape.host) {
		a.hosts = append(a.hosts, host)
		a.plain[host] = new(router.Table)
	}
	return a
}

const batch = 200

func (a *asking) match(b *testing.B) {
	begin := time.Now()
	for range batch {
		req := requestFor(a.host())
		if r, _ := a.table.Match(&req); r == nil {
			b.Fatal("no match")
		}
	}
	a.took = append(a.took, time.Since(begin))
}

func (a *asking) lookUp(b *testing.B) {
	begin := time.Now()
	for range batch {
		if a.plain[a.host()].Rev != 0 {
			b.Fatal("another value")
		}
	}
	a.took = append(a.took, time.Since(begin))
}

func (a *asking) host() string {
	host := a.hosts[a.next]
	if a.next++; a.next == len(a.hosts) {
		a.next = 0
	}
	return host
}

// median returns the nanoseconds of one match.
func (a *asking) median() float64 {
	slices.Sort(a.took)
	return float64(a.took[len(a.took)/2].Nanoseconds()) / batch
}

// BenchmarkEditRoute edits one route of a table of n.
func BenchmarkEditRoute(b *testing.B) {
	for _, shape := range routeShapes {
		for _, n := range []int{10, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", shape.name, n), func(b *testing.B) {
				var builder router.Builder
				for i := range n {
					builder.SetRoute(mustRoute(b, fmt.Sprintf("r%d", i), shape.route(i)))
				}
				edits := [2]*router.Route{mustRoute(b, "r5", shape.route(5)), mustRoute(b, "r5", shape.route(5))}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					builder.SetRoute(edits[i&1])
					builder.Table(int64(i))
				}
			})
		}
	}
}
