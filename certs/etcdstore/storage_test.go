package etcdstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/certs/seal"
)

func TestStorageIsLikeFiles(t *testing.T) {
	certstest.StorageIsLikeFiles(t, startCluster(t).store(t), 400)
}

// TestNothingLiesInClear looks for what was stored in everything that etcd has.
func TestNothingLiesInClear(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	secret := []byte("a private key, or a ticket key, or an account")
	for _, key := range []string{"certificates/ca/x.test/x.test.key", "acme/ca/users/a/a.key", "rw_test_1"} {
		if err := s.Store(ctx, key, secret); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(ctx, key); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("Load(%s) = %q, %v", key, got, err)
		}
	}
	for _, key := range []string{"shared/tickets", "attempts/x.test", "limits/ca"} {
		if _, err := s.Swap(ctx, key, 0, secret); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := c.raw.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) < 6 {
		t.Errorf("etcd has %d keys, want 6 or more", len(resp.Kvs))
	}
	for _, kv := range resp.Kvs {
		if bytes.Contains(kv.Value, secret[:10]) {
			t.Errorf("%s holds it in clear", kv.Key)
		}
		if out, err := seal.Look(kv.Value); err != nil || out.Size < len(secret) {
			t.Errorf("%s is not sealed: %+v, %v", kv.Key, out, err)
		}
	}
}

// TestSealedForItsKey moves a sealed value to another key, and damages one.
func TestSealedForItsKey(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	if err := s.Store(ctx, "a/one", []byte("1")); err != nil {
		t.Fatal(err)
	}
	got, err := c.raw.Get(ctx, "/sluice/acme/a/one")
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"a/moved": string(got.Kvs[0].Value), "a/cut": "x", "a/empty": "", "a/clear": strings.Repeat("-----BEGIN", 20)} {
		if _, err := c.raw.Put(ctx, "/sluice/acme/"+key, value); err != nil {
			t.Fatal(err)
		}
		_, err := s.Load(ctx, key)
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "acme/"+key) {
			t.Errorf("Load(%s): %v, want why it cannot be read", key, err)
		}
	}
}

func TestKeysThatAreNone(t *testing.T) {
	s, ctx := startCluster(t).store(t), t.Context()
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../../b", "locks/x", "shared/x", "attempts", "limits/ca"} {
		if err := s.Store(ctx, key, nil); err == nil {
			t.Errorf("Store takes the key %q", key)
		}
		if err := s.Delete(ctx, key); err == nil {
			t.Errorf("Delete takes the key %q", key)
		}
	}
}

// TestItPrintsAsItsName has fmt print it, as certmagic does in its log.
func TestItPrintsAsItsName(t *testing.T) {
	s := startCluster(t).store(t)
	for _, verb := range []string{"%v", "%+v", "%s"} {
		if got := fmt.Sprintf(verb, s.store); got != "etcd, below acme/" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

func TestWithoutTheKey(t *testing.T) {
	c := startCluster(t)
	s := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.KeyFile += ".none" })
	err := s.Store(t.Context(), "a/b", []byte("1"))
	if !errors.Is(err, seal.ErrNoKey) || !strings.Contains(err.Error(), "sluice certs key generate") {
		t.Errorf("Store without the key: %v", err)
	}
	if len(c.kvs(t, "")) != 0 {
		t.Error("something was written")
	}
}

