package clienttls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/router"
)

// Auth is what clients of some domains are asked for, as of one content of the
// files. It is immutable.
type Auth struct {
	policy   policy
	required bool
	pool     *x509.CertPool // never nil; empty where the files are of no use
	lists    revocations
	tag      tag

	configs sync.Map // *tls.Config by *Server, made when first needed
	known   knownIdentities
}

// policy is what stays while files change.
type policy struct {
	authority *authority
	required  bool
}

// tag tells sessions apart by what their clients were asked for. The zero value
// stands for nothing.
type tag [16]byte

func (a *Auth) tagOf() tag {
	if a == nil {
		return tag{}
	}
	return a.tag
}

// Like reports whether the clients of a, which may be nil, were asked for what b
// asks for, whatever the files held then.
func (a *Auth) Like(b *Auth) bool { return a != nil && a.policy == b.policy }

// Required reports whether nobody gets in without a good certificate.
func (a *Auth) Required() bool { return a.required }

// Auth returns what c, which may be nil, comes to here; nil for nothing.
func (t *Terms) Auth(c *router.ClientAuth) *Auth {
	if c.Off() {
		return nil
	}
	a := t.authorities[c.CA]
	if a == nil {
		a = t.unknown
	}
	return a.now.Load().of(c.Required())
}

// Identity is what the certificate of a client is worth. It is immutable.
type Identity struct {
	Verified bool
	// Why says why it is worth nothing; "" where Verified. It goes into a
	// header field.
	Why string
	// The following are of a verified certificate, in printable ASCII.

	Subject     string // RFC 2253
	SANs        string // "DNS:a.example.com,URI:spiffe://example.com/a"
	Serial      string // hexadecimal
	Fingerprint string // SHA-256, hexadecimal

	until time.Time
}

// Holds reports whether what was found still holds.
func (id *Identity) Holds(now time.Time) bool { return !id.Verified || now.Before(id.until) }

const whyNone = "none"

// None reports whether there was no certificate.
func (id *Identity) None() bool { return id.Why == whyNone }

type errRefused string

func (e errRefused) Error() string { return "the client's certificate is refused: " + string(e) }

// knownIdentities are those of clients that were verified lately: they come back
// with resumed sessions, and ask on connections that were verified before.
type knownIdentities struct {
	mu sync.Mutex // guards by
	by map[[sha256.Size]byte]*Identity
}

// maxKnown bounds them.
const maxKnown = 1024

func (k *knownIdentities) find(sum [sha256.Size]byte, now time.Time) *Identity {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id := k.by[sum]; id != nil && id.Holds(now) {
		return id
	}
	return nil
}

func (k *knownIdentities) keep(sum [sha256.Size]byte, id *Identity) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.by == nil || len(k.by) >= maxKnown {
		k.by = map[[sha256.Size]byte]*Identity{}
	}
	k.by[sum] = id
}

// Identify says what the first of the certificates that a client has shown, which
// need not have been verified, is worth now. That the client has its key, the
// handshake has proven.
func (a *Auth) Identify(shown []*x509.Certificate, now time.Time) *Identity {
	if len(shown) == 0 {
		return &Identity{Why: whyNone}
	}
	sum := sha256.Sum256(shown[0].Raw)
	if id := a.known.find(sum, now); id != nil {
		return id
	}
	id := a.verify(shown, now)
	if id.Verified {
		id.Fingerprint = hex.EncodeToString(sum[:])
		a.known.keep(sum, id)
	}
	return id
}

func (a *Auth) verify(shown []*x509.Certificate, now time.Time) *Identity {
	leaf := shown[0]
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return failed(say(err))
	}
	var why error
	for _, chain := range chains {
		until, err := a.lists.check(chain, now)
		if err != nil {
			why = err
			continue
		}
		for _, c := range chain {
			until = earlier(until, c.NotAfter)
		}
		return identityOf(leaf, until)
	}
	return failed(why.Error())
}

func failed(why string) *Identity { return &Identity{Why: "failed: " + printable(why, "")} }

// say puts what x509 finds wrong into few words, without what the certificate
// says of itself.
func say(err error) string {
	if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is {
		switch invalid.Reason {
		case x509.Expired:
			return "the certificate has expired or is not valid yet"
		case x509.IncompatibleUsage:
			return "the certificate is not for clients"
		}
		return "the certificate's chain is not valid"
	}
	if _, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		return "the certificate comes from another authority"
	}
	return "the certificate cannot be verified"
}

// maxName bounds what a certificate may have backends told.
const maxName = 4 << 10

func identityOf(leaf *x509.Certificate, until time.Time) *Identity {
	id := &Identity{
		Verified: true, Subject: printable(leaf.Subject.String(), ""), SANs: sans(leaf),
		Serial: leaf.SerialNumber.Text(16), until: until,
	}
	if len(id.Subject) > maxName || len(id.SANs) > maxName {
		return failed(fmt.Sprintf("the certificate's names have more than %d bytes", maxName))
	}
	return id
}

// sans lists the alternative names of a certificate.
func sans(c *x509.Certificate) string {
	var all []string
	add := func(kind, name string) { all = append(all, kind+":"+printable(name, ",")) }
	for _, s := range c.DNSNames {
		add("DNS", s)
	}
	for _, u := range c.URIs {
		add("URI", u.String())
	}
	for _, s := range c.EmailAddresses {
		add("email", s)
	}
	for _, ip := range c.IPAddresses {
		add("IP", ip.String())
	}
	return strings.Join(all, ",")
}

// printable escapes all of s but printable ASCII, and %, and what more has, as
// URLs do.
func printable(s, more string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' || strings.IndexByte(more, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// revocations are lists of revoked certificates, by the name and the key of who
// has signed them (signerOf): an authority that has renewed its key has a list for
// each. nil: nothing is looked up.
type revocations map[string]*revocationList

// signerOf is what a list and the certificates that it is about have in common.
func signerOf(c *x509.Certificate) string {
	return string(c.RawSubject) + "\x00" + string(c.RawSubjectPublicKeyInfo)
}

type revocationList struct {
	until   time.Time // zero: it does not expire
	serials map[string]bool
}

// check looks up chain, leaf first. until is when the lists expire; zero: never.
func (r revocations) check(chain []*x509.Certificate, now time.Time) (until time.Time, err error) {
	if r == nil {
		return until, nil
	}
	for i, c := range chain {
		if i == len(chain)-1 && i > 0 && bytes.Equal(c.RawSubject, c.RawIssuer) {
			break // nobody revokes a root
		}
		signer := c // of an anchor that is a client's own certificate
		if i+1 < len(chain) {
			signer = chain[i+1]
		}
		list := r[signerOf(signer)]
		switch {
		case list == nil && i == 0:
			return until, errors.New("there is no list of revoked certificates from its issuer")
		case list == nil:
			continue
		case list.serials[string(c.SerialNumber.Bytes())]:
			return until, errors.New("the certificate is revoked")
		case !list.until.IsZero() && !now.Before(list.until):
			return until, errors.New("the list of revoked certificates has expired")
		}
		until = earlier(until, list.until)
	}
	return until, nil
}

// earlier returns the earlier of two times of which zero stands for never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
