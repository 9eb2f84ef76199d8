package router_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

// scan is Match by the letter of its documentation: it tries every pattern of
// every route with package regexp, and takes the first in order.
func scan(routes map[string]*router.Route, req *router.Request) (*router.Route, map[string]string) {
	type match struct {
		route    *router.Route
		kind     int
		length   int    // of a wildcard
		priority int    // of an expression
		name     string // as above
		source   string
		captures map[string]string
	}
	var all []match
	for _, r := range routes {
		if !holds(r, req) {
			continue
		}
		for _, h := range r.Hosts {
			p, m := h.String(), match{route: r, source: h.String()}
			switch {
			case p == "*":
				m.kind = 3
			case p[0] == '~':
				re := regexp.MustCompile(p[1:])
				values := re.FindStringSubmatch(req.Host)
				if values == nil {
					continue
				}
				m.kind, m.captures = 2, map[string]string{}
				for i, name := range re.SubexpNames() {
					if name != "" {
						m.captures[name] = values[i]
					}
				}
				m.priority, m.name = rank(routes, p)
			case p[0] == '*':
				if !strings.HasSuffix(req.Host, p[1:]) {
					continue
				}
				m.kind, m.length = 1, len(p)
			case p != req.Host:
				continue
			}
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	best := slices.MinFunc(all, func(a, b match) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.length, a.length),
			cmp.Compare(b.priority, a.priority), cmp.Compare(a.name, b.name), cmp.Compare(a.source, b.source),
			cmp.Compare(len(b.route.Path), len(a.route.Path)), cmp.Compare(b.route.Priority, a.route.Priority),
			cmp.Compare(conditions(b.route), conditions(a.route)), cmp.Compare(a.route.Name, b.route.Name))
	})
	return best.route, best.captures
}

// rank returns the highest priority among the routes with an expression, and the
// first name among those that have it.
func rank(routes map[string]*router.Route, source string) (priority int, name string) {
	found := false
	for _, r := range routes {
		for _, h := range r.Hosts {
			if h.String() == source && (!found || r.Priority > priority || r.Priority == priority && r.Name < name) {
				priority, name, found = r.Priority, r.Name, true
			}
		}
	}
	return priority, name
}

func conditions(r *router.Route) int { return len(r.Headers) + min(1, len(r.Methods)) }

func holds(r *router.Route, req *router.Request) bool {
	path := strings.TrimSuffix(r.Path, "/")
	return r.Ports.Contains(req.Port) && (len(r.Methods) == 0 || slices.Contains(r.Methods, req.Method)) &&
		(r.Path == "" || r.Path == "/" || strings.HasPrefix(req.Path, path+"/") || req.Path == r.Path)
}

// chooser draws what tables are made of from few names, so that much collides.
type chooser struct{ *rand.Rand }

func (c chooser) of(from ...string) string { return from[c.IntN(len(from))] }

func (c chooser) word() string {
	return c.of("a", "b", "ab", "env", "s1", "s12", "x-gpu", "gpu", "1", "aa")
}

func (c chooser) host() string {
	var b strings.Builder
	for range 1 + c.IntN(3) {
		b.WriteString(c.word() + c.of("", "-", "--", ".") + c.word())
		b.WriteString(".")
	}
	return b.String() + c.of("test", "a.test", "gpu.test")
}

func (c chooser) pattern() string {
	switch c.IntN(12) {
	case 0:
		return "*"
	case 1, 2:
		return "*." + c.of("test", "a.test", "gpu.test", "b.a.test", "ab.gpu.test")
	case 3, 4:
		return c.host()
	}
	var b strings.Builder
	groups := 0
	b.WriteString("~" + c.of("^", "^", "^", "", "(?i)^", "(?:^|-)"))
	for range 1 + c.IntN(4) {
		b.WriteString(c.piece(&groups, 2))
	}
	b.WriteString(c.of(`\.test$`, `\.gpu\.test$`, `$`, ``, `test$|^b$`))
	return b.String()
}

// piece writes a part of an expression.
func (c chooser) piece(groups *int, depth int) string {
	if depth == 0 {
		return c.of(c.word(), `\.`, "-", `[a-z0-9]+`, `[^.]+`, `[ab]`, `.*`, `[0-9]`, `\b`, ".")
	}
	switch c.IntN(7) {
	case 0:
		*groups++
		name := fmt.Sprintf("g%d", *groups)
		return "(?<" + name + ">" + c.piece(groups, depth-1) + ")"
	case 1:
		return "(?:" + c.piece(groups, depth-1) + "|" + c.piece(groups, depth-1) + ")"
	case 2:
		return "(?:" + c.piece(groups, depth-1) + ")" + c.of("*", "+", "?", "{1,2}", "{2}", "+?", "??")
	}
	return c.piece(groups, 0)
}

func (c chooser) route(t testing.TB, name string) *router.Route {
	hosts := []string{fmt.Sprintf("%q", c.pattern())}
	for c.IntN(3) == 0 {
		hosts = append(hosts, fmt.Sprintf("%q", c.pattern()))
	}
	return mustRoute(t, name, fmt.Sprintf(`{"host":[%s],"path":%q,"priority":%d,"methods":[%s],"ports":%q,"respond":{}}`,
		strings.Join(hosts, ","), c.of("", "", "/", "/a", "/a/b", "/a/", "/ab"), c.IntN(3)-1,
		c.of("", "", `"GET"`, `"POST","GET"`), c.of("443", "443", "443,8443", "8443")))
}

// TestMatchAgainstScan edits tables at random and compares what they match with
// a plain scan.
func TestMatchAgainstScan(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range uint64(30) {
		matchAgainstScan(t, chooser{rand.New(rand.NewPCG(seed, round))}, []int{5, 30, 150}[round%3])
	}
}

func FuzzMatchAgainstScan(f *testing.F) {
	f.Add(uint64(1), uint64(2), 20)
	f.Fuzz(func(t *testing.T, seed, stream uint64, size int) {
		matchAgainstScan(t, chooser{rand.New(rand.NewPCG(seed, stream))}, 1+(size&0xff))
	})
}

func matchAgainstScan(t *testing.T, c chooser, size int) {
	var b router.Builder
	routes := map[string]*router.Route{}
	for range 3 {
		for range size {
			name := fmt.Sprintf("r%d", c.IntN(size))
			if c.IntN(3) == 0 {
				b.DeleteRoute(name)
				delete(routes, name)
				continue
			}
			r := c.route(t, name)
			b.SetRoute(r)
			routes[name] = r
		}
		table := b.Table(1)
		for range 20 {
			req := &router.Request{Host: c.host(), Port: 443, Method: c.of("GET", "PUT"), Path: c.of("/", "/a", "/a/b", "/a/b/c", "/abc", "/x/a")}
			want, captures := scan(routes, req)
			got, gotCaptures := table.Match(req)
			if got != want {
				t.Fatalf("%+v: %s, want %s\n%v\n%v", req, routeName(got), routeName(want), got, want)
			}
			n := 0
			gotCaptures.Each(func(name, value string) {
				if n++; value != captures[name] {
					t.Fatalf("%+v: %s: %s is %q, want %q", req, routeName(got), name, value, captures[name])
				}
			})
			if n != len(captures) {
				t.Fatalf("%+v: %s: %d captures, want %v", req, routeName(got), n, captures)
			}
		}
	}
	for name := range routes {
		b.DeleteRoute(name)
	}
	if r, _ := b.Table(2).Match(&router.Request{Host: c.host(), Port: 443, Path: "/"}); r != nil {
		t.Fatalf("an empty table matched %s", r.Name)
	}
}
