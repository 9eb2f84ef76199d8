package history

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/control/etcd"
)

// cluster is an etcd of the test's own, and a client of it.
type cluster struct {
	*etcd.Client
	raw    *clientv3.Client
	server *etcd.Server
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	c := clusterAt(t, server.Endpoint())
	c.server = server
	return c
}

// clusterAt returns clients of the etcd at an endpoint.
func clusterAt(t *testing.T, endpoint string) *cluster {
	t.Helper()
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{endpoint}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return &cluster{Client: client, raw: raw}
}

func (c *cluster) put(t *testing.T, key, value string) (rev int64) {
	t.Helper()
	resp, err := c.raw.Put(t.Context(), "/sluice/"+key, value)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func (c *cluster) recorder() *Recorder {
	return New(Config{Client: c.Client, Node: "a", Keep: time.Hour, Bytes: 64e6, Logger: slog.New(slog.DiscardHandler)})
}

// asLeader runs f as the recorder's leader.
func (c *cluster) asLeader(t *testing.T, f func(ctx context.Context, term *etcd.Term) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var failed error
	err := c.Lead(ctx, "history", "a", func(ctx context.Context, term *etcd.Term) error {
		failed = f(ctx, term)
		cancel()
		return nil
	})
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// awaitRecorded waits until the history is complete up to a revision.
func (c *cluster) awaitRecorded(t *testing.T, rev int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	kvs, at, err := c.ReadUnder(ctx, status, 0)
	if err != nil {
		t.Fatal(err)
	}
	reached := func(text []byte) bool {
		var state recorded
		if err := json.Unmarshal(text, &state); err != nil {
			t.Fatal(err)
		}
		return state.To >= rev
	}
	if len(kvs) > 0 && reached(kvs[0].Value) {
		return
	}
	err = c.Follow(ctx, []string{status}, at, func(changes []etcd.Change) (bool, error) {
		return reached(changes[len(changes)-1].Value), nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What the keys were at any revision is known long after etcd has forgotten it,
// whatever happened to them, and however often the recorder changed.
func TestKeysAtEveryRevision(t *testing.T) {
	c := startCluster(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	model := map[string]string{"ports/tcp/1": "first"}
	c.put(t, "ports/tcp/1", "first")
	at := map[int64]map[string]string{}
	r := c.recorder()
	var last int64
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		for i := range 100 {
			ops := []clientv3.Op{}
			for range 1 + random.IntN(3) {
				key := fmt.Sprintf("%s%d", []string{"ports/tcp/", "routes/r", "envs/e", "odd"}[random.IntN(4)], random.IntN(4))
				if slices.ContainsFunc(ops, func(o clientv3.Op) bool { return string(o.KeyBytes()) == "/sluice/"+key }) {
					continue
				}
				if random.IntN(3) == 0 {
					ops = append(ops, clientv3.OpDelete("/sluice/"+key))
					delete(model, key)
				} else {
					value := fmt.Sprintf("v%d", i)
					ops = append(ops, clientv3.OpPut("/sluice/"+key, value))
					model[key] = value
				}
			}
			resp, err := c.raw.Txn(ctx).Then(ops...).Commit()
			if err != nil {
				return err
			}
			last = resp.Header.Revision
			at[last] = maps.Clone(model)
			if random.IntN(10) == 0 {
				if err := r.record(ctx, term, state); err != nil {
					return err
				}
				if _, err := c.raw.Compact(ctx, state.To); err != nil && !errors.Is(err, etcd.ErrCompacted) {
					return err
				}
			}
		}
		return nil
	})
	for rev, want := range at {
		got, err := KeysAt(t.Context(), c.Client, rev, "")
		if err != nil {
			t.Fatalf("revision %d: %v", rev, err)
		}
		if diff := cmp.Diff(want, got.Values); diff != "" || got.Unknown != nil {
			t.Fatalf("revision %d: %v, %s", rev, got.Unknown, diff)
		}
	}
	got, err := KeysAt(t.Context(), c.Client, last, "ports/")
	if err != nil {
		t.Fatal(err)
	}
	for key := range got.Values {
		if !strings.HasPrefix(key, "ports/") {
			t.Errorf("%s is not below ports/", key)
		}
	}
	if _, err := KeysAt(t.Context(), c.Client, last+1000, ""); err == nil {
		t.Error("a revision of the future was known")
	}
	if _, err := c.raw.Compact(t.Context(), 2); err != nil && !errors.Is(err, etcd.ErrCompacted) {
		t.Fatal(err)
	}
	var old *TooOldError
	if _, err := KeysAt(t.Context(), c.Client, 1, ""); !errors.As(err, &old) {
		t.Errorf("of a revision before the history: %v", err)
	}
}

// A note belongs to the changes of its transaction, and to no others.
func TestChangesSayWhose(t *testing.T) {
	c := startCluster(t)
	c.put(t, "routes/b", "1")
	if _, err := c.Commit(t.Context(), []etcd.Edit{{Key: "routes/a", Value: []byte("1")}}, "somebody"); err != nil {
		t.Fatal(err)
	}
	c.put(t, "routes/a", "2")
	log, err := Read(t.Context(), c.Client, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ch := range log.Changes {
		got = append(got, ch.Key+"="+*ch.After+" "+ch.By)
	}
	if want := []string{"routes/b=1 ", "routes/a=1 somebody", "routes/a=2 "}; !slices.Equal(got, want) {
		t.Errorf("the changes are %q, want %q", got, want)
	}
}

// What etcd forgot before it was recorded is said, and the history goes on.
func TestAGapIsSaid(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		before := c.put(t, "routes/a", "1")
		if err := r.record(ctx, term, state); err != nil {
			return err
		}
		c.put(t, "routes/a", "2")
		now := c.put(t, "routes/a", "3")
		if _, err := c.raw.Compact(ctx, now); err != nil {
			return err
		}
		log, err := Read(ctx, c.Client, 0)
		if err != nil || !log.Gap || len(log.Changes) != 1 {
			t.Errorf("read %+v, error %v", log, err)
		}
		if _, err := KeysAt(ctx, c.Client, before, ""); err == nil || !strings.Contains(err.Error(), "forgotten") {
			t.Errorf("keys beside a gap: %v", err)
		}
		if err := r.record(ctx, term, state); err != nil {
			return err
		}
		after := c.put(t, "routes/a", "4")
		var old *TooOldError
		if _, err := KeysAt(ctx, c.Client, before, ""); !errors.As(err, &old) {
			t.Errorf("keys before the gap: %v", err)
		}
		if got, err := KeysAt(ctx, c.Client, after, ""); err != nil || got.Values["routes/a"] != "4" {
			t.Errorf("keys after the gap: %v, %v", got, err)
		}
		return nil
	})
}

// The history stays within its bounds, and says how far back it reaches.
func TestTrim(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	r.cfg.Bytes = 3000
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		var first, last int64
		for i := range 10 {
			last = c.put(t, "routes/a", strings.Repeat("x", 500)+fmt.Sprint(i))
			if first == 0 {
				first = last
			}
			if err := r.record(ctx, term, state); err != nil {
				return err
			}
		}
		if err := r.trim(ctx, term, state); err != nil {
			return err
		}
		kvs, _, err := c.ReadUnder(ctx, batches, 0)
		if err != nil {
			return err
		}
		size := 0
		for _, kv := range kvs {
			size += len(kv.Value)
		}
		if size > 3000 || int64(size) != state.Bytes || len(kvs) == 0 {
			t.Errorf("%d batches have %d bytes, the state says %d", len(kvs), size, state.Bytes)
		}
		// etcd itself remembers, for a while.
		if then, err := KeysAt(ctx, c.Client, first, ""); err != nil || len(then.Values) == 0 {
			t.Errorf("what was trimmed and etcd remembers: %v, %v", then, err)
		}
		if _, err := c.raw.Compact(ctx, last); err != nil {
			return err
		}
		var old *TooOldError
		if _, err := KeysAt(ctx, c.Client, first, ""); !errors.As(err, &old) {
			t.Fatalf("what was trimmed: %v", err)
		}
		if _, err := KeysAt(ctx, c.Client, old.From, ""); err != nil {
			t.Errorf("the oldest there is: %v", err)
		}
		r.cfg.Keep = -time.Second // all are older than that
		if err := r.trim(ctx, term, state); err != nil || state.Bytes != 0 || state.From != state.To {
			t.Errorf("after all became too old: %+v, error %v", state, err)
		}
		return nil
	})
}

// Whole revisions go into one batch, and of one that is too large for etcd the
// large values are left out.
func TestLargeTransactions(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		before := c.put(t, "routes/a", "1")
		var ops []clientv3.Op
		for i := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/sluice/routes/r%d", i), strings.Repeat("\x01", 12<<10)))
		}
		resp, err := c.raw.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		if err := r.record(ctx, term, state); err != nil {
			return err
		}
		large := resp.Header.Revision
		c.put(t, "routes/r0", "small")
		huge := c.put(t, "routes/huge", strings.Repeat("<", 700<<10))
		c.put(t, "routes/huge", "small")
		if err := r.record(ctx, term, state); err != nil {
			return err
		}
		// What was before all that is known, and what was too large is known to be.
		for _, tc := range []struct {
			rev     int64
			keys    int
			unknown []string
		}{{before, 1, nil}, {large, 101, nil}, {huge, 101, []string{"routes/huge"}}} {
			got, err := KeysAt(ctx, c.Client, tc.rev, "")
			if err != nil || len(got.Values) != tc.keys || !slices.Equal(got.Unknown, tc.unknown) {
				t.Errorf("at %d: %d keys, unknown %v, error %v", tc.rev, len(got.Values), got.Unknown, err)
			}
		}
		return nil
	})
}

