package clienttls_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/router"
)

// TestTroubleFromTheStart says what is wrong with files that were never good.
func TestTroubleFromTheStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	terms := clienttls.New(clienttls.Config{Authorities: map[string]clienttls.AuthorityFiles{
		"gone":  {CA: filepath.Join(dir, "gone")},
		"empty": {CA: write("empty", "")},
		"key":   {CA: write("key", "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n")},
		"der":   {CA: write("der", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")},
	}})
	for ca, want := range map[string]string{
		"gone": "no such file", "empty": "holds no certificate in PEM", "key": "holds a PRIVATE KEY beside certificates", "der": "x509: ",
	} {
		said := terms.Trouble(&router.ClientAuth{CA: ca})
		if !strings.HasPrefix(said, "client_ca_unreadable: client_auth."+ca+" of sluice.yaml: ") || !strings.Contains(said, want) ||
			!strings.HasSuffix(said, "; no certificate of a client is accepted") {
			t.Errorf("%s: %q, want %q in it", ca, said, want)
		}
	}
	if said := terms.Trouble(&router.ClientAuth{CA: "other"}); !strings.HasPrefix(said, "client_ca_unknown: ") {
		t.Errorf("a name that nobody knows: %q", said)
	}
	for _, none := range []*router.ClientAuth{nil, {Mode: router.ClientAuthOff}} {
		if said := terms.Trouble(none); said != "" {
			t.Errorf("asking for nothing: %q", said)
		}
	}
	if terms.Reread() {
		t.Error("nothing has changed since the start, and somebody is to be told")
	}
}
