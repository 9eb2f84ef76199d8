package control_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

func del(key string, rev int64) etcd.Change {
	return etcd.Change{Key: key, Deleted: true, ModRev: rev}
}

// wantVerdict wants the verdict of key to be text, or to hold it where text
// does not begin with what verdicts begin with.
func (n *node) wantVerdict(t *testing.T, key, text string) {
	t.Helper()
	got := n.verdicts[key]
	if whole := strings.HasPrefix(text, "applied@"); whole && got != text || !strings.Contains(got, text) || text == "" && got != "" {
		t.Errorf("the verdict of %s is %q, want %q", key, got, text)
	}
}

const pool = `{"ports":"%s","backend_port":22}`

func TestPoolGetsItsPortsOnceTheyAreFree(t *testing.T) {
	for _, tc := range []struct {
		name string
		free etcd.Change
	}{
		{"the other is deleted", del("pools/ssh", 4)},
		{"the other shrinks", put("pools/ssh", fmt.Sprintf(pool, "20000-20499"), 4)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "")
			n.Load(1, nil)
			n.Change(2, []etcd.Change{put("pools/ssh", fmt.Sprintf(pool, "20000-20599"), 2)})
			n.Change(3, []etcd.Change{put("pools/code", fmt.Sprintf(pool, "20500-20999"), 3)})
			n.wantVerdict(t, "pools/code", "refused: ports: 20500-20999 overlaps 20000-20599 of the pool ssh; give each port to one pool (nothing is in force)")
			n.Change(4, []etcd.Change{tc.free})
			n.wantVerdict(t, "pools/code", "applied@3")
		})
	}
}

// TestPoolsMoveInOneBatch swaps what two pools have: whichever comes first in
// the batch overlaps what the other had.
func TestPoolsMoveInOneBatch(t *testing.T) {
	n := newNode(t, "")
	n.Load(1, nil)
	n.Change(2, []etcd.Change{put("pools/a", fmt.Sprintf(pool, "20000-20099"), 2), put("pools/b", fmt.Sprintf(pool, "20100-20199"), 2), put("pools/c", fmt.Sprintf(pool, "20200-20299"), 2)})
	n.Change(3, []etcd.Change{put("pools/a", fmt.Sprintf(pool, "20100-20199"), 3), put("pools/b", fmt.Sprintf(pool, "20200-20299"), 3), put("pools/c", fmt.Sprintf(pool, "20300-20399"), 3)})
	for _, key := range []string{"pools/a", "pools/b", "pools/c"} {
		n.wantVerdict(t, key, "applied@3")
	}
}

// TestLoadDecidesByAge has a full load come to what the edits one by one came
// to: of two pools that overlap, the older one is in force.
func TestLoadDecidesByAge(t *testing.T) {
	n := newNode(t, "")
	n.Load(5, []etcd.KV{
		{Key: "pools/a", Value: fmt.Appendf(nil, pool, "20000-20099"), ModRev: 5},
		{Key: "pools/b", Value: fmt.Appendf(nil, pool, "20000-20049"), ModRev: 3},
	})
	n.wantVerdict(t, "pools/b", "applied@3")
	n.wantVerdict(t, "pools/a", "refused: ports: 20000-20099 overlaps 20000-20049 of the pool b")
	// The winner gone while nobody watched: the load finds the rest free.
	n.Load(6, []etcd.KV{{Key: "pools/a", Value: fmt.Appendf(nil, pool, "20000-20099"), ModRev: 5}})
	n.wantVerdict(t, "pools/a", "applied@5")
	n.wantVerdict(t, "pools/b", "")
}

