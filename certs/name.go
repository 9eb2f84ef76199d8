package certs

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// checkDomain says what keeps name, in lower case, from having a certificate
// by DNS-01, or nil.
func checkDomain(name string) error {
	base, wildcard := strings.CutPrefix(name, "*.")
	switch {
	case name == "":
		return errors.New("the name is empty: want a DNS name such as x-gpu.com or *.ssh.x-gpu.com")
	case strings.Contains(base, "*"):
		return fmt.Errorf("%q: an asterisk stands for the whole first label only, as in *.x-gpu.com", name)
	case !isASCII(name):
		return fmt.Errorf("%q: write internationalised names in their ASCII form, xn--...", name)
	case !validHost(base) || strings.Contains(base, "_"):
		return fmt.Errorf("%q is not a DNS name: want labels of a-z, 0-9 and hyphens, joined by dots", name)
	case !strings.Contains(base, "."):
		return fmt.Errorf("%q: no authority issues certificates for a single label", name)
	}
	if _, err := netip.ParseAddr(base); err == nil && !wildcard {
		return fmt.Errorf("%q is an address: DNS-01 proves control of names", name)
	}
	return nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// validHost reports whether host, in lower case and without a last dot, can be
// a host name in TLS (RFC 6066 section 3): labels of letters, digits, hyphens
// and, because they are in use, underscores.
func validHost(host string) bool {
	if host == "" || len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return true
}

func validLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := label[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