// One node records at a time, and another goes on where it ended.
func TestAnotherNodeGoesOn(t *testing.T) {
	c := startCluster(t)
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		r := c.recorder()
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		c.awaitRecorded(t, 1) // it leads, the first one for the first time
		rev := c.put(t, "routes/a", fmt.Sprint(i))
		r.Poke()
		c.awaitRecorded(t, rev)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	kvs, _, err := c.ReadUnder(t.Context(), batches, 0)
	if err != nil || len(kvs) != 3 {
		t.Errorf("%d batches, error %v", len(kvs), err)
	}
}

func TestSnapshots(t *testing.T) {
	c := startCluster(t)
	c.put(t, "ports/tcp/1", "10.0.0.1:22")
	c.put(t, "nodes/a", "{}")
	rev := c.put(t, "routes/a", "\xff<binary>")
	s, err := TakeSnapshot(t.Context(), c.Client)
	if err != nil {
		t.Fatal(err)
	}
	want := []SnapshotKey{{Key: "ports/tcp/1", Value: "10.0.0.1:22"}, {Key: "routes/a", Binary: []byte("\xff<binary>")}}
	if diff := cmp.Diff(want, s.Keys); diff != "" || s.Rev != rev {
		t.Fatalf("revision %d: %s", s.Rev, diff)
	}
	var file bytes.Buffer
	if err := s.Write(&file); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSnapshot(bytes.NewReader(file.Bytes()))
	want[1].Value = "\xff<binary>"
	if diff := cmp.Diff(want, got.Keys); err != nil || diff != "" {
		t.Fatalf("error %v, %s", err, diff)
	}
	whole := file.Bytes()
	for n := range len(whole) - 1 { // without its last byte, a line feed, it is still whole
		if _, err := ReadSnapshot(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a snapshot", n, len(whole))
		}
	}
	for i := range whole {
		altered := bytes.Clone(whole)
		altered[i] ^= 4
		if got, err := ReadSnapshot(bytes.NewReader(altered)); err == nil && !cmp.Equal(got.Keys, want) {
			t.Fatalf("byte %d altered: %+v", i, got)
		}
	}
}

