package control_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// save has n write what is unsaved, and returns the file's content.
func (n *node) save(t *testing.T, file string) []byte {
	t.Helper()
	if err := n.Run(ended(t)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// inFile returns the values in a state file, by key.
func inFile(t *testing.T, file string) (rev int64, values map[string]string) {
	t.Helper()
	s, err := control.ReadState(file)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]string{}
	for i, e := range s.Entries {
		values[e.Key] = e.Value
		if i > 0 && e.Key <= s.Entries[i-1].Key {
			t.Fatalf("%s comes after %s", e.Key, s.Entries[i-1].Key)
		}
	}
	return s.Rev, values
}

// TestStateFollowsEdits makes edits at random, of values of every shape, saves
// now and then, and compares the file with what is in force.
func TestStateFollowsEdits(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		file := filepath.Join(t.TempDir(), "state")
		n := newNode(t, file)
		n.Load(1, keysOf(50))
		want := map[string]string{}
		for _, kv := range keysOf(50) {
			want[kv.Key] = string(kv.Value)
		}
		rev := int64(100)
		for range 40 {
			var changes []etcd.Change
			for range rnd.IntN(8) {
				rev++
				key := fmt.Sprintf("ports/tcp/%d", 20000+rnd.IntN(60))
				values := []string{
					"a:1", `{"backend":"b:2","env":"e1"}`, "{\"backend\":\n\t\"c:3\"}", "{\"backend\":\"d:4\", \"env\":\"`crc `\"}",
					`{"backend":"a:1"` + strings.Repeat(" ", rnd.IntN(100_000)) + `}`, "refused",
				}
				value := values[rnd.IntN(len(values))]
				if rnd.IntN(3) == 0 {
					changes = append(changes, etcd.Change{Key: key, Deleted: true, ModRev: rev})
					delete(want, key)
					continue
				}
				changes = append(changes, put(key, value, rev))
				if value != "refused" {
					want[key] = value
				}
			}
			n.Change(rev, changes)
			if rnd.IntN(3) == 0 {
				n.save(t, file)
			}
		}
		n.Change(rev+1, []etcd.Change{put("ports/tcp/20999", "last:1", rev+1)})
		want["ports/tcp/20999"] = "last:1"
		n.save(t, file)
		got, values := inFile(t, file)
		if got != rev+1 {
			t.Errorf("seed %d: the file is as of revision %d, want %d", seed, got, rev+1)
		}
		if diff := cmp.Diff(want, values); diff != "" {
			t.Fatalf("seed %d: the file differs from what is in force (-want +got):\n%s", seed, diff)
		}
	}
}

// TestAnEditCostsWhatItIs looks at what an edit among many keys adds to the
// file, and at its size after very many.
func TestAnEditCostsWhatItIs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	n.Load(1000, keysOf(1000))
	whole := n.save(t, file)
	n.Change(1001, []etcd.Change{put("ports/tcp/20007", "b:2", 1001)})
	edited := n.save(t, file)
	if !bytes.HasPrefix(edited, whole) || len(edited) > len(whole)+200 {
		t.Fatalf("an edit made %d bytes of %d, or changed what was there", len(edited), len(whole))
	}
	rev, most := int64(1001), 0
	room := strings.Repeat(" ", 1000)
	for range 200 {
		var changes []etcd.Change
		for i := range 10 {
			rev++
			changes = append(changes, put(fmt.Sprintf("ports/tcp/%d", 20000+i), fmt.Sprintf(`{"backend":"b:%d"%s}`, rev, room), rev))
		}
		n.Change(rev, changes)
		most = max(most, len(n.save(t, file)))
	}
	if most > 400<<10 {
		t.Errorf("the file grew to %d bytes, which 2 MB of edits must not have it do", most)
	}
	if got, values := inFile(t, file); got != rev || len(values) != 1000 {
		t.Errorf("the file has %d keys as of revision %d, want 1000 as of %d", len(values), got, rev)
	}
}

