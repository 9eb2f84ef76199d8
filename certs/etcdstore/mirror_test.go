package etcdstore_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// deaf takes a watch's configuration, which is no concern of these tests.
type deaf struct{}

func (deaf) Load(int64, []etcd.KV)       {}
func (deaf) Change(int64, []etcd.Change) {}

// run runs the node's store and its watch, until the test ends or n.stop.
func (n *node) run(t testing.TB) *node {
	t.Helper()
	stopWatch := goRun(t, func(ctx context.Context) error {
		return n.client.WatchWith(ctx, deaf{}, etcd.Aside{Folders: etcdstore.Mirrored, Handler: n.Mirror})
	})
	stopRun := goRun(t, n.Run)
	n.stop = func() { stopWatch(); stopRun() }
	return n
}

// running returns a node that keeps its mirror in dir; empty: in memory.
func (c *cluster) running(t testing.TB, dir string) *node {
	t.Helper()
	return c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.Dir = dir }).run(t)
}

// await waits until cond holds, and looks whenever the shelf or a value changes,
// and now and then, since not all that a test waits for is told.
func (n *node) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	news := make(chan struct{}, 1)
	poke := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	defer n.WatchStored(func([]string) { poke() })()
	defer n.WatchShared("", func(string) { poke() })()
	deadline := time.After(patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !cond() {
		select {
		case <-news:
		case <-again.C:
		case <-deadline:
			t.Fatalf("never saw %s", what)
		}
	}
}