func TestDomainPutAgainKeepsItsState(t *testing.T) {
	n := newNode(t, "")
	n.Load(1, []etcd.KV{{Key: "domains/x-gpu.com", Value: []byte("{}"), ModRev: 1}})
	n.SetState("domains/x-gpu.com", false, "certificate valid until 2027")
	n.Change(3, []etcd.Change{del("domains/x-gpu.com", 2), put("domains/x-gpu.com", "{}", 3)})
	n.wantVerdict(t, "domains/x-gpu.com", "applied@3: certificate valid until 2027")

	n.SetState("domains/x-gpu.com", true, "no_certificate: failed")
	n.Change(5, []etcd.Change{del("domains/x-gpu.com", 4), put("domains/x-gpu.com", "{}", 5)})
	n.wantVerdict(t, "domains/x-gpu.com", "degraded: no_certificate: failed (applied@5)")

	// Away for a batch, it is a new domain, of which nothing is known yet.
	n.Change(6, []etcd.Change{del("domains/x-gpu.com", 6)})
	n.Change(7, []etcd.Change{put("domains/x-gpu.com", "{}", 7)})
	n.wantVerdict(t, "domains/x-gpu.com", "applied@7")
}

func TestMappingToItself(t *testing.T) {
	n := newNode(t, "")
	n.Load(1, nil)
	for _, backend := range []string{"127.0.0.1:20022", "localhost:20022", "[::1]:20022", "[::ffff:127.0.0.1]:20022"} {
		n.Change(2, []etcd.Change{put("ports/tcp/20022", backend, 2)})
		n.wantVerdict(t, "ports/tcp/20022", "refused: backend.targets[0].address: "+backend+" is this very port of this node, so that connections would come back without end; give the address at which the service itself listens (nothing is in force)")
	}
	n.Change(3, []etcd.Change{put("ports/tcp/20022", `{"backend":"10.0.0.1:22","http":["10.0.0.2:80","127.0.0.1:20022"]}`, 3)})
	n.wantVerdict(t, "ports/tcp/20022", "refused: http.targets[1].address: 127.0.0.1:20022 is this very port")
	for _, other := range []string{"127.0.0.1:22", "127.0.0.1:20023", "10.0.0.1:20022"} { // all of which are somebody else's
		n.Change(4, []etcd.Change{put("ports/tcp/20022", other, 4)})
		n.wantVerdict(t, "ports/tcp/20022", "applied@4")
	}
	n.Change(5, []etcd.Change{put("ports/udp/20022", "127.0.0.1:20022", 5)}) // UDP is no TCP, but itself
	n.wantVerdict(t, "ports/udp/20022", "refused: ")
}

func TestMappingToTheNodesOwnServices(t *testing.T) {
	n := newNodeWith(t, func(cfg *control.Config) {
		cfg.Private = func(at netip.AddrPort) string {
			return map[netip.AddrPort]string{
				netip.MustParseAddrPort("127.0.0.1:9180"): "the admin address", netip.MustParseAddrPort("[::1]:2379"): "the etcd",
			}[at]
		}
	})
	n.Load(1, nil)
	for backend, want := range map[string]string{
		"127.0.0.1:9180":          "127.0.0.1:9180 is the admin address of this node, which a mapping would open to everybody",
		"[::ffff:127.0.0.1]:9180": "is the admin address",
		"localhost:9180":          "localhost:9180 is the admin address",
		"x.localhost:2379":        "is the etcd",
		"[::1]:2379":              "is the etcd",
	} {
		n.Change(2, []etcd.Change{put("ports/tcp/20022", backend, 2)})
		n.wantVerdict(t, "ports/tcp/20022", "refused: backend.targets[0].address: ")
		n.wantVerdict(t, "ports/tcp/20022", want)
	}
	n.Change(3, []etcd.Change{put("ports/tcp/20022", `{"http":["10.0.0.2:80","127.0.0.1:9180"]}`, 3)})
	n.wantVerdict(t, "ports/tcp/20022", "refused: http.targets[1].address: 127.0.0.1:9180 is the admin address")
	for _, other := range []string{"127.0.0.1:2379", "10.0.0.1:9180", "[::1]:9180", "edge.example.com:9180"} {
		n.Change(4, []etcd.Change{put("ports/tcp/20022", other, 4)})
		n.wantVerdict(t, "ports/tcp/20022", "applied@4")
	}
	n.Change(5, []etcd.Change{put("ports/udp/20022", "127.0.0.1:9180", 5)}) // where neither answers
	n.wantVerdict(t, "ports/udp/20022", "applied@5")
}

