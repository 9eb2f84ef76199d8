package etcdstore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/certs/seal"
)

// TestTakeUp brings the files of an earlier version to where they are shared.
func TestTakeUp(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.running(t, ""), t.Context()
	dir := filepath.Join(t.TempDir(), "certificates")
	old := &certmagic.FileStorage{Path: dir}
	put := func(key string, value []byte) {
		t.Helper()
		if err := old.Store(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	chain, key := pair(t, time.Hour, "*.x.test")
	crt, private, meta := files("ca", "*.x.test")
	put(crt, chain)
	put(private, key)
	put(meta, []byte("{}"))
	put("acme/ca/users/ops@x.test/ops.json", []byte(`{"status":"valid","contact":["mailto:ops@x.test"],"location":"https://ca.test/acct/7"}`))
	put("acme/ca/users/ops@x.test/ops.key", key)
	put("locks/x.lock", []byte("{}"))
	there, thereKey := pair(t, time.Hour, "y.test") // which another node has shared before
	if err := n.PutStored(ctx, &certs.Stored{Issuer: "ca", Name: "y.test", Chain: there, Key: thereKey}); err != nil {
		t.Fatal(err)
	}
	own, ownKey := pair(t, time.Hour, "y.test")
	ycrt, yprivate, _ := files("ca", "y.test")
	put(ycrt, own)
	put(yprivate, ownKey)
	if err := n.TakeUp(ctx, dir); err != nil {
		t.Fatal(err)
	}
	n.await(t, "both", func() bool { return n.has("*.x.test", chain) && n.has("y.test", there) })
	if got := n.Stored("*.x.test")[0]; !bytes.Equal(got.Key, key) || string(got.Meta) != "{}" {
		t.Errorf("Stored = %+v", got)
	}
	var account struct {
		Account struct{ Location string }
		Key     string
	}
	got, err := n.Load(ctx, "users/ca/ops@x.test.json") // as an order looks for it
	if err == nil {
		err = json.Unmarshal(got, &account)
	}
	if err != nil || account.Account.Location != "https://ca.test/acct/7" || account.Key != string(key) {
		t.Errorf("the account: %+v, %v", account, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the files in clear are left: %v", err)
	}
	if err := n.TakeUp(ctx, dir); err != nil { // there is nothing to do
		t.Error(err)
	}
}

// TestTakeUpLeavesWhatItCannotUse has a key that is not its chain's, and one
// without its account.
func TestTakeUpLeavesWhatItCannotUse(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.running(t, ""), t.Context()
	dir := t.TempDir()
	old := &certmagic.FileStorage{Path: dir}
	chain, _ := pair(t, time.Hour, "x.test")
	_, key := pair(t, time.Hour, "x.test")
	crt, private, _ := files("ca", "x.test")
	for file, value := range map[string][]byte{crt: chain, private: key, "acme/ca/users/default/default.key": []byte("account")} {
		if err := old.Store(ctx, file, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.TakeUp(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if !old.Exists(ctx, crt) || !old.Exists(ctx, private) || !old.Exists(ctx, "acme/ca/users/default/default.key") {
		t.Error("what was in files and is not usable is not left there")
	}
	if len(c.kvs(t, "acme/certificates/")) != 0 {
		t.Error("a certificate that is not usable was shared")
	}
}

// TestKeyOfANodeThatDied has the node die between marking its key and taking it
// into use.
func TestKeyOfANodeThatDied(t *testing.T) {
	c := startCluster(t)
	path := filepath.Join(t.TempDir(), "cluster.key")
	first := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile, cfg.MakeKey = path, true }).run(t)
	// Before the cluster has a key, what is to be sealed waits for it.
	if _, err := first.Swap(t.Context(), "shared/a", 0, []byte("1")); err != nil {
		t.Fatal(err)
	}
	first.stop()
	ring, err := seal.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".new"); err != nil {
		t.Fatal(err)
	}
	again := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile, cfg.MakeKey = path, true }).run(t)
	again.await(t, "the value", func() bool { v, ok := again.Peek("shared/a"); return ok && string(v.Data) == "1" })
	if now, err := seal.ReadFile(path); err != nil || now.Active() != ring.Active() {
		t.Errorf("the key is %v, %v, want %v", now, err, ring)
	}
}

// TestAnothersKeySealsNothing gives a node a key that is not the cluster's.
func TestAnothersKeySealsNothing(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	if _, err := c.store(t).Swap(ctx, "shared/a", 0, []byte("1")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cluster.key")
	if err := seal.WriteFile(path, []seal.Key{seal.NewKey()}, false); err != nil {
		t.Fatal(err)
	}
	stranger := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile = path })
	_, err := stranger.Swap(ctx, "shared/b", 0, []byte("2"))
	if !errors.Is(err, seal.ErrNoKey) || !strings.Contains(err.Error(), "this node lacks the cluster key") {
		t.Errorf("Swap: %v", err)
	}
	if got := c.kvs(t, "acme/"); len(got) != 1 {
		t.Errorf("etcd has %v, want what the first node wrote", got)
	}
}

// TestMarkIsMadeAgain deletes the mark of the cluster's key, as who empties etcd
// does: no node may then make another key.
func TestMarkIsMadeAgain(t *testing.T) {
	c := startCluster(t)
	n := c.running(t, "")
	marked := func() bool { _, ok := n.Peek("shared/cluster-key"); return ok }
	n.await(t, "the mark", marked)
	before, _ := n.Peek("shared/cluster-key")
	if _, err := c.raw.Delete(t.Context(), "/sluice/acme/shared/cluster-key"); err != nil {
		t.Fatal(err)
	}
	n.await(t, "another mark", func() bool { v, ok := n.Peek("shared/cluster-key"); return ok && v.Rev > before.Rev })
	if err := n.Trouble(); err != nil {
		t.Error(err)
	}
}
