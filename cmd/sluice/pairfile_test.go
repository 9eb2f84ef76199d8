package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestPairFileFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	p := &pairFile{cert: filepath.Join(dir, "a.pem"), key: filepath.Join(dir, "a.key")}
	write := func(serial int64) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for path, block := range map[string]*pem.Block{p.cert: {Type: "CERTIFICATE", Bytes: der}, p.key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(serial, 0) // a clock that is too coarse for a test
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := time.Unix(1000, 0)
	want := func(serial int64, what string) {
		t.Helper()
		pair, err := p.load(now)
		if err != nil || pair.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("%s: %v, want number %d", what, err, serial)
		}
	}
	if _, err := p.load(now); err == nil {
		t.Error("no files are a pair")
	}
	write(1)
	want(1, "the first")
	write(2)
	want(1, "at the same moment")
	now = now.Add(pairLookEvery)
	want(2, "later")
	if err := os.WriteFile(p.cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(pairLookEvery)
	want(2, "while a file is being written")
	write(3)
	now = now.Add(-time.Hour)
	want(3, "with the clock set back")
}
