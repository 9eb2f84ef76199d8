package etcdstore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs/etcdstore"
)

// TestDamageOnDisk cuts and bends the file of a certificate.
func TestDamageOnDisk(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	n := c.running(t, dir)
	before, _ := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "the first", func() bool { return n.has("x.test", before) })
	n.stop()
	n = c.running(t, dir)
	after, _ := n.obtained(t, "ca", "x.test", time.Hour)
	n.await(t, "the second", func() bool { return n.has("x.test", after) })
	n.stop()
	var path string
	for name := range filesIn(t, dir) {
		if strings.HasPrefix(name, "certificates-ca-x.test.") && !strings.HasSuffix(name, ".prev") {
			path = filepath.Join(dir, name)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open := func() (*etcdstore.Store, *prometheus.Registry) {
		t.Helper()
		reg := prometheus.NewRegistry()
		s, err := etcdstore.New(etcdstore.Config{Client: n.client, KeyFile: c.keyFile, Dir: dir, Registerer: reg})
		if err != nil {
			t.Fatal(err)
		}
		return s, reg
	}
	serves := func(s *etcdstore.Store, chain []byte) bool {
		got := s.Stored("x.test")
		return len(got) == 1 && bytes.Equal(got[0].Chain, chain)
	}
	if s, _ := open(); !serves(s, after) {
		t.Error("what is whole is not served")
	}
	bent := bytes.Clone(whole)
	bent[len(bent)/2] ^= 1
	for what, blob := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)-1], "half": whole[:len(whole)/2], "bent": bent, "something else": []byte("hello")} {
		if err := os.WriteFile(path, blob, 0o600); err != nil {
			t.Fatal(err)
		}
		s, reg := open()
		if !serves(s, before) {
			t.Errorf("%s: the one of before is not served", what)
		}
		if got := metric(t, reg, "sluice_certs_stored_damaged_files_total"); got != 1 {
			t.Errorf("%s: %v damaged files are counted, want 1", what, got)
		}
	}
	if err := os.WriteFile(path+".prev", whole[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	if s, _ := open(); len(s.Stored("x.test")) != 0 {
		t.Error("damaged files are served")
	}
	// etcd mends it, on disk too.
	again := c.running(t, dir)
	again.await(t, "the certificate", func() bool { return again.has("x.test", after) })
	again.stop()
	if s, _ := open(); !serves(s, after) {
		t.Error("the file on disk was not mended")
	}
}

func FuzzDecodeUnit(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("sluice shared 1\n"))
	f.Add([]byte("sluice shared 1\n\x01a\x01\x01b\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		again, err := etcdstore.DecodeUnit(blob)
		if err != nil {
			return
		}
		if third, err := etcdstore.DecodeUnit(again); err != nil || !bytes.Equal(third, again) {
			t.Errorf("%x came back as %x, %v", again, third, err)
		}
	})
}
