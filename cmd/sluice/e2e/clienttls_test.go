package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// signer signs certificates of clients and keeps all in files.
type signer struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	s := &signer{dir: t.TempDir()}
	s.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.ca = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Staff"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, s.ca, s.ca, s.key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	s.ca, _ = x509.ParseCertificate(der)
	writePEM(t, s.file("ca.pem"), "CERTIFICATE", der)
	return s
}

func (s *signer) file(name string) string { return filepath.Join(s.dir, name) }

// sign makes a client's certificate and returns its files.
func (s *signer) sign(t *testing.T, name string) (cert, key string) {
	t.Helper()
	s.last++
	private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1000 + s.last), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.ca, private.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(private)
	cert, key = s.file(name+".pem"), s.file(name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", keyDER)
	return cert, key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sclient runs openssl s_client against the node's https port and returns all
// that it says. input is sent first.
func (n *node) sclient(serverName, input string, args ...string) (string, error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-connect", loopback(n.HTTPS), "-servername", serverName,
		"-CAfile", filepath.Join(n.dir, "data", "ca.pem"), "-verify_return_error"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// curlTLS asks the node for a host with curl and returns the body and the status, 0
// where there was none.
func (n *node) curlTLS(host string, args ...string) (body string, status int, err error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "curl", append([]string{"-sS", "--cacert", filepath.Join(n.dir, "data", "ca.pem"), "-w", "\n%{http_code}",
		"--connect-to", fmt.Sprintf("::127.0.0.1:%d", n.HTTPS), n.url(host, "/")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("curl: %w: %s", err, &stderr)
	}
	i := bytes.LastIndexByte(out, '\n')
	fmt.Sscan(string(out[i+1:]), &status)
	return string(out[:max(i, 0)]), status, err
}

// TestTLSPolicyByOpenSSL has openssl speak what is spoken, and what is not.
func TestTLSPolicyByOpenSSL(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	strict := startNode(t, withYAML(`tls: {min_version: "1.3"}`))
	for name, tc := range map[string]struct {
		n    *node
		args []string
		want string // "": refused
	}{
		"1.3":              {n, []string{"-tls1_3"}, "TLSv1.3, Cipher is TLS_AES"},
		"1.2":              {n, []string{"-tls1_2"}, "TLSv1.2, Cipher is ECDHE-ECDSA-"},
		"1.2 ChaCha":       {n, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"}, "Cipher is ECDHE-ECDSA-CHACHA20-POLY1305"},
		"1.2 CBC":          {n, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES256-SHA:@SECLEVEL=0"}, ""},
		"1.2 RSA":          {n, []string{"-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA:@SECLEVEL=0"}, ""},
		"1.1":              {n, []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, ""},
		"1.0":              {n, []string{"-tls1", "-cipher", "ALL:@SECLEVEL=0"}, ""},
		"1.3 where strict": {strict, []string{"-tls1_3"}, "TLSv1.3, Cipher is TLS_AES"},
		"1.2 where strict": {strict, []string{"-tls1_2"}, ""},
	} {
		out, err := tc.n.sclient("app.x.test", "", tc.args...)
		if tc.want == "" && (err == nil || !strings.Contains(out, "Cipher is (NONE)")) || tc.want != "" && (err != nil || !strings.Contains(out, tc.want)) {
			t.Errorf("%s: %v, want %q\n%s", name, err, tc.want, out)
		}
	}
}

// TestClientCertificatesByRealClients asks clients for certificates: curl over
// HTTP/1.1 and HTTP/2, openssl on a raw route and with sessions.
func TestClientCertificatesByRealClients(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	cert, key := s.sign(t, "alice")
	otherCert, otherKey := newSigner(t).sign(t, "mallory")
	n := startNode(t, withYAML(fmt.Sprintf("client_auth: {staff: {ca: %q}, gone: {ca: /nonexistent/ca.pem}}", s.file("ca.pem"))))
	at := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s as %s", r.Header.Get("X-Client-Cert-Verify"), r.Header.Get("X-Client-Cert-Subject"))
	}))
	n.mustPut("routes/all", routeJSON(map[string]any{"host": "*.mtls.test", "backend": at}))
	n.mustPut("routes/raw", rawRoute("raw.mtls.test", startRaw(t, func(c net.Conn) { io.WriteString(c, "from the backend\n") })))
	n.put("domains/*.mtls.test", `{"client_auth": {"ca": "staff"}}`)
	n.put("domains/may.mtls.test", `{"client_auth": {"ca": "staff", "mode": "verify_if_given"}}`)
	n.put("domains/off.mtls.test", `{"client_auth": {"mode": "off"}}`)
	n.put("domains/gone.mtls.test", `{"client_auth": {"ca": "gone"}}`)
	n.put("domains/unknown.mtls.test", `{"client_auth": {"ca": "unknown"}}`)

	with := []string{"--cert", cert, "--key", key}
	for _, proto := range []string{"--http1.1", "--http2"} {
		for _, tc := range []struct {
			host   string
			args   []string
			want   string
			status int
		}{
			{"must.mtls.test", with, "verified as CN=alice", 200},
			{"must.mtls.test", nil, "", 0},
			{"must.mtls.test", []string{"--cert", otherCert, "--key", otherKey}, "", 0},
			{"may.mtls.test", with, "verified as CN=alice", 200},
			{"may.mtls.test", nil, "none as ", 200},
			{"may.mtls.test", []string{"--cert", otherCert, "--key", otherKey}, "failed: the certificate comes from another authority as ", 200},
			{"off.mtls.test", with, " as ", 200},
			{"gone.mtls.test", with, "", 0},
			{"unknown.mtls.test", with, "", 0},
			{"off.mtls.test", append([]string{"-H", "Host: must.mtls.test"}, with...), "this connection was opened for another host; open one for this host\n", 421},
			{"off.mtls.test", []string{"-H", "X-Client-Cert-Verify: verified", "-H", "x_client_cert_subject: CN=root"}, " as ", 200},
		} {
			body, status, err := n.curlTLS(tc.host, append([]string{proto}, tc.args...)...)
			if status != tc.status || body != tc.want || status == 0 && err == nil {
				t.Errorf("%s %s %v: %d %q %v, want %d %q", proto, tc.host, tc.args, status, body, err, tc.status, tc.want)
			}
		}
	}
	for host, want := range map[string]string{
		"must.mtls.test": "needs a client certificate of CA staff, without which there is no connection\n",
		"raw.mtls.test":  "needs a client certificate of CA staff, without which there is no connection\n",
		"may.mtls.test":  "asks for a client certificate of CA staff, and lets everybody in",
		"gone.mtls.test": "needs a client certificate of CA gone, without which there is no connection (client_ca_unreadable: ",
	} {
		if out := n.sluice("explain", n.url(host, "/")); !strings.Contains(out, want) {
			t.Errorf("explain says of %s\n%swant %q", host, out, want)
		}
	}
	if out := n.sluice("explain", n.url("off.mtls.test", "/")); strings.Contains(out, "client_auth") {
		t.Errorf("explain of a host that asks for nothing:\n%s", out)
	}
	if out := n.sluice("explain", n.url("may.mtls.test", "/"), "-o", "json"); !strings.Contains(out, `"mode": "verify_if_given"`) {
		t.Errorf("explain -o json: %s", out)
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		if out, err := n.sclient("raw.mtls.test", "", version, "-cert", cert, "-key", key, "-ign_eof"); err != nil || !strings.Contains(out, "from the backend") {
			t.Errorf("raw route with a certificate, %s: %v\n%s", version, err, out)
		}
		if out, _ := n.sclient("raw.mtls.test", "", version, "-ign_eof"); strings.Contains(out, "from the backend") {
			t.Errorf("raw route without a certificate, %s:\n%s", version, out)
		}
		eventually(t, "the log says why", func() error {
			if !regexp.MustCompile(`refused for its certificate.* listener=https/\d+ client=127\.0\.0\.1:\d+ server_name=raw\.mtls\.test client_auth=staff reason=none`).MatchString(n.output.String()) {
				return errors.New(n.output.String())
			}
			return nil
		})
		session := filepath.Join(t.TempDir(), "session")
		request := "GET / HTTP/1.0\r\nHost: %s\r\n\r\n"
		ask := func(host string, args ...string) string {
			out, _ := n.sclient(host, fmt.Sprintf(request, host), append([]string{version, "-ign_eof"}, args...)...)
			return out
		}
		if out := ask("must.mtls.test", "-cert", cert, "-key", key, "-sess_out", session); !strings.Contains(out, "verified as CN=alice") {
			t.Fatalf("%s: %s", version, out)
		}
		if out := ask("must.mtls.test", "-sess_in", session); !strings.Contains(out, "Reused, ") || !strings.Contains(out, "verified as CN=alice") {
			t.Errorf("%s, resumed where it was given:\n%s", version, out)
		}
		if out := ask("may.mtls.test", "-sess_in", session); !strings.Contains(out, "none as ") {
			t.Errorf("%s, resumed at another host:\n%s", version, out)
		}
	}
	for domain, want := range map[string]string{"gone": "client_ca_unreadable: ", "unknown": "client_ca_unknown: "} {
		n.verdictHas("domains/"+domain+".mtls.test", "degraded: ", want)
	}
	// The file is taken up, and sessions of before are none.
	newcomer := newSigner(t)
	nextCert, nextKey := newcomer.sign(t, "bob")
	content, err := os.ReadFile(newcomer.file("ca.pem"))
	if err == nil {
		err = os.WriteFile(s.file("ca.pem"), append(content, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new authority is in force", func() error {
		if body, _, err := n.curlTLS("must.mtls.test", "--cert", nextCert, "--key", nextKey); err != nil || body != "verified as CN=bob" {
			return fmt.Errorf("%q, %v", body, err)
		}
		return nil
	})
	if body, _, err := n.curlTLS("must.mtls.test", with...); err == nil {
		t.Errorf("with a certificate of the old authority: %q", body)
	}
}