func TestRouteToTheNodeItself(t *testing.T) {
	n := newNodeWith(t, func(cfg *control.Config) {
		at := func(what string, addr string) func(netip.AddrPort) string {
			return func(at netip.AddrPort) string {
				if at == netip.MustParseAddrPort(addr) {
					return what
				}
				return ""
			}
		}
		cfg.Private, cfg.Public = at("the admin address", "127.0.0.1:9180"), at("the https listener", "127.0.0.1:8443")
	})
	n.Load(1, nil)
	for value, want := range map[string]string{
		`{"host":"a.b","backend":"127.0.0.1:9180","request_headers":{"set":{"Host":"127.0.0.1"}}}`: "refused: backend.targets[0].address: 127.0.0.1:9180 is the admin address of this node, which a route would open to everybody",
		`{"host":"a.b","backend":["10.0.0.1:80","localhost:9180"]}`:                                "refused: backend.targets[1].address: localhost:9180 is the admin address",
		`{"host":"a.b","backend":"10.0.0.1:80","forward_auth":{"backend":"127.0.0.1:9180"}}`:       "refused: forward_auth.backend.targets[0].address: 127.0.0.1:9180 is the admin address",
		`{"host":"a.b","tls":"passthrough","backend":"127.0.0.1:8443"}`:                            "refused: backend.targets[0].address: 127.0.0.1:8443 is the https listener of this node, from which it would be routed again",
		`{"host":"a.b","backend":"https://[::ffff:127.0.0.1]:8443"}`:                               "is the https listener",
		`{"host":"a.b","backend":"127.0.0.1:8080"}`:                                                "applied@2",
		`{"host":"~^p(?<p>\\d+)$","backend":"127.0.0.1:${p}"}`:                                     "applied@2",
	} {
		n.Change(2, []etcd.Change{{Key: "routes/r", Deleted: true, ModRev: 2}})
		n.Change(2, []etcd.Change{put("routes/r", value, 2)})
		n.wantVerdict(t, "routes/r", want)
	}
	n.Change(3, []etcd.Change{put("ports/tcp/20022", `{"http":"10.0.0.1:80","requests":{"forward_auth":{"backend":"127.0.0.1:9180"}}}`, 3)})
	n.wantVerdict(t, "ports/tcp/20022", "refused: requests.forward_auth.backend.targets[0].address: 127.0.0.1:9180 is the admin address")
	n.Change(4, []etcd.Change{put("ports/tcp/20022", "127.0.0.1:8443", 4)}) // from where it goes on along a route
	n.wantVerdict(t, "ports/tcp/20022", "applied@4")
}

func TestMappingsInACircle(t *testing.T) {
	n := newNode(t, "")
	n.Load(1, nil)
	n.Change(2, []etcd.Change{put("ports/tcp/20001", "127.0.0.1:20002", 2)})
	n.Change(3, []etcd.Change{put("ports/tcp/20002", `{"backend":["10.0.0.1:22","127.0.0.1:20003"]}`, 3)})
	n.Change(4, []etcd.Change{put("ports/tcp/20003", "10.0.0.1:22", 4)})
	n.Change(5, []etcd.Change{put("ports/tcp/20003", "127.0.0.1:20001", 5)})
	n.wantVerdict(t, "ports/tcp/20003", "refused: backend.targets[0].address: 127.0.0.1:20001 is a mapped port of this node that leads back here (tcp/20003 to tcp/20001 to tcp/20002 to tcp/20003); give the address at which the service itself listens (last good @4 stays in force)")
	if got := n.table().Mapping(router.TCP, 20003).Rev; got != 4 {
		t.Errorf("in force is the value @%d, want the last good one @4", got)
	}
	n.Change(6, []etcd.Change{put("ports/tcp/20002", "10.0.0.1:22", 6)}) // the circle is open
	n.wantVerdict(t, "ports/tcp/20003", "applied@5")
	if got := n.table().Mapping(router.TCP, 20003).Rev; got != 5 {
		t.Errorf("in force is the value @%d, want @5", got)
	}
	// Turned round in one batch: each stands against the other until both are there.
	n.Change(7, []etcd.Change{put("ports/tcp/20002", "127.0.0.1:20001", 7), put("ports/tcp/20001", "10.0.0.1:22", 7)})
	n.wantVerdict(t, "ports/tcp/20001", "applied@7")
	n.wantVerdict(t, "ports/tcp/20002", "applied@7")
}

