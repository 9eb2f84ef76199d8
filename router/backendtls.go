package router

import (
	"crypto/x509"
	"strings"
	"unique"
)

// Authorities are who may vouch for a backend's certificate: PEM certificates,
// or the name of a file that the node's own file gives. The zero value stands for
// the system's. Values are comparable, and equal where the text is.
type Authorities struct{ text unique.Handle[string] }

// UnmarshalText reads certificates in PEM, or a name.
func (a *Authorities) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	switch {
	case strings.Contains(s, "-----BEGIN"):
		if strings.Contains(s, "PRIVATE KEY-----") {
			return fieldErrorf("", "holds a private key, which must not stand in etcd; give the certificates of the authorities alone")
		}
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(s)) {
			return fieldErrorf("", "holds no certificate that can be read; give PEM with -----BEGIN CERTIFICATE-----, its lines parted by \\n, or a name under upstream_tls in sluice.yaml")
		}
	case !isFileName(s):
		return fieldErrorf("", "is neither PEM nor a name under upstream_tls in sluice.yaml")
	}
	a.text = unique.Make(s)
	return nil
}

// isFileName reports whether s is what upstream_tls may call its entries.
func isFileName(s string) bool { return isToken(s) && len(s) <= maxName }

// IsZero reports whether a stands for the system's.
func (a Authorities) IsZero() bool { return a == Authorities{} }

// String returns the text that a was read from; "" for the system's.
func (a Authorities) String() string {
	if a.IsZero() {
		return ""
	}
	return a.text.Value()
}

// PEM returns the certificates, where a holds them by itself.
func (a Authorities) PEM() (pem string, ok bool) {
	s := a.String()
	return s, strings.Contains(s, "-----BEGIN")
}

// MarshalText writes a as it was read.
func (a Authorities) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (t *BackendTLS) check(path string, captures []string) error {
	if t.Client != "" && !isFileName(t.Client) {
		// Which may be the key itself: it is not repeated.
		return fieldErrorf(join(path, "client"), "is not a name under upstream_tls in sluice.yaml; keys and certificates of clients stand in files there, and not in etcd")
	}
	if t.VerifyName != "" && !validHost(t.VerifyName) {
		return fieldErrorf(join(path, "verify_name"), "%q is not a host name", t.VerifyName)
	}
	if t.Insecure {
		for _, f := range []struct {
			name string
			set  bool
		}{{"ca", !t.CA.IsZero()}, {"verify_name", t.VerifyName != ""}} {
			if f.set {
				return fieldErrorf(join(path, f.name), "has no meaning with insecure_skip_verify, which verifies nothing; leave one out")
			}
		}
	}
	if name := t.ServerName; name.source != "" && name.IsLiteral() && !validHost(name.Expand(nil)) {
		return fieldErrorf(join(path, "server_name"), "%q is not a host name", name)
	}
	return t.ServerName.check(join(path, "server_name"), captures)
}
