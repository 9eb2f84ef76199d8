package keys

import (
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/etcd"
)

// A pool is refused where every node says so of the value that it has now.
func TestRefused(t *testing.T) {
	srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{srv.Endpoint()}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	var rev int64
	put := func(values map[string]string) {
		t.Helper()
		var edits []etcd.Edit
		for key, value := range values {
			edits = append(edits, etcd.Edit{Key: key, Value: []byte(value), Blind: true})
		}
		if rev, err = client.Commit(t.Context(), edits, "test"); err != nil {
			t.Fatal(err)
		}
	}
	const no = "refused: ports: 30000 (lies outside) (nothing is in force)"
	put(map[string]string{"pools/all": "x", "pools/one": "x", "pools/older": "x", "pools/well": "x"})
	applied := fmt.Sprintf("applied@%d", rev)
	put(map[string]string{
		"verdicts/n1/pools/all": no, "verdicts/n2/pools/all": no, "verdicts/n1/pools/one": no, "verdicts/n2/pools/one": applied,
		"verdicts/n1/pools/older": "refused: is no pool (last good @1 stays in force)", "verdicts/n2/pools/older": no,
		"verdicts/n1/pools/well": applied, "verdicts/n2/pools/well": applied, "verdicts/n1/pools/mended": no, "verdicts/n2/pools/mended": no,
		"nodes/n1": fmt.Sprintf(`{"applied_revision": %d}`, rev), "nodes/n2": fmt.Sprintf(`{"applied_revision": %d}`, rev),
	})
	put(map[string]string{"pools/mended": "x"}) // of which nobody has said anything yet
	store := &Store{Client: client}
	refused := func(want map[string]string) {
		t.Helper()
		got, err := store.Refused(t.Context(), "pools/")
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%v; %s", err, cmp.Diff(want, got))
		}
	}
	want := map[string]string{"pools/all": "ports: 30000 (lies outside)", "pools/older": "is no pool"}
	refused(want)
	// The same verdict again says nothing by itself: the nodes' revisions do.
	put(map[string]string{"nodes/n1": fmt.Sprintf(`{"applied_revision": %d}`, rev), "nodes/n2": fmt.Sprintf(`{"applied_revision": %d}`, rev)})
	want["pools/mended"] = "ports: 30000 (lies outside)"
	refused(want)
}
