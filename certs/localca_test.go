package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
)

func newLocal(t *testing.T, dir string) *certs.Manager {
	t.Helper()
	m, err := certs.New(alone(certs.Config{LocalCA: true, DataDir: dir}))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// caPool returns a pool with the root that clients are given.
func caPool(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	blob, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(blob) {
		t.Fatal("ca.pem has no certificate in it")
	}
	return pool
}

func hello(name string) *tls.ClientHelloInfo { return &tls.ClientHelloInfo{ServerName: name} }

// mustGet returns the certificate for a server name, already checked against roots.
func mustGet(t *testing.T, m *certs.Manager, name string, roots *x509.CertPool) *tls.Certificate {
	t.Helper()
	cert, err := m.GetCertificate(hello(name))
	if err != nil {
		t.Fatalf("GetCertificate(%q): %v", name, err)
	}
	if err := verify(cert, name, roots); err != nil {
		t.Fatalf("verify the certificate for %q: %v", name, err)
	}
	return cert
}

// verify says why a client that trusts roots would not believe cert.
func verify(cert *tls.Certificate, name string, roots *x509.CertPool) error {
	inter := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		inter.AddCert(c)
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: inter})
	return err
}

func TestLocalCASignsAnyName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data") // does not exist yet
	m := newLocal(t, dir)
	roots := caPool(t, dir)
	for _, name := range []string{"demo.localhost", "localhost", "env-6hif.remotegpu.com", "my_app.localhost", "xn--bcher-kva.example.com"} {
		cert := mustGet(t, m, name, roots)
		key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
		if !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key is %T, want ECDSA P-256", name, cert.PrivateKey)
		}
		if life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore); life > 90*24*time.Hour {
			t.Errorf("%s: holds for %v, want at most 90 days", name, life)
		}
	}
	if a, b := mustGet(t, m, "demo.localhost", roots), mustGet(t, m, "DEMO.localhost", roots); a != b {
		t.Error("two handshakes for one name got two certificates")
	}
}

func TestLocalCARefusesWhatIsNoName(t *testing.T) {
	m := newLocal(t, t.TempDir())
	for _, name := range []string{"a b", "-a.test", "a..b", "a.test.", "*.a.test", "1.2.3.4", "::1", "a\x00b", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 130) + "test"} {
		_, err := m.GetCertificate(hello(name))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("GetCertificate(%q): error = %v, want one that names it", name, err)
		}
	}
}

// A client that dials an address sends no server name.
func TestLocalCASignsAddresses(t *testing.T) {
	dir := t.TempDir()
	m := newLocal(t, dir)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("no %s here: %v", addr, err)
			continue
		}
		srv := tls.NewListener(ln, &tls.Config{GetCertificate: m.GetCertificate})
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := srv.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.(*tls.Conn).Handshake()
		})
		host, _, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: host, RootCAs: caPool(t, dir)})
		if err != nil {
			t.Errorf("dial %s: %v", ln.Addr(), err)
		} else {
			c.Close()
		}
		ln.Close()
		wg.Wait()
	}
	if _, err := m.GetCertificate(hello("")); err == nil || !strings.Contains(err.Error(), "the client named no server") {
		t.Errorf("without name and connection: error = %v, want one that says so", err)
	}
}

func TestLocalCAIsKept(t *testing.T) {
	dir := t.TempDir()
	mustGet(t, newLocal(t, dir), "a.test", caPool(t, dir))
	before := readCA(t, dir)
	for name, want := range map[string]os.FileMode{"ca.pem": 0o644, "ca.key": 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, fi.Mode().Perm(), err, want)
		}
	}
	roots := caPool(t, dir)
	mustGet(t, newLocal(t, dir), "a.test", roots)
	if after := readCA(t, dir); !bytes.Equal(before, after) {
		t.Error("a second start changed the CA")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("temporary files left behind: %v", left)
	}
}

func readCA(t *testing.T, dir string) []byte {
	t.Helper()
	var all []byte
	for _, name := range []string{"ca.pem", "ca.key"} {
		blob, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, blob...)
	}
	return all
}

// A first start that was cut off between the two files is made up for.
func TestLocalCAFirstStartCutOff(t *testing.T) {
	dir := t.TempDir()
	newLocal(t, dir)
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	mustGet(t, newLocal(t, dir), "a.test", caPool(t, dir))
}

