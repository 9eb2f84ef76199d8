package etcd_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/remotegpu/sluice/control/etcd"
)

func TestClusterIsChecked(t *testing.T) {
	full := func(edit func(*etcd.Cluster)) *etcd.Cluster {
		c := &etcd.Cluster{Peers: map[string]string{"a": "https://10.0.0.1:2380", "b": "https://10.0.0.2:2380"}, CA: "ca", Cert: "cert", Key: "key"}
		edit(c)
		return c
	}
	for i, tc := range []struct {
		edit func(*etcd.Cluster)
		want string
	}{
		{func(c *etcd.Cluster) {}, ""},
		{func(c *etcd.Cluster) { c.Peers = nil }, "either peers"},
		{func(c *etcd.Cluster) { c.SRV = "x-gpu.com" }, "either peers"},
		{func(c *etcd.Cluster) { delete(c.Peers, "a") }, `"a", is not among peers`},
		{func(c *etcd.Cluster) { c.Peers["b"] = "10.0.0.2:2380" }, "is not the URL of a peer"},
		{func(c *etcd.Cluster) { c.Peers["b"] = "http://10.0.0.2:2380" }, "has no TLS"},
		{func(c *etcd.Cluster) { c.Key = "" }, "tls needs all of"},
		{func(c *etcd.Cluster) { c.Listen = "2380" }, "is not an address"},
		{func(c *etcd.Cluster) { c.URL = "https://10.0.0.1:2380" }, "url goes with srv"},
		{func(c *etcd.Cluster) { c.Peers, c.SRV = nil, "x-gpu.com" }, "srv needs url"},
		{func(c *etcd.Cluster) { c.Peers, c.SRV, c.URL = nil, "x-gpu.com", "https://hk1.x-gpu.com:2380" }, ""},
		{func(c *etcd.Cluster) {
			c.Peers, c.CA, c.Cert, c.Key = map[string]string{"a": "http://127.0.0.1:2380"}, "", "", ""
		}, ""},
		{func(c *etcd.Cluster) { c.Peers = map[string]string{"a": "http://127.0.0.1:2380"} }, "no meaning for http"},
		{func(c *etcd.Cluster) {
			c.Peers, c.CA, c.Cert, c.Key, c.Listen = map[string]string{"a": "http://127.0.0.1:2380"}, "", "", "", "0.0.0.0:2380"
		}, "0.0.0.0:2380 is not on loopback"},
	} {
		err := full(tc.edit).Check("a")
		if said := fmt.Sprint(err); (tc.want == "") != (err == nil) || err != nil && !strings.Contains(said, tc.want) {
			t.Errorf("case %d: %v, want %q", i, err, tc.want)
		}
	}
}

// A member that another one has removed from the cluster says so, rather than
// serve what it last heard as if all were well.
func TestARemovedMemberSaysSo(t *testing.T) {
	peers := map[string]string{}
	for _, name := range []string{"a", "b"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peers[name] = "http://" + ln.Addr().String()
		ln.Close()
	}
	servers := map[string]*etcd.Server{}
	var mu sync.Mutex
	var starting sync.WaitGroup
	for name := range peers {
		starting.Go(func() {
			srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{
				Dir: t.TempDir(), Name: name, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true, Cluster: &etcd.Cluster{Peers: peers},
			})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			servers[name] = srv
			mu.Unlock()
		})
	}
	starting.Wait()
	for _, srv := range servers {
		defer srv.Close()
	}
	if len(servers) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	replaced := make(chan struct{})
	go func() {
		defer close(replaced)
		// That the other one alone is no majority once it expects a new one is none
		// of this test's business.
		_ = dial(t, servers["a"].Endpoint()).ReplaceMember(ctx, "b")
	}()
	err := servers["b"].Wait(ctx)
	if err == nil || !strings.Contains(err.Error(), "another member has removed this one from the cluster") {
		t.Errorf("it says %v", err)
	}
	cancel()
	<-replaced
}