// obtained stores a new certificate as certmagic does, and returns it.
func (n *node) obtained(t testing.TB, issuer, name string, life time.Duration) (chain, key []byte) {
	t.Helper()
	chain, key = pair(t, life, name)
	ctx := t.Context()
	if err := n.Lock(ctx, "issue_cert_"+name); err != nil {
		t.Fatal(err)
	}
	crt, private, meta := files(issuer, name)
	for _, f := range []struct {
		key   string
		value []byte
	}{{private, key}, {crt, chain}, {meta, []byte("{}")}} {
		if err := n.Store(ctx, f.key, f.value); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Unlock(ctx, "issue_cert_"+name); err != nil {
		t.Fatal(err)
	}
	return chain, key
}

// has reports whether the shelf has exactly that chain for name.
func (n *node) has(name string, chain []byte) bool {
	s := n.Stored(name)
	return len(s) == 1 && bytes.Equal(s[0].Chain, chain)
}

func (n *node) metric(t testing.TB, name string) float64 {
	t.Helper()
	return metric(t, n.registry, name)
}

func metric(t testing.TB, from prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestStoredOnOneServedByAll(t *testing.T) {
	c := startCluster(t)
	a, b := c.running(t, ""), c.running(t, "")
	chain, key := a.obtained(t, "ca", "*.x.test", time.Hour)
	for _, n := range []*node{a, b} {
		n.await(t, "the certificate", func() bool { return n.has("*.x.test", chain) })
		s := n.Stored("*.x.test")[0]
		if s.Issuer != "ca" || !bytes.Equal(s.Key, key) || string(s.Meta) != "{}" || s.Rev == 0 || s.Gone || s.Certificate.Leaf == nil || s.Modified.IsZero() {
			t.Errorf("Stored = %+v", s)
		}
		if again := n.Stored("*.x.test")[0]; again.Certificate != s.Certificate {
			t.Error("the certificate is parsed anew each time")
		}
	}
	first := b.Stored("*.x.test")[0]
	renewed, _ := a.obtained(t, "ca", "*.x.test", 2*time.Hour)
	b.await(t, "the renewed one", func() bool { return b.has("*.x.test", renewed) })
	if now := b.Stored("*.x.test")[0]; now.Rev <= first.Rev || now.Certificate == first.Certificate {
		t.Errorf("renewed: %+v after %+v", now, first)
	}
	a.obtained(t, "another-ca", "*.x.test", time.Hour)
	b.await(t, "that of another issuer", func() bool { return len(b.Stored("*.x.test")) == 2 })
	if s := b.Stored("*.x.test"); s[0].Issuer != "another-ca" || s[1].Issuer != "ca" {
		t.Errorf("Stored = %v, %v", s[0].Issuer, s[1].Issuer)
	}
	if names := b.StoredNames(); len(names) != 1 || names[0] != "*.x.test" || b.metric(t, "sluice_certs_stored") != 2 {
		t.Errorf("StoredNames = %v", names)
	}
	if s := b.Stored("y.test"); len(s) != 0 || b.StoredTrouble("y.test") != nil {
		t.Errorf("of a name that nobody stored: %v", s)
	}
}

// TestRenewalInfoAlone has certmagic's third file change by itself.
func TestRenewalInfoAlone(t *testing.T) {
	c := startCluster(t)
	n := c.running(t, "")
	chain, _ := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "the certificate", func() bool { return n.has("x.test", chain) })
	before := n.Stored("x.test")[0]
	_, _, meta := files("ca", "x.test")
	if err := n.Store(t.Context(), meta, []byte(`{"ari":1}`)); err != nil {
		t.Fatal(err)
	}
	n.await(t, "the new file", func() bool { return string(n.Stored("x.test")[0].Meta) == `{"ari":1}` })
	if now := n.Stored("x.test")[0]; now.Certificate != before.Certificate || now.Rev <= before.Rev {
		t.Error("the certificate was parsed anew, or has its old revision")
	}
}

// TestServedWithEtcdDead starts a node from its disk alone.
func TestServedWithEtcdDead(t *testing.T) {
	c := startCluster(t)
	dir := filepath.Join(t.TempDir(), "shared")
	n := c.running(t, dir)
	chain, key := n.obtained(t, "ca", "x.test", time.Hour)
	if _, err := n.Swap(t.Context(), "shared/tickets", 0, []byte("ticket key")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Swap(t.Context(), "attempts/x.test", 0, []byte("failed")); err != nil {
		t.Fatal(err)
	}
	n.await(t, "all of it", func() bool {
		_, ok := n.Peek("attempts/x.test")
		_, ok2 := n.Peek("shared/tickets")
		return ok && ok2 && n.has("x.test", chain)
	})
	n.stop()
	dead, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	again, err := etcdstore.New(etcdstore.Config{Client: dead, KeyFile: c.keyFile, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s := again.Stored("x.test")
	if len(s) != 1 || !bytes.Equal(s[0].Chain, chain) || !bytes.Equal(s[0].Key, key) || s[0].Gone {
		t.Errorf("Stored = %+v", s)
	}
	if v, ok := again.Peek("shared/tickets"); !ok || string(v.Data) != "ticket key" || v.Rev == 0 {
		t.Errorf("Peek = %+v, %v", v, ok)
	}
	if _, ok := again.Peek("attempts/x.test"); ok {
		t.Error("what was attempted is on disk")
	}
	for name, blob := range filesIn(t, dir) {
		if bytes.Contains(blob, []byte("ticket key")) || bytes.Contains(blob, []byte("PRIVATE KEY")) || bytes.Contains(blob, []byte("CERTIFICATE")) {
			t.Errorf("%s is in clear", name)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
}

func filesIn(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		blob, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = blob
	}
	return all
}

// TestWhatIsBadInEtcdIsRefused damages a certificate in etcd in many ways. The
// last good one stays, and the trouble says what is wrong.
func TestWhatIsBadInEtcdIsRefused(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.running(t, ""), t.Context()
	chain, key := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "the certificate", func() bool { return n.has("x.test", chain) })
	crt, private, _ := files("ca", "x.test")
	_, otherKey := pair(t, time.Hour, "x.test")
	otherChain, otherChainKey := pair(t, time.Hour, "y.test")
	stale, staleKey := pair(t, -time.Minute, "x.test")
	otherRing := ringOf(t, seal.NewKey())
	ring, err := seal.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, value string) {
		t.Helper()
		if _, err := c.raw.Put(ctx, "/sluice/acme/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	sealed := func(r *seal.Ring, key string, value []byte) string {
		t.Helper()
		text, err := r.Seal("acme/"+key, value, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, tt := range []struct {
		name string
		do   func()
		want string
	}{
		{"the key is gone", func() {
			if _, err := c.raw.Delete(ctx, "/sluice/acme/"+private); err != nil {
				t.Fatal(err)
			}
		}, "is torn: there is no acme/" + private},
		{"in clear", func() { put(private, string(key)) }, "it is not sealed"},
		{"cut", func() { put(private, sealed(ring, private, key)[:100]) }, "the seal does not match"},
		{"another's key", func() { put(private, sealed(ring, private, otherKey)) }, "private key does not match public key"},
		{"sealed for another place", func() { put(private, sealed(ring, crt, key)) }, "the seal does not match"},
		{"sealed with a key that is not here", func() { put(private, sealed(otherRing, private, key)) }, "it is sealed with cluster key " + otherRing.Active()},
		{"of another name", func() { put(private, sealed(ring, private, otherChainKey)); put(crt, sealed(ring, crt, otherChain)) }, "is for another name"},
		{"expired", func() { put(private, sealed(ring, private, staleKey)); put(crt, sealed(ring, crt, stale)) }, "has expired at"},
	} {
		tt.do()
		n.await(t, tt.name, func() bool {
			err := n.StoredTrouble("x.test")
			return err != nil && strings.Contains(err.Error(), tt.want)
		})
		if !n.has("x.test", chain) || n.Stored("x.test")[0].Gone {
			t.Errorf("%s: the last good one is gone", tt.name)
		}
		if got := n.metric(t, "sluice_certs_stored_refused"); got != 1 {
			t.Errorf("%s: %v refused", tt.name, got)
		}
		if strings.Contains(n.StoredTrouble("x.test").Error(), "PRIVATE") {
			t.Errorf("%s: the trouble quotes a key", tt.name)
		}
	}
	fresh, _ := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "a good one", func() bool { return n.has("x.test", fresh) })
	if err := n.StoredTrouble("x.test"); err != nil || n.metric(t, "sluice_certs_stored_refused") != 0 {
		t.Errorf("the trouble stays: %v", err)
	}
}

func ringOf(t testing.TB, keys ...seal.Key) *seal.Ring {
	t.Helper()
	r, err := seal.Parse(seal.FormatFile(keys))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBadValuesAreRefused is the same of shared values.
func TestBadValuesAreRefused(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.running(t, ""), t.Context()
	rev, err := n.Swap(ctx, "shared/tickets", 0, []byte("good"))
	if err != nil {
		t.Fatal(err)
	}
	n.await(t, "the value", func() bool { v, ok := n.Peek("shared/tickets"); return ok && v.Rev == rev })
	put, err := c.raw.Put(ctx, "/sluice/acme/shared/tickets", "clear")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Swap(ctx, "attempts/a", 0, []byte("1")); err != nil { // comes after it
		t.Fatal(err)
	}
	n.await(t, "what came after", func() bool { _, ok := n.Peek("attempts/a"); return ok })
	n.await(t, "that it is refused", func() bool { return n.metric(t, "sluice_certs_stored_refused") == 1 })
	if v, ok := n.Peek("shared/tickets"); !ok || string(v.Data) != "good" {
		t.Errorf("Peek = %+v, %v", v, ok)
	}
	if _, err := n.Swap(ctx, "shared/tickets", put.Header.Revision, []byte("mended")); err != nil {
		t.Fatal(err)
	}
	n.await(t, "the mended one", func() bool { v, _ := n.Peek("shared/tickets"); return string(v.Data) == "mended" })
	if got := n.metric(t, "sluice_certs_stored_refused"); got != 0 {
		t.Errorf("%v refused", got)
	}
}

// TestDeletedIsServedUntilItExpires deletes a certificate from etcd.
func TestDeletedIsServedUntilItExpires(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	n := c.running(t, dir)
	chain, _ := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "the certificate", func() bool { return n.has("x.test", chain) })
	if err := certs.Remove(t.Context(), n, n.Stored("x.test")[0]); err != nil {
		t.Fatal(err)
	}
	n.await(t, "the deletion", func() bool { return n.Stored("x.test")[0].Gone })
	if !n.has("x.test", chain) || n.StoredTrouble("x.test") != nil {
		t.Errorf("Stored = %+v, trouble %v", n.Stored("x.test"), n.StoredTrouble("x.test"))
	}
	n.Purge(time.Now().Add(59 * time.Minute))
	if len(n.Stored("x.test")) != 1 {
		t.Error("it was let go before it expired")
	}
	told := make(chan []string, 1)
	defer n.WatchStored(func(names []string) { told <- names })()
	n.Purge(time.Now().Add(61 * time.Minute))
	if names := <-told; len(n.Stored("x.test")) != 0 || len(n.StoredNames()) != 0 || names[0] != "x.test" {
		t.Errorf("it is there after it expired: %v", n.Stored("x.test"))
	}
	n.stop()
	if left := filesIn(t, dir); len(left) != 0 {
		for name := range left {
			if !strings.HasPrefix(name, "shared-cluster-key.") && !strings.HasPrefix(name, "shared-removed-") {
				t.Errorf("%s is left on disk", name)
			}
		}
	}
}

// TestDeletedWhileNobodyWatched deletes while the node is down.
func TestDeletedWhileNobodyWatched(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	n := c.running(t, dir)
	chain, _ := n.obtained(t, "ca", "x.test", time.Hour)
	if _, err := n.Swap(t.Context(), "shared/a", 0, []byte("1")); err != nil {
		t.Fatal(err)
	}
	n.await(t, "both", func() bool { _, ok := n.Peek("shared/a"); return ok && n.has("x.test", chain) })
	n.stop()
	if _, err := c.raw.Delete(t.Context(), "/sluice/acme/shared/a"); err != nil {
		t.Fatal(err)
	}
	if err := certs.Remove(t.Context(), n, n.Stored("x.test")[0]); err != nil {
		t.Fatal(err)
	}
	again := c.running(t, dir)
	again.await(t, "the deletions", func() bool {
		_, ok := again.Peek("shared/a")
		s := again.Stored("x.test")
		return !ok && len(s) == 1 && s[0].Gone && bytes.Equal(s[0].Chain, chain)
	})
}

// TestKeyComesLater starts a node without the key, which then gets it.
func TestKeyComesLater(t *testing.T) {
	c := startCluster(t)
	has := c.running(t, "")
	chain, _ := has.obtained(t, "ca", "x.test", time.Hour)
	has.await(t, "the key's mark", func() bool { _, ok := has.Peek("shared/cluster-key"); return ok })
	path := filepath.Join(t.TempDir(), "cluster.key")
	lacks := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile, cfg.MakeKey = path, true }).run(t)
	ring, err := seal.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	lacks.await(t, "the trouble", func() bool {
		err := lacks.StoredTrouble("x.test")
		return err != nil && strings.Contains(err.Error(), "it is sealed with cluster key "+ring.Active())
	})
	if err := lacks.Trouble(); err == nil || !strings.Contains(err.Error(), "copy the line that begins with "+ring.Active()+" to "+path) {
		t.Errorf("Trouble = %v", err)
	}
	if len(lacks.Stored("x.test")) != 0 {
		t.Error("it is served without the key")
	}
	if lacks.Blind() == nil || has.Blind() != nil {
		t.Errorf("the node without the key says that it serves what it can: %v, %v", lacks.Blind(), has.Blind())
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node has made a key of its own: %v", err)
	}
	if err := seal.WriteFile(path, ring.Keys(), false); err != nil {
		t.Fatal(err)
	}
	lacks.await(t, "the certificate", func() bool { return lacks.has("x.test", chain) })
	if err := lacks.Trouble(); err != nil || lacks.StoredTrouble("x.test") != nil || lacks.Blind() != nil {
		t.Errorf("the trouble stays: %v, %v, %v", err, lacks.StoredTrouble("x.test"), lacks.Blind())
	}
}

// TestKeyFileThatOthersCanRead has the file copied as scp without -p does it, and
// mended by what the node says.
func TestKeyFileThatOthersCanRead(t *testing.T) {
	c := startCluster(t)
	has := c.running(t, "")
	chain, _ := has.obtained(t, "ca", "x.test", time.Hour)
	text, err := os.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cluster.key")
	lacks := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile, cfg.MakeKey = path, true }).run(t)
	lacks.await(t, "the trouble", func() bool { return lacks.Trouble() != nil })
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, n := range []struct {
		*node
		path string
	}{{lacks, path}, {has, c.keyFile}} {
		if err := os.Chmod(n.path, 0o644); err != nil {
			t.Fatal(err)
		}
		n.await(t, "what is wrong with the file", func() bool {
			err := n.Trouble()
			return err != nil && strings.Contains(err.Error(), "chmod 600 "+n.path)
		})
		if err := os.Chmod(n.path, 0o600); err != nil {
			t.Fatal(err)
		}
		n.await(t, "the file to be read", func() bool { return n.Trouble() == nil })
	}
	lacks.await(t, "the certificate", func() bool { return lacks.has("x.test", chain) })
}

// TestOneKeyForACluster starts nodes without keys all at once: one makes a key,
// the others say which one they lack.
func TestOneKeyForACluster(t *testing.T) {
	c := startCluster(t)
	var nodes []*node
	var paths []string
	for i := range 4 {
		path := filepath.Join(t.TempDir(), "cluster.key")
		nodes = append(nodes, c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) {
			cfg.KeyFile, cfg.MakeKey, cfg.Node = path, true, fmt.Sprint("edge-", i)
		}))
		paths = append(paths, path)
	}
	for _, n := range nodes {
		n.run(t)
	}
	var first *seal.Ring
	for _, n := range nodes {
		n.await(t, "the mark of the key, or that it is lacking", func() bool {
			_, ok := n.Peek("shared/cluster-key")
			return ok || n.Trouble() != nil
		})
	}
	for i, path := range paths {
		ring, err := seal.ReadFile(path)
		if err != nil {
			continue
		}
		if first != nil {
			t.Errorf("two nodes have a key: %v and, of %d, %v", first, i, ring)
		}
		first = ring
	}
	if first == nil {
		t.Fatal("no node has a key")
	}
	lacking := 0
	for _, n := range nodes {
		if err := n.Trouble(); err != nil && strings.Contains(err.Error(), "lacks the cluster key "+first.Active()) {
			lacking++
		}
	}
	if lacking != 3 {
		t.Errorf("%d nodes say that they lack the key, want 3", lacking)
	}
}

