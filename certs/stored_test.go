package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

// pair returns a certificate for names and its key, in PEM.
func pair(t testing.TB, names ...string) (chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pemCert(der), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func TestStorageInMemoryIsLikeFiles(t *testing.T) {
	certstest.StorageIsLikeFiles(t, certstest.NewStore(), 1000)
}

func TestParseStored(t *testing.T) {
	chain, key := pair(t, "x.test", "*.x.test")
	_, other := pair(t, "x.test")
	for _, name := range []string{"x.test", "*.x.test", "a.x.test"} {
		s, err := certs.ParseStored("ca", name, chain, key, nil)
		if err != nil || s.Name != name || s.Certificate.Leaf == nil {
			t.Errorf("ParseStored(%s) = %+v, %v", name, s, err)
		}
	}
	for _, tt := range []struct {
		name       string
		chain, key []byte
		want       string
	}{
		{"x.test", chain, other, "private key does not match public key"},
		{"x.test", nil, key, "failed to find any PEM data in certificate input"},
		{"x.test", chain, nil, "failed to find any PEM data in key input"},
		{"x.test", key, chain, "the stored certificate of x.test from ca is not usable"},
		{"y.test", chain, key, "is for another name"},
		{"*.y.test", chain, key, "is for another name"},
		{"x.test", bytes.ReplaceAll(chain, []byte("M"), []byte("N")), key, "is not usable"},
	} {
		_, err := certs.ParseStored("ca", tt.name, tt.chain, tt.key, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseStored(%s): %v, want %q", tt.name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE KEY-----") {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
}

func TestFileOf(t *testing.T) {
	keys := certmagic.StorageKeys
	for _, name := range []string{"x.test", "*.ssh.x-gpu.com"} {
		for key, suffix := range map[string]string{
			keys.SiteCert("ca-1", name): "crt", keys.SitePrivateKey("ca-1", name): "key", keys.SiteMeta("ca-1", name): "json",
		} {
			issuer, got, is, ok := certs.FileOf(key)
			if !ok || issuer != "ca-1" || got != name || is != suffix {
				t.Errorf("FileOf(%s) = %s, %s, %s, %v", key, issuer, got, is, ok)
			}
			if !strings.HasPrefix(key, certs.FolderOf("ca-1", name)+"/") {
				t.Errorf("FolderOf = %s, want that of %s", certs.FolderOf("ca-1", name), key)
			}
		}
	}
	for _, key := range []string{
		"", "certificates", "certificates/ca/x.test", "certificates/ca/x.test/y.test.crt", "certificates/ca/x.test/x.test.pem",
		"certificates/ca/x.test/x.test.key.compromised", "certificates//x.test/x.test.crt", "acme/ca/users/a/a.key", "certificates/ca/a/b/b.crt",
		"certificates/ca/*.x.test/*.x.test.crt", "certificates/ca/X.test/X.test.crt", "certificates/CA/x.test/x.test.crt", // not how they are stored
	} {
		if _, _, _, ok := certs.FileOf(key); ok {
			t.Errorf("FileOf(%q) takes it for a certificate's", key)
		}
	}
}

func TestSharedInMemory(t *testing.T) {
	s, ctx := certstest.NewStore(), t.Context()
	told := make(chan string, 10)
	stop := s.WatchShared("shared/", func(key string) { told <- key })
	defer stop()
	if _, err := s.Get(ctx, "shared/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing: %v", err)
	}
	rev, err := s.Swap(ctx, "shared/a", 0, []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if key := <-told; key != "shared/a" {
		t.Errorf("told of %q", key)
	}
	if _, err := s.Swap(ctx, "shared/a", 0, []byte("2")); !errors.Is(err, certs.ErrSwapped) {
		t.Errorf("Swap of what there is as if there were nothing: %v", err)
	}
	if v, ok := s.Peek("shared/a"); !ok || string(v.Data) != "1" || v.Rev != rev {
		t.Errorf("Peek = %+v, %v", v, ok)
	}
	if _, err := s.Swap(ctx, "shared/a", rev, nil); err != nil {
		t.Error(err)
	}
	if _, ok := s.Peek("shared/a"); ok {
		t.Error("a deleted value is there")
	}
	for _, key := range []string{"", "shared", "shared/", "other/a", "shared/../a", "shared/a/"} {
		if _, err := s.Swap(ctx, key, 0, []byte("1")); err == nil {
			t.Errorf("Swap takes the key %q", key)
		}
	}
}

func TestShelfInMemory(t *testing.T) {
	s, ctx := certstest.NewStore(), t.Context()
	told := make(chan []string, 10)
	stop := s.WatchStored(func(names []string) { told <- names })
	defer stop()
	keys := certmagic.StorageKeys
	chain, key := pair(t, "*.x.test")
	for path, value := range map[string][]byte{keys.SitePrivateKey("ca", "*.x.test"): key, keys.SiteCert("ca", "*.x.test"): chain} {
		if err := s.Store(ctx, path, value); err != nil {
			t.Fatal(err)
		}
		if len(s.Stored("*.x.test")) != 0 {
			t.Error("half a certificate is on the shelf")
		}
	}
	if err := s.Store(ctx, keys.SiteMeta("ca", "*.x.test"), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if names := <-told; len(names) != 1 || names[0] != "*.x.test" {
		t.Errorf("told of %v", names)
	}
	good := s.Stored("*.x.test")
	if len(good) != 1 || good[0].Issuer != "ca" || !bytes.Equal(good[0].Key, key) {
		t.Fatalf("Stored = %+v", good)
	}
	s.Tear(keys.SiteCert("ca", "*.x.test"), chain[:len(chain)/2])
	<-told
	if now := s.Stored("*.x.test"); len(now) != 1 || now[0] != good[0] || s.StoredTrouble("*.x.test") == nil {
		t.Errorf("after it was torn: %+v, trouble %v; want the last good one and a trouble", now, s.StoredTrouble("*.x.test"))
	}
	fresh, freshKey := pair(t, "*.x.test")
	if err := s.PutStored(ctx, &certs.Stored{Issuer: "ca", Name: "*.x.test", Chain: fresh, Key: freshKey}); err != nil {
		t.Fatal(err)
	}
	<-told
	now := s.Stored("*.x.test")
	if len(now) != 1 || !bytes.Equal(now[0].Chain, fresh) || now[0].Rev <= good[0].Rev || s.StoredTrouble("*.x.test") != nil {
		t.Errorf("after another was stored: %+v, trouble %v", now, s.StoredTrouble("*.x.test"))
	}
	if err := s.Delete(ctx, certs.FolderOf("ca", "*.x.test")); err != nil {
		t.Fatal(err)
	}
	<-told
	if now := s.Stored("*.x.test"); len(now) != 1 || !now[0].Gone {
		t.Errorf("after it was deleted: %+v, want it still, and Gone", now)
	}
}
