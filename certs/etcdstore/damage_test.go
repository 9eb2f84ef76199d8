package etcdstore_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
)

// TestDamagedCountsAsNone damages a file of a certificate in etcd: whoever orders
// meets none, and makes another. One whose key only this node lacks is there.
func TestDamagedCountsAsNone(t *testing.T) {
	c := startCluster(t)
	n := c.running(t, "")
	chain, _ := n.obtained(t, "ca", "x.test", time.Hour)
	whole := func() { // or the watch brings good and bad at once
		t.Helper()
		n.await(t, "the certificate", func() bool { return n.has("x.test", chain) && n.StoredTrouble("x.test") == nil })
	}
	whole()
	ctx := t.Context()
	crt, key, meta := files("ca", "x.test")
	for _, file := range []string{crt, key, meta} {
		kv, err := n.client.ReadKey(ctx, "acme/"+file)
		if err != nil {
			t.Fatal(err)
		}
		flipped := []byte(string(kv.Value))
		flipped[len(flipped)-20] ^= 1
		for _, damage := range []string{"garbage", string(flipped), string(kv.Value[:40])} {
			if _, err := c.raw.Put(ctx, "/sluice/acme/"+file, damage); err != nil {
				t.Fatal(err)
			}
			_, err := n.Load(ctx, file)
			if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "read acme/"+file+": it ") || n.Exists(ctx, file) {
				t.Errorf("%s, damaged: %v, exists %v", file, err, n.Exists(ctx, file))
			}
			if n.Lacking("x.test") != nil {
				t.Errorf("a node that has the key is told that it lacks it: %v", n.Lacking("x.test"))
			}
		}
		if all, err := certs.LoadAllStored(ctx, n, "x.test"); err != nil || file != meta && len(all) > 0 {
			t.Errorf("%s damaged: %d certificates, %v", file, len(all), err)
		}
		if _, err := c.raw.Put(ctx, "/sluice/acme/"+file, string(kv.Value)); err != nil {
			t.Fatal(err)
		}
		whole()
	}
	foreign, err := ringOf(t, seal.NewKey()).Seal("acme/"+key, []byte("1"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.raw.Put(ctx, "/sluice/acme/"+key, string(foreign)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Load(ctx, key); errors.Is(err, fs.ErrNotExist) || !n.Exists(ctx, key) {
		t.Errorf("sealed with a key that this node lacks: %v, exists %v", err, n.Exists(ctx, key))
	}
	n.await(t, "that it lacks the key", func() bool { return n.Lacking("x.test") != nil })
	if !n.has("x.test", chain) {
		t.Error("the last good one is not served")
	}
}

// TestFolderThatIsNone has somebody write a wildcard as it is not written in keys.
func TestFolderThatIsNone(t *testing.T) {
	c := startCluster(t)
	if _, err := c.raw.Put(t.Context(), "/sluice/acme/certificates/ca/*.a.test/*.a.test.crt", "junk"); err != nil {
		t.Fatal(err)
	}
	n := c.running(t, "")
	chain, _ := n.obtained(t, "ca", "*.a.test", time.Hour)
	n.await(t, "the certificate", func() bool { return n.has("*.a.test", chain) })
	if err := n.StoredTrouble("*.a.test"); err != nil {
		t.Error(err)
	}
}

// TestDamagedSharedValues has whoever reads one before an order find it empty, and
// write over it.
func TestDamagedSharedValues(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.running(t, ""), t.Context()
	for _, key := range []string{certs.AttemptsKey("a.x.test"), "limits/ca", "limits/ca/a.x.test", "shared/tickets"} {
		if _, err := c.raw.Put(ctx, "/sluice/acme/"+key, "junk"); err != nil {
			t.Fatal(err)
		}
		v, err := n.Get(ctx, key)
		if err != nil || len(v.Data) > 0 || v.Rev == 0 {
			t.Fatalf("%s: %+v, %v", key, v, err)
		}
		if _, err := n.Swap(ctx, key, v.Rev, []byte("good")); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if v, err := n.Get(ctx, key); err != nil || string(v.Data) != "good" {
			t.Errorf("%s: %+v, %v", key, v, err)
		}
	}
}
