package clienttls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// AuthorityFiles are PEM files about the authorities of clients' certificates.
type AuthorityFiles struct {
	// CA has the authorities' certificates.
	CA string
	// CRL has lists of revoked certificates of theirs; "": revocation is not
	// looked at.
	CRL string
}

// authority is one entry of client_auth in the node's file.
type authority struct {
	name  string
	files AuthorityFiles
	now   atomic.Pointer[asOf] // never nil

	// Held by Terms.reading.
	looked bool
	stamps [2]stamp // as of the last good reading
	err    error    // of the last reading
	told   string
}

// asOf is what the files of an authority come to.
type asOf struct {
	require, ifGiven *Auth
	until            time.Time // when a list of revoked certificates expires first; zero: never
}

func (a *asOf) of(required bool) *Auth {
	if required {
		return a.require
	}
	return a.ifGiven
}

type stamp struct {
	changed time.Time
	size    int64
}

func newAuthority(name string, files AuthorityFiles) *authority {
	a := &authority{name: name, files: files}
	a.put(x509.NewCertPool(), nil, [32]byte{})
	return a
}

// put makes pool and lists, whose files have this sum, what holds.
func (a *authority) put(pool *x509.CertPool, lists revocations, sum [32]byte) {
	now := &asOf{}
	for _, list := range lists {
		now.until = earlier(now.until, list.until)
	}
	one := func(required bool) *Auth {
		all := sha256.Sum256(fmt.Appendf(nil, "client_auth %q %t %x", a.name, required, sum))
		return &Auth{policy: policy{a, required}, required: required, pool: pool, lists: lists, tag: tag(all[:16])}
	}
	now.require, now.ifGiven = one(true), one(false)
	a.now.Store(now)
}

// Reread takes up files that have changed, and reports whether Trouble has
// another answer than before.
func (t *Terms) Reread() (changed bool) {
	t.reading.Lock()
	defer t.reading.Unlock()
	for _, a := range t.authorities {
		a.look(t)
		if told := a.trouble(time.Now()); told != a.told {
			a.told, changed = told, true
		}
	}
	return changed
}

// Trouble says what keeps clients of a domain from being verified as c, which may
// be nil, has it; "": nothing.
func (t *Terms) Trouble(c *router.ClientAuth) string {
	if c.Off() {
		return ""
	}
	a := t.authorities[c.CA]
	if a == nil {
		return fmt.Sprintf("client_ca_unknown: sluice.yaml of this node has no client_auth.%s; no certificate of a client is accepted", c.CA)
	}
	t.reading.Lock()
	defer t.reading.Unlock()
	return a.told
}

// trouble is Trouble of one that exists.
func (a *authority) trouble(now time.Time) string {
	is := a.now.Load()
	switch {
	case a.err != nil && a.stamps == [2]stamp{}: // nothing was ever read
		return fmt.Sprintf("client_ca_unreadable: client_auth.%s of sluice.yaml: %v; no certificate of a client is accepted", a.name, a.err)
	case a.err != nil:
		return fmt.Sprintf("client_ca_unreadable: client_auth.%s of sluice.yaml: %v; what was read before stays in use", a.name, a.err)
	case !is.until.IsZero() && !now.Before(is.until):
		return fmt.Sprintf("client_crl_expired: client_auth.%s.crl of sluice.yaml has a list that expired at %s; certificates of its issuer are not accepted",
			a.name, is.until.UTC().Format(time.RFC3339))
	}
	return ""
}

// look reads the files if they have changed, or could not be read before.
func (a *authority) look(t *Terms) {
	var stamps [2]stamp
	for i, f := range []string{a.files.CA, a.files.CRL} {
		if info, err := os.Stat(f); f != "" && err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	if a.looked && stamps == a.stamps && a.err == nil {
		return
	}
	a.looked = true
	was := a.err
	if a.err = a.read(); a.err == nil {
		a.stamps = stamps
		t.cfg.Logger.Info("authorities of clients read", "client_auth", a.name)
		return
	}
	if was == nil || was.Error() != a.err.Error() {
		t.metrics.readFailures.Inc()
		t.cfg.Logger.Error("files of authorities of clients are of no use; what was read before stays in use", "client_auth", a.name, "err", a.err)
	}
}

func (a *authority) read() error {
	content, err := os.ReadFile(a.files.CA)
	if err != nil {
		return err
	}
	cas, err := certificates(content)
	if err != nil {
		return fmt.Errorf("%s: %w", a.files.CA, err)
	}
	pool := x509.NewCertPool()
	for _, c := range cas {
		pool.AddCert(c)
	}
	var lists revocations
	if a.files.CRL != "" {
		more, err := os.ReadFile(a.files.CRL)
		if err != nil {
			return err
		}
		if lists, err = revoked(more, cas); err != nil {
			return fmt.Errorf("%s: %w", a.files.CRL, err)
		}
		content = append(append(content, 0), more...)
	}
	a.put(pool, lists, sha256.Sum256(content))
	return nil
}

func certificates(content []byte) (all []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s beside certificates; leave that out", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("holds no certificate in PEM")
	}
	return all, nil
}

// revoked reads lists of revoked certificates, each of which one of cas has
// signed. Of several by one key the newest counts, so each has to be a whole one.
func revoked(content []byte, cas []*x509.Certificate) (revocations, error) {
	lists, numbers := revocations{}, map[string]*x509.RevocationList{}
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("holds a %s beside lists of revoked certificates (X509 CRL); leave that out", block.Type)
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		signer, err := signerAmong(list, cas)
		if err == nil {
			err = whole(list)
		}
		if err != nil {
			return nil, err
		}
		issuer := signerOf(signer)
		if other := numbers[issuer]; other != nil && other.ThisUpdate.After(list.ThisUpdate) {
			continue
		}
		numbers[issuer] = list
		l := &revocationList{until: list.NextUpdate, serials: map[string]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			l.serials[string(e.SerialNumber.Bytes())] = true
		}
		lists[issuer] = l
	}
	if len(lists) == 0 {
		return nil, errors.New("holds no list of revoked certificates in PEM (X509 CRL)")
	}
	return lists, nil
}

func signerAmong(list *x509.RevocationList, cas []*x509.Certificate) (*x509.Certificate, error) {
	for _, c := range cas {
		if string(c.RawSubject) == string(list.RawIssuer) && list.CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the list of %q is signed by none of the authorities in the file of ca", list.Issuer)
}

// whole refuses a list that is a part of another one (RFC 5280 section 5.2): what
// the parts say is not put together here.
func whole(list *x509.RevocationList) error {
	for _, e := range list.Extensions {
		if e.Critical {
			return fmt.Errorf("the list of %q is a part of another, such as a delta list, or says something else that must not be passed over (extension %v); give the whole list", list.Issuer, e.Id)
		}
	}
	return nil
}