// TestTornState cuts a file off after every byte: what was saved last but one
// is there, unless all is, and nothing where not even the first state is whole.
func TestTornState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	n.Load(10, keysOf(3))
	first := len(n.save(t, file))
	n.Change(11, []etcd.Change{put("ports/tcp/20001", "b:2", 11), {Key: "ports/tcp/20002", Deleted: true, ModRev: 11}})
	all := n.save(t, file)
	torn := filepath.Join(t.TempDir(), "state")
	for size := range len(all) + 1 {
		if err := os.WriteFile(torn, all[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := control.ReadState(torn)
		switch {
		case size < first && err == nil:
			t.Fatalf("%d of %d bytes were taken for a state", size, first)
		case size < first:
		case err != nil:
			t.Fatalf("cut off after %d bytes: %v", size, err)
		case s.Damaged:
			t.Fatalf("cut off after %d bytes: it is said to be damaged", size)
		case size < len(all) && (s.Rev != 10 || len(s.Entries) != 3 || s.Dropped != int64(size-first)):
			t.Fatalf("cut off after %d bytes: revision %d, %d keys, %d bytes left out", size, s.Rev, len(s.Entries), s.Dropped)
		case size == len(all) && (s.Rev != 11 || len(s.Entries) != 2 || s.Dropped != 0):
			t.Fatalf("whole: revision %d, %d keys, %d bytes left out", s.Rev, len(s.Entries), s.Dropped)
		}
	}
	// A node goes on from there, and what it saves is whole again.
	if err := os.WriteFile(torn, all[:len(all)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, torn)
	if !n.Restore() {
		t.Fatal("a torn state was not restored")
	}
	n.Load(12, keysOf(4))
	n.save(t, torn)
	if rev, values := inFile(t, torn); rev != 12 || len(values) != 4 {
		t.Errorf("after it: %d keys as of revision %d, want 4 as of 12", len(values), rev)
	}
}

// TestFlippedState flips each byte of a file in turn: nothing wrong is ever
// read, and the first state survives damage to what came later.
func TestFlippedState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	n.Load(10, keysOf(2))
	first := len(n.save(t, file))
	n.Change(11, []etcd.Change{put("ports/tcp/20001", "b:2", 11)})
	all := n.save(t, file)
	for i := range all {
		flipped := bytes.Clone(all)
		flipped[i] ^= 4
		if err := os.WriteFile(file, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := control.ReadState(file)
		if i < first && err == nil {
			t.Errorf("byte %d of the first state is damaged, and the file was read", i)
		}
		// Damage to the very last line is like a power failure.
		if i >= first && i < bytes.LastIndex(all, []byte("\nas-of ")) && err == nil && !s.Damaged {
			t.Errorf("byte %d is damaged, and nobody says so", i)
		}
		if i >= first && (err != nil || s.Rev != 10 || s.Dropped != int64(len(all)-first)) {
			t.Errorf("byte %d is damaged: revision %d, %d bytes left out, %v", i, s.Rev, s.Dropped, err)
		}
	}
}

// TestForeignHandsOnTheState has the file removed and changed under a node: it
// writes it anew rather than append to what it does not know.
func TestForeignHandsOnTheState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	n.Load(10, keysOf(3))
	n.save(t, file)
	for i, meddle := range []func() error{
		func() error { return os.Remove(file) },
		func() error { return os.WriteFile(file, []byte("else"), 0o600) },
		func() error { return os.Truncate(file, 20) },
	} {
		if err := meddle(); err != nil {
			t.Fatal(err)
		}
		rev := int64(11 + i)
		n.Change(rev, []etcd.Change{put("ports/tcp/20001", fmt.Sprint("b:", rev), rev)})
		n.save(t, file)
		if got, values := inFile(t, file); got != rev || len(values) != 3 {
			t.Errorf("%d: %d keys as of revision %d, want 3 as of %d", i, len(values), got, rev)
		}
	}
}

// TestTheKeptStateStaysAsItWas goes on saving after a step back by a change.
func TestTheKeptStateStaysAsItWas(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	n.Load(10, keysOf(10))
	n.save(t, file)
	var gone []etcd.Change
	for _, kv := range keysOf(10) {
		gone = append(gone, etcd.Change{Key: kv.Key, Deleted: true, ModRev: 11})
	}
	n.Change(11, gone)
	n.save(t, file)
	n.Change(12, []etcd.Change{put("ports/tcp/20001", "b:2", 12)})
	n.save(t, file)
	wantState(t, file, 1)
	wantState(t, file+".prev", 10)
}

// TestFirstVersionIsRead restores what an older program wrote.
func TestFirstVersionIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	const body = `[{"key":"ports/tcp/20022","value":"good:1","rev":2},{"key":"routes/r","value":"{\"host\":\"a.b\",\"respond\":{}}","rev":3}]`
	sum := sha256.Sum256([]byte(body))
	for _, tc := range []struct {
		body string
		ok   bool
	}{{strings.Replace(body, "good", "evil", 1), false}, {body, true}} {
		text := fmt.Sprintf("{\"version\":1,\"rev\":3,\"cluster\":\"7\",\"keys\":2,\"sha256\":\"%x\"}\n%s\n", sum, tc.body)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := control.ReadState(file); (err == nil) != tc.ok {
			t.Fatalf("body %s: %v", tc.body, err)
		}
	}
	n := newNode(t, file)
	if !n.Restore() || n.table().Mapping(router.TCP, 20022) == nil {
		t.Fatal("a state of the first version was not restored")
	}
	n.Load(4, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("good:1"), ModRev: 2}})
	if text := n.save(t, file); !bytes.HasPrefix(text, []byte(`{"version":3}`)) {
		t.Errorf("it was saved as %.40q", text)
	}
	if _, values := inFile(t, file); len(values) != 1 {
		t.Errorf("then it held %v", values)
	}
}

// TestDamagedStateAndOneKeptAside has a file damaged that says less by then than
// the state that was kept aside: the newer one is served.
func TestDamagedStateAndOneKeptAside(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	life(t, file, 7, 100, 10)
	life(t, file, 7, 120, 0) // and keeps the ten aside
	wantState(t, file+".prev", 10)
	n := newNode(t, file)
	n.Load(50, keysOf(1))
	first := len(n.save(t, file))
	n.Change(130, []etcd.Change{put("ports/tcp/20001", "b:2", 130)})
	text := n.save(t, file)
	text[first+5] ^= 4
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, file)
	if source, rev := "", int64(0); !n.Restore() {
		t.Error("nothing was restored")
	} else if source, rev = n.Status(); source != "disk" || rev != 100 || n.inForce() != 10 {
		t.Errorf("%d mappings of revision %d from %s are in force, want the 10 of 100", n.inForce(), rev, source)
	}
	// Without it the file before this one, and then what this one has whole.
	if err := os.Remove(file + ".prev"); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, file)
	if !n.Restore() || n.inForce() != 10 {
		t.Errorf("%d mappings are in force, want the 10 of the file before", n.inForce())
	}
	if err := os.Remove(file + ".before"); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, file)
	if !n.Restore() || n.inForce() != 1 {
		t.Errorf("%d mappings are in force, want 1", n.inForce())
	}
}