// TestEveryHandshakeGoesOn renews a certificate over and over while it is
// looked up: there is always exactly one, whose key is its own.
func TestEveryHandshakeGoesOn(t *testing.T) {
	c := startCluster(t)
	a, b := c.running(t, ""), c.running(t, "")
	chain, _ := a.obtained(t, "ca", "x.test", time.Hour)
	b.await(t, "the first", func() bool { return b.has("x.test", chain) })
	done := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			s := b.Stored("x.test")
			if len(s) != 1 || b.StoredTrouble("x.test") != nil {
				t.Errorf("Stored has %d, trouble %v", len(s), b.StoredTrouble("x.test"))
				return
			}
			if _, err := tls.X509KeyPair(s[0].Chain, s[0].Key); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 20 {
		chain, _ = a.obtained(t, "ca", "x.test", time.Hour)
	}
	b.await(t, "the last", func() bool { return b.has("x.test", chain) })
	close(done)
	looking.Wait()
}

// What is served says the same as what is stored, but for the secrets.
func TestServed(t *testing.T) {
	c := startCluster(t)
	n := c.running(t, t.TempDir())
	n.obtained(t, "ca", "a.x.test", time.Hour)
	n.obtained(t, certs.Imported, "a.x.test", time.Hour)
	n.await(t, "both of them", func() bool { return len(n.Stored("a.x.test")) == 2 })
	stored, served := n.Stored("a.x.test"), n.Served("a.x.test")
	if len(served) != len(stored) {
		t.Fatalf("%d are served, %d stored", len(served), len(stored))
	}
	for i, s := range stored {
		is := served[i]
		if is.Chain != nil || is.Key != nil {
			t.Error("a secret is out of its seal")
		}
		if is.Certificate != s.Certificate || string(is.Meta) != string(s.Meta) || is.Rev != s.Rev || is.Issuer != s.Issuer || is.Name != s.Name ||
			!is.Modified.Equal(s.Modified) || is.Gone != s.Gone {
			t.Errorf("served: %+v\nstored: %+v", is, s)
		}
	}
	if got := n.Served("b.x.test"); got != nil {
		t.Errorf("of a name that there is not: %v", got)
	}
}
