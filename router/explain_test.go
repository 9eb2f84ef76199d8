package router_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func tableFrom(t *testing.T, routes map[string]string) *router.Table {
	t.Helper()
	var b router.Builder
	for name, value := range routes {
		r, err := router.ParseRoute(name, []byte(value))
		if err != nil {
			t.Fatalf("route %s: %v", name, err)
		}
		b.SetRoute(r)
	}
	return b.Table(1)
}

func TestExplain(t *testing.T) {
	table := tableFrom(t, map[string]string{
		"exact":  `{"host": "a.x-gpu.com", "path": "/api", "backend": "10.0.0.1:80"}`,
		"post":   `{"host": "a.x-gpu.com", "methods": ["POST"], "backend": "10.0.0.1:80"}`,
		"canary": `{"host": "*.x-gpu.com", "headers": {"X-Canary": "1"}, "backend": "10.0.0.1:80"}`,
		"wild":   `{"host": "*.x-gpu.com", "backend": "10.0.0.1:80"}`,
		"clear":  `{"host": "*.x-gpu.com", "ports": "80", "backend": "10.0.0.1:80"}`,
		"regex":  `{"host": "~^(?<id>[a-z]+)\\.x-gpu\\.com$", "backend": "10.0.0.1:80"}`,
		"any":    `{"host": "*", "backend": "10.0.0.1:80"}`,
		"other":  `{"host": "b.x-gpu.com", "backend": "10.0.0.1:80"}`,
		"raw":    `{"host": "*.x-gpu.com", "tls": "passthrough", "ports": "8443", "backend": "10.0.0.1:443"}`,
	})
	var got []string
	for _, c := range table.Explain(&router.Request{Host: "a.x-gpu.com", Port: 443, Method: "GET", Path: "/", Header: http.Header{}}) {
		got = append(got, strings.TrimSpace(c.Route.Name+" "+c.Host.String()+" "+c.Why))
		if id := c.Captures.Get("id"); (id == "a") != (c.Route.Name == "regex") {
			t.Errorf("%s captures %q", c.Route.Name, id)
		}
	}
	want := []string{
		"exact a.x-gpu.com path: / does not begin with /api",
		"post a.x-gpu.com methods: GET is not among POST",
		"raw *.x-gpu.com it takes whole TLS connections, and another route was chosen for this one, or none",
		"canary *.x-gpu.com headers: the request has not those of X-Canary: 1",
		"clear *.x-gpu.com ports: 80 does not hold port 443",
		"wild *.x-gpu.com",
		`regex ~^(?<id>[a-z]+)\.x-gpu\.com$ wild comes before it`,
		"any * wild comes before it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("explained\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An explanation names the winner of Match, and nobody before it could have won.
func TestExplainAgreesWithMatch(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := chooser{rand.New(rand.NewPCG(seed, 2))}
	for range 200 {
		var b router.Builder
		for i := range 40 {
			b.SetRoute(c.route(t, fmt.Sprintf("r%d", i)))
		}
		table := b.Table(1)
		for range 20 {
			req := &router.Request{Host: c.host(), Port: 443, Method: "GET", Path: c.of("/", "/a", "/a/b"), Header: http.Header{}}
			winner, _ := table.Match(req)
			found := 0
			for _, candidate := range table.Explain(req) {
				switch {
				case candidate.Why == "":
					if candidate.Route != winner {
						t.Fatalf("%s: explained %s as the winner, Match returns %v", req.Host, candidate.Route.Name, winner)
					}
					found++
				case winner != nil && found == 0 && strings.HasSuffix(candidate.Why, " comes before it"):
					t.Fatalf("%s: %s was tried before %s", req.Host, candidate.Route.Name, winner.Name)
				}
			}
			if winner != nil && found != 1 {
				t.Fatalf("%s: the winner %s was explained %d times", req.Host, winner.Name, found)
			}
		}
	}
}