// TestLocksExclude has goroutines of several nodes take one lock in turn.
func TestLocksExclude(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	var inside, rounds atomic.Int32
	var all sync.WaitGroup
	for range 3 {
		// A machine that stands still for longer than a short lease would lose it.
		s := c.node(t, c.server.Endpoint(), func(cfg *etcdstore.Config) { cfg.LockTTL = time.Minute })
		for range 3 {
			all.Go(func() {
				for range 5 {
					if err := s.Lock(ctx, "one"); err != nil {
						t.Error(err)
						return
					}
					if inside.Add(1) != 1 {
						t.Error("two have the lock")
					}
					rounds.Add(1)
					inside.Add(-1)
					if err := s.Unlock(ctx, "one"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
	if rounds.Load() != 45 {
		t.Errorf("%d rounds, want 45", rounds.Load())
	}
	if left := c.kvs(t, "acme/locks/"); len(left) != 0 {
		t.Errorf("locks are left: %v", left)
	}
}

func TestTryLock(t *testing.T) {
	c := startCluster(t)
	a, b, ctx := c.store(t), c.store(t), t.Context()
	if ok, err := a.TryLock(ctx, "x"); !ok || err != nil {
		t.Fatalf("TryLock = %v, %v", ok, err)
	}
	for _, s := range []*node{a, b} { // in this process, and in the cluster
		if ok, err := s.TryLock(ctx, "x"); ok || err != nil {
			t.Errorf("TryLock of what another has = %v, %v", ok, err)
		}
	}
	if err := a.RenewLockLease(ctx, "x", 0); err != nil {
		t.Error(err)
	}
	if err := b.RenewLockLease(ctx, "x", 0); err == nil {
		t.Error("a node renews a lock that it does not have")
	}
	if err := b.Unlock(ctx, "x"); err == nil {
		t.Error("a node unlocks what it does not have")
	}
	if err := a.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
	if ok, err := b.TryLock(ctx, "x"); !ok || err != nil {
		t.Errorf("TryLock of what is free = %v, %v", ok, err)
	}
	if err := b.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
}

func TestLockHonoursItsContext(t *testing.T) {
	c := startCluster(t)
	a, b := c.store(t), c.store(t)
	if err := a.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, s := range []*node{a, b} {
		go func() { done <- s.Lock(ctx, "x") }()
	}
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Lock: %v", err)
		}
	}
	if err := a.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if err := b.Lock(t.Context(), "x"); err != nil { // whoever gave up left nothing behind
		t.Error(err)
	}
}

// TestLockOfADeadNode kills the process that has a lock.
func TestLockOfADeadNode(t *testing.T) {
	c := startCluster(t)
	other := c.child(t)
	if got := other.ask("lock", "issue_cert_x.test"); got != "ok" {
		t.Fatal(got)
	}
	if err := other.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.store(t).Lock(ctx, "issue_cert_x.test"); err != nil {
		t.Errorf("the lock outlives its owner: %v", err)
	}
}

// TestFrozenNode freezes a process in the middle of storing a certificate. Its
// lock goes to another one, and what it goes on to write when it wakes up is
// refused.
func TestFrozenNode(t *testing.T) {
	c := startCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const lock = "issue_cert_*.x.test"
	crt, key, meta := files("ca", "*.x.test")
	other := c.child(t)
	for _, words := range [][]string{{"lock", lock}, {"renew", lock}, {"store", key, "stale"}, {"store", crt, "stale"}} {
		if got := other.ask(words...); got != "ok" {
			t.Fatalf("%v: %s", words, got)
		}
	}
	if err := other.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s := c.store(t)
	if err := s.Lock(ctx, lock); err != nil {
		t.Fatalf("the lock of a frozen process: %v", err)
	}
	for _, file := range []string{key, crt, meta} { // in certmagic's order
		if err := s.Store(ctx, file, []byte("new")); err != nil {
			t.Fatal(err)
		}
	}
	before := c.kvs(t, "acme/certificates/")
	if len(before) != 3 {
		t.Fatalf("etcd has %v", before)
	}
	if err := other.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{
		{"store", meta, "stale"}, {"renew", lock},
	} {
		if got := other.ask(words...); got != "lost" {
			t.Errorf("%v by a process that has lost the lock: %s", words, got)
		}
	}
	for _, file := range []string{key, crt} { // as certmagic rolls back
		if got := other.ask("delete", file); got != "ok" {
			t.Errorf("delete of what was never written: %s", got)
		}
	}
	if got := other.ask("delete", key); got != "lost" {
		t.Errorf("delete of what another process wrote: %s", got)
	}
	if got := other.ask("unlock", lock); got != "ok" {
		t.Errorf("unlock of a lost lock: %s", got)
	}
	if after := c.kvs(t, "acme/certificates/"); len(after) != 3 || after[crt] != before[crt] || after[key] != before[key] {
		t.Errorf("etcd has %v, want %v", after, before)
	}
	if err := s.RenewLockLease(ctx, lock, 0); err != nil {
		t.Errorf("the lock was taken from its holder: %v", err)
	}
	if err := s.Unlock(ctx, lock); err != nil {
		t.Error(err)
	}
	if left := c.kvs(t, "acme/locks/"); len(left) != 0 {
		t.Errorf("locks are left: %v", left)
	}
}

// TestThreeFilesAreOne stores as certmagic does, and has another node watch.
func TestThreeFilesAreOne(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	crt, key, meta := files("ca", "x.test")
	if err := s.Lock(ctx, "issue_cert_x.test"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{key, crt} {
		if err := s.Store(ctx, file, []byte(file)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(ctx, file); err != nil || string(got) != file || !s.Exists(ctx, file) {
			t.Errorf("the writer does not see its own %s: %q, %v", file, got, err)
		}
		if info, err := s.Stat(ctx, file); err != nil || info.Size != int64(len(file)) || !info.IsTerminal {
			t.Errorf("Stat(%s) = %+v, %v", file, info, err)
		}
	}
	if list, err := s.List(ctx, "certificates/ca/x.test", false); err != nil || len(list) != 2 {
		t.Errorf("List = %v, %v", list, err)
	}
	if got := c.kvs(t, "acme/certificates/"); len(got) != 0 {
		t.Errorf("half a certificate is in etcd: %v", got)
	}
	if err := s.Store(ctx, meta, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	got := c.kvs(t, "acme/certificates/")
	if rev := got["acme/"+crt]; len(got) != 3 || got["acme/"+key] != rev || got["acme/"+meta] != rev {
		t.Errorf("etcd has %v, want three files of one revision", got)
	}
	// What certmagic stores anew of a certificate that stays.
	if err := s.Store(ctx, meta, []byte(`{"ari":1}`)); err != nil {
		t.Fatal(err)
	}
	if now := c.kvs(t, "acme/certificates/"); now["acme/"+crt] != got["acme/"+crt] || now["acme/"+meta] <= got["acme/"+meta] {
		t.Errorf("etcd has %v after the third file alone, before %v", now, got)
	}
	// Half of the next one.
	if err := s.Store(ctx, key, []byte("next")); err != nil {
		t.Fatal(err)
	}
	err := s.Unlock(ctx, "issue_cert_x.test")
	if err == nil || !strings.Contains(err.Error(), "only "+key+" was stored") {
		t.Errorf("Unlock with half a certificate: %v", err)
	}
	if value, err := s.Load(ctx, key); err != nil || string(value) != key {
		t.Errorf("Load of the key = %q, %v, want that of before", value, err)
	}
	if left := c.kvs(t, "acme/locks/"); len(left) != 0 {
		t.Errorf("locks are left: %v", left)
	}
	if err := s.Delete(ctx, certs.FolderOf("ca", "x.test")); err != nil {
		t.Error(err)
	}
	if left := c.kvs(t, "acme/"); len(left) != 0 {
		t.Errorf("etcd still has %v", left)
	}
}

func TestPutStored(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	chain, key := pair(t, 1e12, "x.test")
	_, other := pair(t, 1e12, "x.test")
	if err := s.PutStored(ctx, &certs.Stored{Issuer: certs.Imported, Name: "x.test", Chain: chain, Key: other}); err == nil {
		t.Error("a key that is not the chain's is taken")
	}
	if err := s.PutStored(ctx, &certs.Stored{Issuer: certs.Imported, Name: "x.test", Chain: chain, Key: key}); err != nil {
		t.Fatal(err)
	}
	got, err := certs.LoadStored(ctx, s, certs.Imported, "x.test")
	if err != nil || !bytes.Equal(got.Chain, chain) || !bytes.Equal(got.Key, key) || got.Meta != nil {
		t.Errorf("LoadStored = %+v, %v", got, err)
	}
	if _, err := certs.LoadStored(ctx, s, certs.Imported, "y.test"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadStored of nothing: %v", err)
	}
}

func TestSharedValues(t *testing.T) {
	c := startCluster(t)
	a, b, ctx := c.store(t), c.store(t), t.Context()
	if _, err := a.Get(ctx, "shared/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing: %v", err)
	}
	first, err := a.Swap(ctx, "shared/x", 0, []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Swap(ctx, "shared/x", 0, []byte("2")); !errors.Is(err, certs.ErrSwapped) {
		t.Errorf("Swap of nothing, where there is something: %v", err)
	}
	got, err := b.Get(ctx, "shared/x")
	if err != nil || string(got.Data) != "1" || got.Rev != first || got.Modified.IsZero() {
		t.Errorf("Get = %+v, %v", got, err)
	}
	second, err := b.Swap(ctx, "shared/x", first, []byte("2"))
	if err != nil || second <= first {
		t.Errorf("Swap = %d, %v", second, err)
	}
	if _, err := a.Swap(ctx, "shared/x", first, nil); !errors.Is(err, certs.ErrSwapped) {
		t.Errorf("deletion of what was changed: %v", err)
	}
	if _, err := a.Swap(ctx, "shared/x", second, nil); err != nil {
		t.Error(err)
	}
	if _, err := b.Get(ctx, "shared/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of what was deleted: %v", err)
	}
	if _, err := a.Swap(ctx, "certificates/x", 0, []byte("1")); err == nil {
		t.Error("Swap takes a key of certmagic's")
	}
}
