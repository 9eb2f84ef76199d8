package keys

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// meter relays connections to an etcd, and counts the bytes that come from there.
func meter(t *testing.T, endpoint string) (addr string, read *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	read = new(atomic.Int64)
	var relays sync.WaitGroup
	relays.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
			if err != nil {
				client.Close()
				continue
			}
			relays.Go(func() { io.Copy(server, client); server.Close() })
			relays.Go(func() { io.Copy(counted{client, read}, server); client.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); relays.Wait() })
	return "http://" + ln.Addr().String(), read
}

type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Writer.Write(b)
}

// A part of a list costs etcd that part, and what the nodes say of it, however long
// the list is; all parts together are the list.
func TestPagesCostWhatTheyHold(t *testing.T) {
	srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	addr, read := meter(t, srv.Endpoint())
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{addr}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	store := &Store{Client: client, Ports: somePorts}
	var edits []etcd.Edit
	flush := func() {
		t.Helper()
		if _, err := client.Commit(t.Context(), edits, "test"); err != nil {
			t.Fatal(err)
		}
		edits = nil
	}
	put := func(key, value string) {
		t.Helper()
		if edits = append(edits, etcd.Edit{Key: key, Value: []byte(value), Blind: true}); len(edits) == etcd.MaxEdits {
			flush()
		}
	}
	nodes := []string{"n1", "n2", "n3"}
	for _, node := range nodes {
		text, err := json.Marshal(fleet.Node{Name: node, State: fleet.Ready})
		if err != nil {
			t.Fatal(err)
		}
		put("nodes/"+node, string(text))
	}
	var want []string
	for port := range 400 {
		key := fmt.Sprintf("ports/tcp/%d", 9800+port)
		want = append(want, key)
		put(key, "10.0.0.1:22")
		for _, node := range nodes {
			put("verdicts/"+node+"/"+key, "refused: "+strings.Repeat("because ", 20))
		}
	}
	put("routes/a", "{}")
	flush()
	slices.Sort(want)
	before := read.Load()
	if all, err := store.List(t.Context(), "ports/"); err != nil || len(all) != 400 || all[0].Key != "ports/tcp/9800" || all[399].Key != "ports/tcp/10199" {
		t.Fatalf("%d keys, %v", len(all), err)
	}
	whole := read.Load() - before
	var got []string
	for after, more := "", true; more; {
		before := read.Load()
		var page []Entry
		if page, more, err = store.Page(t.Context(), "ports/", after, 20); err != nil {
			t.Fatal(err)
		}
		if cost := read.Load() - before; cost > whole/10 {
			t.Fatalf("20 keys of 400 after %q took %d bytes from etcd; all of them take %d", after, cost, whole)
		}
		for _, e := range page {
			got = append(got, e.Key)
			if len(e.Verdicts) != len(nodes) || e.Verdicts["n2"].State != control.Refused {
				t.Errorf("%s: %+v", e.Key, e.Verdicts)
			}
		}
		after = got[len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d keys by pages, %d in all; %q", len(got), len(want), got[:min(len(got), 20)])
	}
	for _, tc := range []struct {
		under, after string
		want         int
	}{{"ports/tcp/98", "", 100}, {"ports/tcp/98", "ports/tcp/9898", 1}, {"ports/tcp/98", "ports/tcp/9899", 0}, {"ports/", "routes/a", 0}, {"routes/", "ports/tcp/1", 1}, {"names/", "", 0}} {
		if page, more, err := store.Page(t.Context(), tc.under, tc.after, 0); err != nil || len(page) != tc.want || more {
			t.Errorf("%s after %q: %d keys, more %t, %v; want %d", tc.under, tc.after, len(page), more, err, tc.want)
		}
	}
}