func FuzzReadSnapshot(f *testing.F) {
	var b bytes.Buffer
	s := Snapshot{Rev: 3, Keys: []SnapshotKey{{Key: "a", Value: "b"}}}
	if err := s.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := ReadSnapshot(bytes.NewReader(file))
		if (s == nil) == (err == nil) {
			t.Fatal("neither a snapshot nor an error")
		}
	})
}

// A recorder ends when it is told to, leader or candidate, while etcd is away.
func TestEndsWithoutEtcd(t *testing.T) {
	c := startCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range 2 {
		go func() { done <- c.recorder().Run(ctx) }()
	}
	c.awaitRecorded(t, 1)
	c.put(t, "routes/a", "1")
	if err := c.server.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A cluster in which nobody changes a key has no gap when etcd forgets what nodes
// wrote meanwhile, and the recorder has no last word after its own.
func TestQuietClustersHaveNoGap(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		rev := c.put(t, "routes/a", "1")
		c.put(t, "routes/a", "2")
		for range 3 {
			for range 10 {
				c.put(t, "verdicts/a/routes/a", "applied")
			}
			if err := r.record(ctx, term, state); err != nil {
				return err
			}
			if _, err := c.raw.Compact(ctx, state.To); err != nil {
				return err
			}
		}
		if got, err := KeysAt(ctx, c.Client, rev, ""); err != nil || got.Values["routes/a"] != "1" {
			t.Errorf("%v, error %v", got, err)
		}
		before := *state
		for range 3 {
			if err := r.record(ctx, term, state); err != nil {
				return err
			}
		}
		if *state != before {
			t.Errorf("with nothing to record, the state went from %+v to %+v", before, *state)
		}
		return nil
	})
}

// Whatever etcd takes, a snapshot holds, and can be read again.
func TestSnapshotsOfOddKeys(t *testing.T) {
	c := startCluster(t)
	want := []SnapshotKey{
		{Key: "oops", Value: strings.Repeat("\x00", 1450<<10)},
		{Key: "routes/\xff", Value: "1"},
		{Key: "routes/\ufffd", Value: "2"},
	}
	for _, k := range want {
		c.put(t, k.Key, k.Value)
	}
	slices.SortFunc(want, func(a, b SnapshotKey) int { return strings.Compare(a.Key, b.Key) })
	s, err := TakeSnapshot(t.Context(), c.Client)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := s.Write(&file); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSnapshot(&file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Keys); diff != "" {
		t.Errorf("read again: %.500s", diff)
	}
}