func TestLocalCARefusesBadFiles(t *testing.T) {
	other := t.TempDir()
	newLocal(t, other)
	copyFrom := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			blob, err := os.ReadFile(filepath.Join(other, name))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, name, blob)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  string
	}{
		{"another key", copyFrom("ca.key"), "does not belong to the key"},
		{"another certificate", copyFrom("ca.pem"), "does not belong to the key"},
		{"no key", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "ca.key")) }, "is there but its key"},
		{"empty key", func(t *testing.T, dir string) { write(t, dir, "ca.key", nil) }, "ca.key: no private key in it"},
		{"empty certificate", func(t *testing.T, dir string) { write(t, dir, "ca.pem", nil) }, "ca.pem: no certificate in it"},
		{"torn key", func(t *testing.T, dir string) {
			write(t, dir, "ca.key", []byte("-----BEGIN PRIVATE KEY-----\nTUlJ\n-----END PRIVATE KEY-----\n"))
		}, "ca.key: parse private key"},
		{"a leaf", func(t *testing.T, dir string) {
			m := newLocal(t, dir)
			cert, err := m.GetCertificate(hello("a.test"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, "ca.pem", pemCert(cert.Certificate[0]))
		}, "ca.pem: it is not the certificate of a CA"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			newLocal(t, dir)
			tt.spoil(t, dir)
			_, err := certs.New(alone(certs.Config{LocalCA: true, DataDir: dir}))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "restore both files, or delete both") {
				t.Errorf("error = %v\nwant one that says %q and what to do", err, tt.want)
			}
		})
	}
}

func write(t *testing.T, dir, name string, blob []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), blob, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLeavesAreBounded(t *testing.T) {
	dir := t.TempDir()
	m := newLocal(t, dir)
	m.LeavesForTest(3, time.Now)
	roots := caPool(t, dir)
	first := mustGet(t, m, "a.test", roots)
	for _, name := range []string{"b.test", "c.test", "a.test", "d.test"} { // d pushes b out, not a
		mustGet(t, m, name, roots)
	}
	if got := m.Leaves(); got != 3 {
		t.Errorf("%d leaves kept, want 3", got)
	}
	if mustGet(t, m, "a.test", roots) != first {
		t.Error("the leaf that was asked for again was dropped")
	}
	for i := range 100 {
		mustGet(t, m, fmt.Sprintf("n%d.test", i), roots)
	}
	if got := m.Leaves(); got != 3 {
		t.Errorf("%d leaves kept, want 3", got)
	}
}

func TestLeafIsRefreshed(t *testing.T) {
	dir := t.TempDir()
	m := newLocal(t, dir)
	var ahead time.Duration
	m.LeavesForTest(10, func() time.Time { return time.Now().Add(ahead) })
	first := mustGet(t, m, "a.test", caPool(t, dir))
	ahead = 59 * 24 * time.Hour
	if mustGet(t, m, "a.test", caPool(t, dir)) != first {
		t.Error("another leaf after 59 days, want the same")
	}
	ahead = 61 * 24 * time.Hour
	second, err := m.GetCertificate(hello("a.test"))
	if err != nil {
		t.Fatal(err)
	}
	if second == first || !second.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Errorf("after 61 days the leaf holds until %v, want later than %v", second.Leaf.NotAfter, first.Leaf.NotAfter)
	}
}

// Clients that come at once for one name share a signature.
func TestLeafIsSignedOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := certs.New(alone(certs.Config{LocalCA: true, DataDir: t.TempDir(), Registerer: reg}))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 50)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = m.GetCertificate(hello(fmt.Sprintf("n%d.test", i%2))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range got {
		if got[i] != got[i%2] {
			t.Fatalf("handshake %d got a certificate of its own", i)
		}
	}
	if n := metric(t, reg, "sluice_certs_local_signatures_total", ""); n != 2 {
		t.Errorf("%v signatures, want 2", n)
	}
}

func BenchmarkLocalLeafCached(b *testing.B) {
	m, err := certs.New(alone(certs.Config{LocalCA: true, DataDir: b.TempDir()}))
	if err != nil {
		b.Fatal(err)
	}
	h := hello("demo.localhost")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.GetCertificate(h); err != nil {
			b.Fatal(err)
		}
	}
}
