package router_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestChains(t *testing.T) {
	names := map[string][]netip.Addr{
		"self.x.test":  {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")},
		"other.x.test": {netip.MustParseAddr("10.0.0.1")},
	}
	for _, tc := range []struct {
		name     string
		mappings map[int]string
		loop     []int // of the first port, 1
	}{
		{"nothing of ours", map[int]string{1: "10.0.0.1:1"}, nil},
		{"another program's port", map[int]string{1: "192.0.2.1:2"}, nil},
		{"itself", map[int]string{1: "192.0.2.1:1"}, []int{1, 1}},
		{"itself as IPv6", map[int]string{1: "[::ffff:192.0.2.1]:1"}, []int{1, 1}},
		{"itself by name", map[int]string{1: "self.x.test:1"}, []int{1, 1}},
		{"somebody else by name", map[int]string{1: "other.x.test:1"}, nil},
		{"a name that nobody knows", map[int]string{1: "nowhere.x.test:1"}, nil},
		{"the second target", map[int]string{1: `{"backend":["10.0.0.1:1","192.0.2.1:1"]}`}, []int{1, 1}},
		{"a chain that ends elsewhere", map[int]string{1: "192.0.2.1:2", 2: "192.0.2.1:3", 3: "10.0.0.1:1"}, nil},
		{"a circle of three", map[int]string{1: "192.0.2.1:2", 2: "192.0.2.1:3", 3: "192.0.2.1:1"}, []int{1, 2, 3, 1}},
		{"a circle that it leads into", map[int]string{1: "192.0.2.1:2", 2: "192.0.2.1:3", 3: "192.0.2.1:2"}, nil},
		{"a circle behind a dead end", map[int]string{1: `{"backend":["192.0.2.1:2","192.0.2.1:3"]}`, 2: "192.0.2.1:4", 3: "192.0.2.1:1"}, []int{1, 3, 1}},
		{"through http", map[int]string{1: `{"http":"192.0.2.1:2"}`, 2: `{"http":"self.x.test:1"}`}, []int{1, 2, 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b router.Builder
			for port, value := range tc.mappings {
				b.SetMapping(mustMapping(t, port, value))
			}
			chains := router.Chains{
				Own:     func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") },
				Mapping: b.Mapping,
				Lookup:  func(name string) []netip.Addr { return names[name] },
			}
			loop := chains.Loop(b.Mapping(router.TCP, 1))
			switch {
			case (loop != nil) != (tc.loop != nil), loop != nil && !slices.Equal(loop.Ports, tc.loop):
				t.Errorf("found %v, want %v", loop, tc.loop)
			case loop == nil:
				if (router.Chains{}).Loop(b.Mapping(router.TCP, 1)) != nil {
					t.Error("without addresses of its own a node found a loop")
				}
			}
		})
	}
}

// TestChainsAreNotFollowedForever gives up on a chain that no person meant, so
// that an edit costs little whatever the others are.
func TestChainsAreNotFollowedForever(t *testing.T) {
	var b router.Builder
	for port := 1; port < 2000; port++ {
		b.SetMapping(mustMapping(t, port, fmt.Sprintf("127.0.0.1:%d", port+1)))
	}
	chains := router.Chains{Own: netip.Addr.IsLoopback, Mapping: b.Mapping}
	loop := chains.Loop(b.Mapping(router.TCP, 1))
	if loop == nil || len(loop.Ports) != 0 || !strings.Contains(loop.Error(), "backend.targets[0].address: 127.0.0.1:2 leads through more than 256 mapped ports") {
		t.Errorf("found %v", loop)
	}
	if loop := chains.Loop(b.Mapping(router.TCP, 1900)); loop != nil {
		t.Errorf("a chain of 100 that ends: %v", loop)
	}
}

// TestChainsOfManyTargets looks at each mapping once, however many ways lead to
// it: a hundred kilobytes of values must not cost seconds at every edit.
func TestChainsOfManyTargets(t *testing.T) {
	looks := map[int]int{}
	var b router.Builder
	const ports = 20
	for port := 1; port <= ports; port++ {
		var targets []string
		for i := range 200 {
			to := 1000 + i // other programs'
			if port < ports {
				to = port + 1 + i%(ports-port)
			}
			targets = append(targets, fmt.Sprintf(`"127.0.0.1:%d"`, to))
		}
		b.SetMapping(mustMapping(t, port, `{"backend":[`+strings.Join(targets, ",")+`]}`))
	}
	chains := router.Chains{Own: netip.Addr.IsLoopback, Mapping: func(proto router.Proto, port int) *router.Mapping {
		looks[port]++
		return b.Mapping(proto, port)
	}}
	if loop := chains.Loop(b.Mapping(router.TCP, 1)); loop != nil {
		t.Errorf("found %v", loop)
	}
	for port, times := range looks {
		if times > 1 {
			t.Errorf("port %d was looked at %d times", port, times)
		}
	}
	// More targets than anybody follows.
	b.SetMapping(mustMapping(t, 30, `{"backend":[`+strings.Repeat(`"127.0.0.1:1000",`, 500)+`"127.0.0.1:1000"]}`))
	b.SetMapping(mustMapping(t, ports, `{"backend":[`+strings.Repeat(`"127.0.0.1:30",`, 500)+`"127.0.0.1:30"]}`))
	if loop := chains.Loop(b.Mapping(router.TCP, 1)); loop == nil || loop.Ports != nil {
		t.Errorf("of more than %d targets: %v", 4096, loop)
	}
}
