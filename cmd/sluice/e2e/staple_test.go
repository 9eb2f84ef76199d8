package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ocsp"

	"github.com/remotegpu/sluice/certs/certstest"
)

// A certificate that asks for it is served with an OCSP response, as OpenSSL sees
// it, also by a node that starts while the responder and etcd's certificates are
// all there is; one that does not ask for it is not, though it names a responder.
func TestStapledOCSP(t *testing.T) {
	t.Parallel()
	o := certstest.NewOCSP(t)
	n := startNode(t, withoutLocalCA())
	root := filepath.Join(n.dir, "root.pem")
	if err := os.WriteFile(root, o.RootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	bring := func(name string, must bool) {
		t.Helper()
		chain, key := o.Issue(must, name)
		file := filepath.Join(n.dir, name+".pem")
		if err := os.WriteFile(file, append(chain, key...), 0o600); err != nil {
			t.Fatal(err)
		}
		n.certs(0, "import", name, "--cert", file, "--key", file, "--roots", root)
	}
	bring("must.x.test", true)
	bring("plain.x.test", false)
	ask := func(name string) (string, error) {
		out, err := exec.CommandContext(within(t), "openssl", "s_client", "-connect", loopback(n.HTTPS), "-servername", name,
			"-status", "-CAfile", root, "-verify_return_error").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("openssl: %w: %s", err, out)
		}
		return string(out), nil
	}
	want := func(name string, wants ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("openssl to see %q", wants), func() error {
			out, err := ask(name)
			if err != nil {
				return err
			}
			for _, w := range wants {
				if !strings.Contains(out, w) {
					return fmt.Errorf("openssl says: %s", out)
				}
			}
			return nil
		})
	}
	want("must.x.test", "OCSP Response Status: successful (0x0)", "Cert Status: good", "Verify return code: 0 (ok)")
	want("plain.x.test", "OCSP response: no response sent", "Verify return code: 0 (ok)")
	if asked := o.Asked(); asked != 1 {
		t.Errorf("the responder was asked %d times, want once", asked)
	}
	if _, ok := n.metric(`sluice_certs_staples{state="stapled"} 1`); !ok {
		t.Error("the metric of staples does not say that there is one")
	}

	o.Play(func(a *certstest.OCSPAnswer) { a.Spoil = func([]byte) []byte { return ocsp.TryLaterErrorResponse } })
	n.stop()
	n.start()
	want("must.x.test", "OCSP Response Status: successful (0x0)", "Cert Status: good")
}
