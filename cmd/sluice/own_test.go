package main

import (
	"net/netip"
	"testing"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

func TestPrivateAddresses(t *testing.T) {
	own := map[netip.Addr]bool{netip.MustParseAddr("203.0.113.7"): true}
	for _, tc := range []struct {
		admin, at string
		embedded  bool
		want      string
	}{
		{"127.0.0.1:9180", "127.0.0.1:9180", true, "the admin address"},
		{"127.0.0.1:9180", "127.0.0.2:9180", true, ""},
		{"127.0.0.1:9180", "203.0.113.7:9180", true, ""},
		{"127.0.0.1:9180", "127.0.0.1:2379", true, "the embedded etcd"},
		{"127.0.0.1:9180", "127.0.0.1:2379", false, ""}, // of a cluster, or of nobody
		{":9180", "203.0.113.7:9180", true, "the admin address"},
		{"0.0.0.0:9180", "203.0.113.7:9180", true, "the admin address"},
		{"0.0.0.0:9180", "203.0.113.8:9180", true, ""}, // another machine's
		{"[::]:9180", "[::1]:9180", true, "the admin address"},
		{"localhost:9180", "[::1]:9180", true, "the admin address"},
		{"localhost:9180", "203.0.113.7:9180", true, ""},
		{"edge-1.x-gpu.com:9180", "203.0.113.7:9180", true, "the admin address"},
		{"203.0.113.7:9180", "203.0.113.7:9181", true, ""},
	} {
		n := &node{cfg: &config.Config{Admin: tc.admin, Etcd: config.Etcd{Listen: "127.0.0.1:2379"}}}
		n.own.set.Store(&own)
		if tc.embedded {
			n.embedded = &embedded{}
		}
		if got := n.private(netip.MustParseAddrPort(tc.at)); got != tc.want {
			t.Errorf("admin %s, %s: got %q, want %q", tc.admin, tc.at, got, tc.want)
		}
	}
}
