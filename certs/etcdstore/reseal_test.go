package etcdstore_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/history"
)

// setKeys replaces the file of the cluster key.
func (c *cluster) setKeys(t testing.TB, keys ...seal.Key) {
	t.Helper()
	if err := seal.WriteFile(c.keyFile, keys, true); err != nil {
		t.Fatal(err)
	}
}

// TestKeyRotation goes the way of OPERATIONS.md, with a node that serves and
// writes all along: the new key as the second one, then as the first, then all
// sealed anew, then without the old one.
func TestKeyRotation(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	before, after := seal.NewKey(), seal.NewKey()
	c.setKeys(t, before)
	n := c.running(t, t.TempDir())
	var chains [][]byte
	for i := range 100 {
		name := fmt.Sprintf("n%d.x.test", i)
		chain, key := pair(t, time.Hour, name)
		if err := n.PutStored(ctx, &certs.Stored{Issuer: "ca", Name: name, Chain: chain, Key: key, Meta: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		chains = append(chains, chain)
	}
	if _, err := n.Swap(ctx, "limits/ca", 0, []byte("none")); err != nil {
		t.Fatal(err)
	}
	serves := func() bool {
		for i, chain := range chains {
			if !n.has(fmt.Sprintf("n%d.x.test", i), chain) {
				return false
			}
		}
		return true
	}
	n.await(t, "all certificates, and the mark", func() bool { _, ok := n.Peek("shared/cluster-key"); return ok && serves() })
	was := n.Stored("n7.x.test")[0]

	c.setKeys(t, before, after)
	if got, err := c.store(t).Reseal(ctx); err != nil || got.Done != 0 || len(got.Failed) != 0 || got.Before < 302 {
		t.Errorf("Reseal with the first key as it was: %+v, %v", got, err)
	}
	c.setKeys(t, after, before)
	done := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() { // by a node that has read the file or not
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			v, _ := n.Get(ctx, "shared/counter")
			if _, err := n.Swap(ctx, "shared/counter", v.Rev, []byte(fmt.Sprint(i))); err != nil && !strings.Contains(err.Error(), certs.ErrSwapped.Error()) {
				t.Error(err)
				return
			}
		}
	})
	called, cancel := context.WithCancel(ctx)
	cancel()
	s := c.store(t)
	if _, err := s.Reseal(called); err == nil {
		t.Error("Reseal that was called off says that it is done")
	}
	got, err := s.Reseal(ctx)
	if err != nil || len(got.Failed) != 0 || got.Done == 0 {
		t.Errorf("Reseal = %+v, %v", got, err)
	}
	// Until the node has read the file too, it may write with the old key.
	n.await(t, "the node to seal with the new key", func() bool {
		use, err := s.KeyUse(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if use[before.ID()] > 0 {
			if _, err := s.Reseal(ctx); err != nil && !strings.Contains(err.Error(), "run it again") {
				t.Fatal(err)
			}
		}
		return use[before.ID()] == 0 && use[after.ID()] >= 303
	})
	close(done)
	writing.Wait()
	if got, err := s.Reseal(ctx); err != nil || got.Done != 0 {
		t.Errorf("Reseal of what is sealed anew: %+v, %v", got, err)
	}
	n.await(t, "the certificates sealed anew", func() bool { return n.Stored("n7.x.test")[0].Rev > was.Rev })
	now := n.Stored("n7.x.test")[0]
	if now.Certificate != was.Certificate || !now.Modified.Equal(was.Modified) || !bytes.Equal(now.Key, was.Key) {
		t.Error("sealing anew has made another certificate of it")
	}

	c.setKeys(t, after)
	fresh := c.running(t, "")
	fresh.await(t, "all of it with the new key alone", func() bool {
		for i, chain := range chains {
			if !fresh.has(fmt.Sprintf("n%d.x.test", i), chain) {
				return false
			}
		}
		return fresh.Trouble() == nil
	})
	if !serves() || n.Trouble() != nil {
		t.Errorf("the node that served all along does not: %v", n.Trouble())
	}
}

// TestResealReachesEnvironments has secrets that are members of another value, as
// control/envs writes them: one for each service.
func TestResealReachesEnvironments(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	sealed, err := s.SealSecret(ctx, "envs/a", []byte("password"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.SealSecret(ctx, "envs/a", []byte("token"))
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString
	value := fmt.Sprintf(`{"backend": "10.0.3.17", "services": {"ssh": {"port": 20022, "secrets": %q}, "web": {}, "jupyter": {"secrets": %q, "port": 20023}}}`,
		text(sealed), text(other))
	for key, value := range map[string]string{"envs/a": value, "envs/b": `{"services": {}}`, "envs/c": "no JSON"} {
		if _, err := c.raw.Put(ctx, "/sluice/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := seal.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	next := seal.NewKey()
	c.setKeys(t, next, ring.Keys()[0])
	if got, err := c.store(t).Reseal(ctx); err != nil || got.Done != 2 || len(got.Failed) != 0 {
		t.Fatalf("Reseal = %+v, %v; want the secret and the mark", got, err)
	}
	c.setKeys(t, next)
	s = c.store(t)
	kv, err := s.client.ReadKey(ctx, "envs/a")
	if err != nil {
		t.Fatal(err)
	}
	var now struct {
		Services map[string]struct{ Secrets []byte }
	}
	if err := json.Unmarshal(kv.Value, &now); err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string]string{"ssh": "password", "jupyter": "token"} {
		if plain, err := s.OpenSecret("envs/a", now.Services[service].Secrets); err != nil || string(plain) != want {
			t.Errorf("OpenSecret of %s = %q, %v", service, plain, err)
		}
	}
	want := strings.NewReplacer(text(sealed), text(now.Services["ssh"].Secrets), text(other), text(now.Services["jupyter"].Secrets)).Replace(value)
	if string(kv.Value) != want {
		t.Errorf("the value is %s, want all else as it was", kv.Value)
	}
	if use, err := s.KeyUse(ctx); err != nil || use[next.ID()] != 3 || len(use) != 1 {
		t.Errorf("KeyUse = %v, %v", use, err)
	}
}

// TestResealSaysWhatItCannot has values in etcd that do not open.
func TestResealSaysWhatItCannot(t *testing.T) {
	c := startCluster(t)
	s, ctx := c.store(t), t.Context()
	if err := s.Store(ctx, "a/good", []byte("1")); err != nil {
		t.Fatal(err)
	}
	foreign, err := ringOf(t, seal.NewKey()).Seal("acme/a/foreign", []byte("1"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"a/foreign": string(foreign), "a/clear": "1"} {
		if _, err := c.raw.Put(ctx, "/sluice/acme/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := seal.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	next := seal.NewKey()
	c.setKeys(t, next, ring.Keys()[0])
	got, err := c.store(t).Reseal(ctx)
	if err != nil || got.Done != 2 || len(got.Failed) != 2 { // with the mark of the key
		t.Fatalf("Reseal = %+v, %v", got, err)
	}
	for i, want := range []string{"acme/a/clear: it is not sealed", "acme/a/foreign: it is sealed with cluster key"} {
		if !strings.HasPrefix(got.Failed[i].Error(), want) {
			t.Errorf("failed: %v, want %s", got.Failed[i], want)
		}
	}
	use, err := s.KeyUse(ctx)
	if err != nil || use[next.ID()] != 2 || use[""] != 1 || len(use) != 3 {
		t.Errorf("KeyUse = %v, %v", use, err)
	}
}

// TestBackupsHoldNothingInClear looks into a backup of etcd and a snapshot.
func TestBackupsHoldNothingInClear(t *testing.T) {
	c := startCluster(t)
	n, ctx := c.node(t, c.server.Endpoint(), nil), t.Context()
	chain, key := pair(t, time.Hour, "x.test")
	if err := n.PutStored(ctx, &certs.Stored{Issuer: certs.Imported, Name: "x.test", Chain: chain, Key: key}); err != nil {
		t.Fatal(err)
	}
	if err := n.Store(ctx, "acme/ca/users/a/a.key", key); err != nil {
		t.Fatal(err)
	}
	if _, err := c.raw.Put(ctx, "/sluice/ports/tcp/20022", "127.0.0.1:22"); err != nil {
		t.Fatal(err)
	}
	var backup, snapshot bytes.Buffer
	if err := n.client.Backup(ctx, &backup); err != nil {
		t.Fatal(err)
	}
	taken, err := history.TakeSnapshot(ctx, n.client)
	if err != nil {
		t.Fatal(err)
	}
	if err := taken.Write(&snapshot); err != nil {
		t.Fatal(err)
	}
	for name, blob := range map[string][]byte{"backup": backup.Bytes(), "snapshot": snapshot.Bytes()} {
		if !bytes.Contains(blob, []byte("ports/tcp/20022")) {
			t.Errorf("the %s has not even the mapping", name)
		}
		for _, secret := range [][]byte{[]byte("PRIVATE KEY"), key[30:60]} {
			if bytes.Contains(blob, secret) {
				t.Errorf("the %s has a private key in clear", name)
			}
		}
	}
	if bytes.Contains(snapshot.Bytes(), []byte("acme/")) {
		t.Error("the snapshot has what nodes share")
	}
	changes, _, _, err := n.client.ChangesSince(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range changes {
		if strings.HasPrefix(ch.Key, "acme/") {
			t.Errorf("history would record %s", ch.Key)
		}
	}
}
