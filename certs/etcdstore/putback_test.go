package etcdstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
)

// issued returns a certificate that was issued some time ago.
func issued(t testing.TB, issuer, name string, ago time.Duration) *certs.Stored {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name},
		NotBefore: time.Now().Add(-ago), NotAfter: time.Now().Add(24*time.Hour - ago),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := certs.ParseStored(issuer, name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// backup returns all that etcd has of certificates.
func (c *cluster) backup(t testing.TB) map[string]string {
	t.Helper()
	resp, err := c.raw.Get(t.Context(), "/sluice/acme/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		if key := string(kv.Key); !strings.HasPrefix(key, "/sluice/acme/locks/") {
			all[key] = string(kv.Value)
		}
	}
	return all
}

// restore makes etcd have what a backup has, as far as certificates go.
func (c *cluster) restore(t testing.TB, backup map[string]string) {
	t.Helper()
	var ops []clientv3.Op
	for key := range c.backup(t) {
		if _, ok := backup[key]; !ok {
			ops = append(ops, clientv3.OpDelete(key))
		}
	}
	for key, value := range backup {
		ops = append(ops, clientv3.OpPut(key, value))
	}
	if _, err := c.raw.Txn(t.Context()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
}

// serves reports whether that certificate, and no other one, is served as it should.
func (n *node) serves(want *certs.Stored) bool {
	served := 0
	found := false
	for _, s := range n.Stored(want.Name) {
		if !s.Gone {
			served++
			found = found || s.Certificate.Leaf.Equal(want.Certificate.Leaf)
		}
	}
	return found && served == 1
}

// inEtcd returns the certificate that etcd has.
func (n *node) inEtcd(t testing.TB, s *certs.Stored) bool {
	t.Helper()
	is, err := certs.LoadStored(t.Context(), n, s.Issuer, s.Name)
	return err == nil && is.Certificate.Leaf.Equal(s.Certificate.Leaf)
}

func (n *node) put(t testing.TB, s *certs.Stored) {
	t.Helper()
	if err := n.PutStored(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.await(t, "what was stored", func() bool { return n.serves(s) })
}

// TestOlderFromABackup sets etcd back to before a renewal: nodes keep the renewed
// certificate, say so, and put it back.
func TestOlderFromABackup(t *testing.T) {
	c := startCluster(t)
	a, b, operator := c.running(t, t.TempDir()), c.running(t, t.TempDir()), c.store(t)
	older, newer := issued(t, "ca", "x.test", 2*time.Hour), issued(t, "ca", "x.test", time.Hour)
	a.put(t, older)
	backup := c.backup(t)
	a.put(t, newer)
	b.await(t, "the renewed one", func() bool { return b.serves(newer) })
	if err := operator.Lock(t.Context(), "issue_cert_x.test"); err != nil { // nobody puts it back yet
		t.Fatal(err)
	}
	c.restore(t, backup)
	for _, n := range []*node{a, b} {
		n.await(t, "that it is told", func() bool {
			err := n.StoredTrouble("x.test")
			return err != nil && strings.Contains(err.Error(), "etcd has an older certificate of x.test from ca, issued at ")
		})
		if !n.serves(newer) {
			t.Error("the older one is served")
		}
	}
	if err := operator.Unlock(t.Context(), "issue_cert_x.test"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		n.await(t, "the end of it", func() bool { return n.StoredTrouble("x.test") == nil && n.serves(newer) })
	}
	if !operator.inEtcd(t, newer) {
		t.Error("the newer one is not in etcd")
	}
	// What an operator imports is theirs to choose, however old.
	again := issued(t, "ca", "x.test", 3*time.Hour)
	a.put(t, again)
}

// TestRevokedFromABackup sets etcd back to before a certificate was revoked, and
// replaced by that of another authority.
func TestRevokedFromABackup(t *testing.T) {
	c := startCluster(t)
	a, operator := c.running(t, t.TempDir()), c.store(t)
	revoked, other := issued(t, "ca1", "x.test", time.Hour), issued(t, "ca2", "x.test", 2*time.Hour)
	a.put(t, revoked)
	backup := c.backup(t)
	if err := operator.PutStored(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := certs.Remove(t.Context(), operator, revoked); err != nil {
		t.Fatal(err)
	}
	a.await(t, "the revocation", func() bool { return a.serves(other) })
	c.restore(t, backup)
	a.await(t, "the other one, put back", func() bool {
		_, err := operator.Get(t.Context(), certs.RemovedKey(revoked.Certificate.Leaf))
		return err == nil && operator.inEtcd(t, other) && operator.inEtcd(t, revoked)
	})
	a.await(t, "the other one alone", func() bool { return a.serves(other) && a.StoredTrouble("x.test") == nil })
	fresh := c.running(t, "")
	fresh.await(t, "the other one alone, on a new node", func() bool { return fresh.serves(other) })
}

// TestLostKey takes the way out: another key in the file, and an empty folder. What
// the lost one sealed is served, and another certificate can be obtained.
func TestLostKey(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	n := c.running(t, dir)
	old := issued(t, "ca", "x.test", time.Hour)
	n.put(t, old)
	n.await(t, "the key's mark", func() bool { _, ok := n.Peek("shared/cluster-key"); return ok })
	lost, err := seal.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.WriteFile(c.keyFile, []seal.Key{seal.NewKey()}, true); err != nil {
		t.Fatal(err)
	}
	n.await(t, "what it lacks, and where the way out is", func() bool {
		err := n.Trouble()
		return err != nil && strings.Contains(err.Error(), "lacks the cluster key "+lost.Active()) && strings.Contains(err.Error(), "OPERATIONS.md")
	})
	if _, err := c.raw.Delete(t.Context(), "/sluice/acme/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	n.await(t, "that another is wanted", func() bool { return n.Trouble() == nil && n.Stored("x.test")[0].Gone })
	n.put(t, issued(t, "ca", "x.test", 0))
}

// TestEmptied deletes all that is shared of certificates.
func TestEmptied(t *testing.T) {
	c := startCluster(t)
	a, b, operator := c.running(t, t.TempDir()), c.running(t, t.TempDir()), c.store(t)
	all := []*certs.Stored{issued(t, "ca", "x.test", time.Hour), issued(t, "ca", "*.y.test", time.Hour), issued(t, certs.Imported, "z.test", time.Hour)}
	for _, s := range all {
		a.put(t, s)
		b.await(t, "it", func() bool { return b.serves(s) })
	}
	if _, err := c.raw.Delete(t.Context(), "/sluice/acme/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		a.await(t, s.Name+", put back", func() bool {
			if !a.serves(s) || !b.serves(s) {
				t.Fatalf("%s is not served as one that stays: another would be ordered", s.Name)
			}
			return operator.inEtcd(t, s)
		})
		for _, n := range []*node{a, b} {
			n.await(t, "the end of it", func() bool { return n.StoredTrouble(s.Name) == nil })
		}
		resp, err := c.raw.Get(t.Context(), "/sluice/acme/"+certs.FolderOf(s.Issuer, s.Name)+"/", clientv3.WithPrefix())
		if err != nil || len(resp.Kvs) != 3 {
			t.Fatalf("%d files of %s, %v", len(resp.Kvs), s.Name, err)
		}
		for _, kv := range resp.Kvs {
			if kv.Version != 1 {
				t.Errorf("%s was written %d times, want one node to put it back", kv.Key, kv.Version)
			}
		}
	}
}
