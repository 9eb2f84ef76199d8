package keys

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// Keys of which a node says nothing by themselves, since there are so many, are
// applied where its record says so, and not where they are gone.
func TestVerdictsThatAreLeftOut(t *testing.T) {
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
	ctx, cancel := context.WithCancel(t.Context())
	store := &Store{Client: client, Ports: somePorts}
	const n = etcd.MaxPlain + 100
	key := func(i int) string { return fmt.Sprintf("ports/tcp/%d", 20000+i) }
	edits := []etcd.Edit{{Key: control.ConfirmedKey, Value: []byte("somebody"), Blind: true}} // which is no key that anybody wants
	var rev int64
	for i := range n {
		edits = append(edits, etcd.Edit{Key: key(i), Value: []byte("x"), Blind: true})
		if len(edits) >= 100 || i == n-1 {
			if rev, err = client.Commit(ctx, edits, "test"); err != nil {
				t.Fatal(err)
			}
			edits = nil
		}
	}
	s, err := client.NewSession(etcd.SessionConfig{Node: "n1", Instance: "i"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	record := func(applied int64) string {
		text, err := json.Marshal(fleet.Node{Name: "n1", Instance: "i", State: fleet.Ready, Applied: applied})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	s.SetRecord(record(0))
	if err := client.Follow(ctx, []string{"nodes/"}, 1, func([]etcd.Change) (bool, error) { return true, nil }); err != nil {
		t.Fatal(err) // who waits for nodes waits for those that are there
	}
	v := s.Verdicts()
	v.Set(key(0), "refused: no")
	for i := 1; i < n; i++ {
		v.Set(key(i), fmt.Sprintf("applied@%d", rev))
	}
	s.SetProgress(record(rev))

	asked := []string{key(0), key(n - 1), "ports/tcp/1"}
	for i := range 20 {
		asked = append(asked, key(1+i))
	}
	for _, asked := range [][]string{asked, asked[:4]} { // many, and few
		got, err := store.Await(ctx, rev, asked)
		if err != nil || len(got) != len(asked) {
			t.Fatalf("%d answers to %d keys, error %v", len(got), len(asked), err)
		}
		for i, a := range got {
			want := control.Applied
			switch i {
			case 0:
				want = control.Refused
			case 2:
				want = control.Removed
			}
			if a.Key != asked[i] || a.Verdict.State != want {
				t.Errorf("of %s it is said %+v, want %s", a.Key, a.Verdict, want)
			}
		}
	}
	st, err := store.Status(ctx)
	if err != nil || len(st.Nodes) != 1 || st.Keys != n || st.Nodes[0].AppliedKeys != n-1 || st.Nodes[0].RefusedKeys != 1 || len(st.Troubles) != 1 {
		t.Errorf("the status is %+v, error %v; want %d keys applied", st, err, n-1)
	}
	all, err := store.List(ctx, "ports/")
	if err != nil || len(all) != n {
		t.Fatalf("%d keys, error %v", len(all), err)
	}
	for _, e := range all {
		want := control.Applied
		if e.Key == key(0) {
			want = control.Refused
		}
		if e.Verdicts["n1"].State != want {
			t.Errorf("of %s it is said %+v", e.Key, e.Verdicts)
		}
	}
	// A key that came after what the node has applied has no verdict yet.
	if rev, err = client.Commit(ctx, []etcd.Edit{{Key: "ports/tcp/20500", Value: []byte("y"), Blind: true}}, "test"); err != nil {
		t.Fatal(err)
	}
	if all, err = store.List(ctx, "ports/tcp/20500"); err != nil || len(all) != 1 || all[0].Verdicts["n1"].Rev == rev {
		t.Errorf("of what the node has not seen it is said %+v, error %v", all, err)
	}
}

// What a node says of a key counts as an answer where it is one to the revision
// that is waited for, and neither a verdict on an earlier value nor one that is
// left out is.
func TestWhatIsAnAnswer(t *testing.T) {
	const key, rev = "ports/tcp/20000", 10
	says := func(text string, at int64) etcd.Change {
		return etcd.Change{Key: "verdicts/n1/" + key, Value: []byte(text), ModRev: at}
	}
	applied := func(rev int64) etcd.Change {
		return etcd.Change{Key: "nodes/n1", Value: fmt.Appendf(nil, `{"applied_revision":%d}`, rev)}
	}
	drops := func(at int64) etcd.Change {
		return etcd.Change{Key: "verdicts/n1/" + key, Deleted: true, ModRev: at}
	}
	for _, c := range []struct {
		what  string
		there int64 // revision of the key at the start; 0: it is gone
		takes []etcd.Change
		want  string // "": no answer
	}{
		{"nothing is said", 10, nil, ""},
		{"an earlier value is in force", 10, []etcd.Change{says("applied@5", 6)}, ""},
		{"an earlier value is in force, as is said late", 10, []etcd.Change{says("applied@5", 11)}, ""},
		{"it is in force with something amiss, as before", 10, []etcd.Change{says("degraded: backend_down: x (applied@5)", 11)}, ""},
		{"it is in force", 10, []etcd.Change{says("applied@10", 11)}, "applied@10"},
		{"it is in force with something amiss", 10, []etcd.Change{says("degraded: backend_down: x (applied@10)", 11)}, "degraded: backend_down: x (applied@10)"},
		{"an earlier one was refused", 10, []etcd.Change{says("refused: x (nothing is in force)", 9)}, ""},
		{"it is refused", 10, []etcd.Change{says("refused: x (nothing is in force)", 11)}, "refused: x (nothing is in force)"},
		{"an earlier one is left out", 10, []etcd.Change{says("applied@5", 6), says(etcd.LeftOut, 11), drops(12)}, ""},
		{"it is left out", 10, []etcd.Change{says("applied@5", 6), says(etcd.LeftOut, 11), drops(12), applied(10)}, "applied@10"},
		{"it is being left out", 10, []etcd.Change{says("applied@5", 6), says(etcd.LeftOut, 11), applied(10)}, "applied@10"},
		{"it was deleted and put, and so far the first is done", 10, []etcd.Change{says("applied@5", 6), drops(11)}, ""},
		{"it was changed again", 20, []etcd.Change{applied(15)}, "applied@10"},
		{"it is gone", 0, []etcd.Change{says("applied@5", 6), drops(11)}, "removed"},
		{"it was gone before", 0, []etcd.Change{says("applied@5", 6), drops(9)}, ""},
		{"it is gone, and was left out before", 0, []etcd.Change{says("applied@5", 6), says(etcd.LeftOut, 11), drops(12)}, ""},
		{"it is gone, and had no verdict", 0, []etcd.Change{applied(10)}, "removed"},
		{"it is gone, and the node holds that back", 0, []etcd.Change{says("held: x (applied@5)", 11)}, "held: x (applied@5)"},
	} {
		v := newView(rev)
		v.keys[key] = true
		if c.there != 0 {
			v.there[key] = c.there
		}
		for _, change := range append([]etcd.Change{applied(1)}, c.takes...) {
			v.take(change)
		}
		got := ""
		for _, a := range v.answers([]string{key}) {
			got = a.Verdict.Text
		}
		if got != c.want || v.complete() != (c.want != "") {
			t.Errorf("where %s the answer is %q, complete %v; want %q", c.what, got, v.complete(), c.want)
		}
	}
}
