package portpool

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

// Which environment answers at a name can be told from the name, or cannot.
func TestHoldersAt(t *testing.T) {
	any := Holders{Any: true}
	one := func(env string) Holders { return Holders{First: env, Last: env} }
	for _, tc := range []struct {
		host, path string // of the pool
		at, below  string
		want       Holders
	}{
		{"${env}.x.com", "", "abc.x.com", "", one("abc")},
		{"${env}.X.com", "", "ABC.x.com", "", one("abc")},
		{"${env}.x.com", "/a", "abc.x.com", "/b", one("abc")},
		{"${env}.x.com", "", "a.b.x.com", "", Holders{}},
		{"${inner}--${env}.x.com", "", "9000--abc.x.com", "", one("abc")},
		{"${inner}--${env}.x.com", "", "--abc.x.com", "", Holders{}},
		{"${inner}--${env}.x.com", "", "8000--8000--abc.x.com", "", one("8000--abc")},
		{"${env}-${inner}.${service}.x.com", "", "abc-1.web.x.com", "", one("abc")},
		{"${env}-${inner}.${service}.x.com", "", "abc-1.ssh.x.com", "", Holders{}},
		{"${env}-${inner}.x.com", "", "a-1-2.x.com", "", one("a-1")},
		{"${env}-${port}.x.com", "", "a-1-2.x.com", "", one("a-1")},
		{"${env}p${port}.x.com", "", "ap1p2.x.com", "", any},
		{"${env}${port}.x.com", "", "a12.x.com", "", any},
		{"${env}-${username}.x.com", "", "a-b-c.x.com", "", any},
		{"${env}-${env}.x.com", "", "a-a.x.com", "", any},
		{"${host}", "/${env}", "a.web.x.com", "", one("a")},
		{"apps.x.com", "/${env}", "apps.x.com", "/abc", one("abc")},
		{"apps.x.com", "/${env}", "apps.x.com", "/", Holders{}},
		{"apps.x.com", "/${env}", "apps.x.com", "", any},
		{"apps.x.com", "/${env}", "www.x.com", "/abc", Holders{}},
	} {
		p := &Pool{Service: "web", Access: Access{Host: "${env}.${service}.x.com"}, Route: Route{Host: tc.host, Path: tc.path}}
		if got := p.HoldersAt(tc.at, tc.below); got != tc.want {
			t.Errorf("%s%s at %s%s: %+v, want %+v", tc.host, tc.path, tc.at, tc.below, got, tc.want)
		}
	}
}

// pick returns one of all.
func pick[T any](rng *rand.Rand, all ...T) T { return all[rng.IntN(len(all))] }

// randomHost returns a text of a pool, with the port that clients name or without.
func randomHost(rng *rand.Rand, inner bool) string {
	parts := []string{"${env}"}
	if rng.IntN(3) == 0 {
		parts = append(parts, pick(rng, "${port}", "${username}", "${env}", "${service}", "1", "a"))
	}
	if inner {
		parts = append(parts, "${inner}")
	}
	rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	var host strings.Builder
	host.WriteString(pick(rng, "", "", "", "a-", "1-", "8--"))
	for i, part := range parts {
		if i > 0 {
			host.WriteString(pick(rng, "-", "-", "-", "--", "-1-", ".a-"))
		}
		host.WriteString(part)
	}
	return host.String() + pick(rng, "", "", "", "-a", "-1", "-8-a") + pick(rng, ".x", ".x", ".x", ".x", ".x", ".a.x")
}

func randomValues(rng *rand.Rand) Values {
	return Values{
		"env": pick(rng, "a", "b", "1", "8--a", "a-1", "1-a", "a-1-1", "1-2-a", "8-a"), "service": "a",
		"port": pick(rng, "1", "2", "12"), "username": pick(rng, "a", "1", "a-1", "a.a"), "host": "",
	}
}

// Whatever a pool and an environment are, the name that it gets with that is one of
// its own, and where clients reach it by naming a port as well, each finds the other.
func TestHoldersHoldTheirNames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	has := func(h Holders, env string) bool { return h.Any || h != (Holders{}) && h.First <= env && env <= h.Last }
	type made struct {
		*Pool
		Values
		allowed router.Ports
	}
	var inner []made
	for len(inner) < 500 {
		first := 1 + rng.IntN(20)
		q := made{&Pool{Service: "a", Route: Route{Host: randomHost(rng, true)}}, randomValues(rng), router.Ports{{First: first, Last: first + rng.IntN(200)}}}
		if _, err := q.Route.hostFor(q.Values, q.allowed); err == nil { // else no pool has that
			inner = append(inner, q)
		}
	}
	met := 0
	for range 500 {
		p := made{Pool: &Pool{Service: "a", Route: Route{Host: randomHost(rng, false)}}, Values: randomValues(rng)}
		name, err := p.Expand(p.Route.Host)
		if err != nil {
			t.Fatal(err)
		}
		if h := p.HoldersAt(name, ""); !has(h, p.Values["env"]) {
			t.Fatalf("%s of %v is of %+v", p.Route.Host, p.Values, h)
		}
		for _, q := range inner {
			if !q.Route.Answers(q.Values, q.allowed, name) {
				continue
			}
			met++
			if h := q.HoldersAt(name, ""); !has(h, q.Values["env"]) {
				t.Fatalf("%s of %v, at %s, is of %+v", q.Route.Host, q.Values, name, h)
			}
			if h := p.HoldersAmong(q.Route, q.Values, q.allowed); !has(h, p.Values["env"]) {
				t.Fatalf("%s of %v, with %s of %v and %v both at %s, is of %+v", p.Route.Host, p.Values, q.Route.Host, q.Values, q.allowed, name, h)
			}
		}
	}
	if met < 50 {
		t.Errorf("%d met, which is too few to tell", met)
	}
}

func TestExtremes(t *testing.T) {
	for _, ports := range []router.Ports{
		{{First: 1, Last: 65535}}, {{First: 500, Last: 1200}}, {{First: 8000, Last: 8999}}, {{First: 9, Last: 10}, {First: 99, Last: 99}}, {{First: 20, Last: 30}, {First: 1000, Last: 20000}},
	} {
		var all []string
		for _, r := range ports {
			for port := r.First; port <= r.Last; port++ {
				all = append(all, strconv.Itoa(port))
			}
		}
		got := extremes(ports)
		if slices.Min(got) != slices.Min(all) || slices.Max(got) != slices.Max(all) {
			t.Errorf("%v: %q", ports, got)
		}
		for _, port := range got {
			if !slices.Contains(all, port) {
				t.Errorf("%v: %s", ports, port)
			}
		}
	}
}
