package etcd_test

import (
	"fmt"
	"strings"
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
		{func(c *etcd.Cluster) { c.Peers["b"] = "https://b:hunter2@10.0.0.2:2380" }, "the URL of a peer has a user or a password in it, which would be in logs; leave it out"},
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
