package router

import "strings"

// Domain is a DNS name for which a certificate is to be obtained and kept.
type Domain struct {
	Name string `json:"-"` // as in the key; may be *.wildcard
	Rev  int64  `json:"-"` // etcd revision of the value

	// Provider is the name of the DNS provider in the node's file that serves
	// the domain's zone; "" means the only one there.
	Provider string `json:"provider"`
	// Issuer is the name of the one issuer in the node's file that the
	// certificate is to come from; "" means those there are, in turn.
	Issuer string `json:"issuer"`
	// MustStaple has the certificate ask for a stapled OCSP response in every
	// handshake (RFC 7633).
	MustStaple bool `json:"must_staple"`
	// ClientAuth, unless nil, has clients asked for a certificate.
	ClientAuth *ClientAuth `json:"client_auth"`
}

// ParseDomain reads the value of the key domains/<name>, a JSON object.
func ParseDomain(name string, value []byte) (*Domain, error) {
	d := &Domain{Name: name}
	if err := CheckSize(value); err != nil {
		return nil, err
	}
	if len(strings.TrimSpace(string(value))) == 0 {
		return nil, fieldErrorf("", "the value is empty; put {} or {\"provider\": \"<name>\"}")
	}
	if err := Decode(value, d); err != nil {
		return nil, err
	}
	return d, d.ClientAuth.check("client_auth")
}

// ParseDomainName checks a DNS name, exact or *.wildcard, in lower case and
// without a final dot, so that no two keys mean the same name.
func ParseDomainName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	bare := strings.TrimPrefix(name, "*.")
	if !validName(bare) || strings.Contains(bare, "_") || lastLabelIsNumeric(bare) || !strings.Contains(bare, ".") {
		return "", fieldErrorf("", "%q is not a domain; write a name such as ssh.x-gpu.com or *.ssh.x-gpu.com", s)
	}
	if name != s {
		return "", fieldErrorf("", "%q: write it as %q, in lower case and without a final dot", s, name)
	}
	return name, nil
}
