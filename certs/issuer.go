package certs

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs/dns"
)

// Issuer is an ACME authority (RFC 8555) and how to deal with it.
type Issuer struct {
	// Name is what keys under domains/, messages and metrics call it. Empty: the
	// host of Directory.
	Name string
	// Directory is the URL of its directory. Empty: Let's Encrypt.
	Directory string
	// Staging is the URL of its directory for rehearsals. Empty: it has none.
	Staging string
	// Email is told to the authority; may be empty.
	Email string
	// CAFile is a PEM file with the only roots to trust for the HTTPS of the
	// directories. Empty: the system's.
	CAFile string
	// EABKeyID and EABKey, in base64, bind the account to one that exists with
	// the authority (RFC 8555 section 7.3.4). Both empty: it is not bound.
	EABKeyID string
	EABKey   dns.Secret
	// Profile is asked for with each order. Empty: the authority chooses.
	Profile string
	// PreferredChains are common names of authorities, the first preferred.
	// Empty: the chain that is offered first is taken.
	PreferredChains []string
	// Roots is a PEM file with the roots that certificates must lead to. Empty:
	// that is not looked at.
	Roots string
	// Orders bounds the orders of the whole cluster, Duplicates those for one
	// name.
	Orders, Duplicates Budget
}

// Budget is how often something may be done within any Window. Count 0: as often
// as one likes.
type Budget struct {
	Count  int
	Window time.Duration
}

func (i Issuer) withDefaults() Issuer {
	i.Directory = cmp.Or(i.Directory, certmagic.LetsEncryptProductionCA)
	if u, err := url.Parse(i.Directory); err == nil {
		i.Name = cmp.Or(i.Name, u.Hostname())
	}
	return i
}

// checkIssuer says why there is no issuer of that name; "" stands for all.
func (c Config) checkIssuer(name string) error {
	names := make([]string, len(c.Issuers))
	for i, issuer := range c.Issuers {
		names[i] = issuer.Name
	}
	if name == "" || slices.Contains(names, name) {
		return nil
	}
	return fmt.Errorf("issuer %q is not configured: use one of %s, or add it under acme.issuers in sluice.yaml", name, strings.Join(names, ", "))
}

// key is what stands for the authority in storage, as certmagic has it. It depends on nothing but
// the directory, so that a certificate is found whatever else is configured anew.
func (i Issuer) key() string {
	return certmagic.StorageKeys.Safe((&certmagic.ACMEIssuer{CA: i.Directory}).IssuerKey())
}

// check returns what is wrong with i, whose defaults are filled in. It reads the
// files that i names.
func (i Issuer) check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("issuer %s: "+format, append([]any{i.Name}, args...)...))
	}
	for _, d := range []string{i.Directory, i.Staging} {
		if err := checkDirectory(d); d != "" && err != nil {
			bad("%w", err)
		}
	}
	if i.Email != "" && !strings.Contains(i.Email, "@") {
		bad("email %q: want an address such as ops@example.com, or nothing", i.Email)
	}
	if _, err := rootsOf(i.CAFile); err != nil {
		bad("ca_file: %w", err)
	}
	if _, err := rootsOf(i.Roots); err != nil {
		bad("roots: %w", err)
	}
	if _, err := i.eabKey(); err != nil {
		bad("eab.hmac_key: not base64; copy it as the authority gives it")
	}
	if (i.EABKeyID == "") != (i.EABKey == "") {
		bad("eab: key_id and hmac_key belong together")
	}
	for _, b := range []Budget{i.Orders, i.Duplicates} {
		if b.Count < 0 || b.Count > 0 && b.Window <= 0 {
			bad("a budget of %d in %v: want a count of 0, for no limit, or one of more within a time", b.Count, b.Window)
		}
	}
	return errors.Join(errs...)
}

// checkDirectory refuses what an ACME client cannot or must not talk to.
func checkDirectory(directory string) error {
	u, err := url.Parse(directory)
	if err != nil || u.Host == "" {
		return fmt.Errorf("directory %q: want a URL such as %s", directory, certmagic.LetsEncryptProductionCA)
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && certmagic.SubjectIsInternal(u.Host)) {
		return fmt.Errorf("directory %q: want https (RFC 8555 section 6.1)", directory)
	}
	return nil
}

// eabKey returns the key in the one form that the library takes: authorities
// hand it out with either alphabet of base64, with and without padding.
func (i Issuer) eabKey() (string, error) {
	key := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(string(i.EABKey)), "=")
	_, err := base64.RawURLEncoding.DecodeString(key)
	return key, err
}

// rootsOf reads a PEM file of authorities; nil where path is empty, which stands
// for the system's.
func rootsOf(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	blob, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(blob) {
		return nil, fmt.Errorf("%s: no certificate in it: want PEM", path)
	}
	return pool, nil
}