// TestCircleInTheState has a node come back from disk to what it served, and
// then to the same verdicts.
func TestCircleInTheState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	kvs := []etcd.KV{
		{Key: "ports/tcp/20001", Value: []byte("127.0.0.1:20002"), ModRev: 3},
		{Key: "ports/tcp/20002", Value: []byte("127.0.0.1:20001"), ModRev: 2},
	}
	for range 2 {
		n.Load(3, kvs)
		n.wantVerdict(t, "ports/tcp/20002", "applied@2")
		n.wantVerdict(t, "ports/tcp/20001", "refused: ")
		if err := n.Run(ended(t)); err != nil {
			t.Fatal(err)
		}
		n = newNode(t, file)
		n.Restore()
		if n.table().Mapping(router.TCP, 20001) != nil || n.table().Mapping(router.TCP, 20002) == nil {
			t.Error("the state on disk brought the refused mapping into force, or not the accepted one")
		}
	}
}

// ended returns a context that has ended.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestBackendsThatTheNodeCannotConnectTo refuses them, with the field that says
// what is missing, and leaves the last good value in force.
func TestBackendsThatTheNodeCannotConnectTo(t *testing.T) {
	n := newNodeWith(t, func(cfg *control.Config) {
		cfg.Backend = func(b *router.Backend) error {
			if b.TLS != nil && b.TLS.Client == "missing" {
				return &router.FieldError{Path: "tls.client", Msg: "there is no such file"}
			}
			return nil
		}
	})
	n.Load(1, nil)
	tls := func(client string) string {
		return `{"targets":["10.0.0.7:443"],"tls":{"client":"` + client + `"}}`
	}
	n.Change(2, []etcd.Change{put("routes/a", `{"host":"a.x.test","backend":`+tls("there")+`}`, 2), put("ports/tcp/20022", `{"http":`+tls("missing")+`}`, 2)})
	n.wantVerdict(t, "routes/a", "applied@2")
	n.wantVerdict(t, "ports/tcp/20022", "refused: http.tls.client: there is no such file (nothing is in force)")
	n.Change(3, []etcd.Change{put("routes/a", `{"host":"a.x.test","backend":`+tls("missing")+`}`, 3), put("routes/b", `{"host":"b.x.test","respond":{"body":"b"}}`, 3)})
	n.wantVerdict(t, "routes/a", "refused: backend.tls.client: there is no such file (last good @2 stays in force)")
	n.wantVerdict(t, "routes/b", "applied@3")
}

// What is in force does not depend on how the changes arrived.
func TestOddsAreSettledAtEachRevision(t *testing.T) {
	one, two := newNode(t, ""), newNode(t, "")
	for _, n := range []*node{one, two} {
		n.Load(1, nil)
		n.Change(3, []etcd.Change{put("pools/a", fmt.Sprintf(pool, "20000-20099"), 2), put("pools/b", fmt.Sprintf(pool, "20050-20149"), 3)})
	}
	gone, came := del("pools/a", 4), put("pools/c", fmt.Sprintf(pool, "20100-20199"), 5)
	one.Change(4, []etcd.Change{gone})
	one.Change(5, []etcd.Change{came})
	two.Change(5, []etcd.Change{gone, came})
	if one.Fingerprint() != two.Fingerprint() {
		t.Errorf("one by one: %v, together: %v", one.verdicts, two.verdicts)
	}
}
