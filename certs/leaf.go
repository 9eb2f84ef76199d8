package certs

import (
	"container/list"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// leafValidity is the whole life of a certificate that the development CA
	// signs, clockSkew included.
	leafValidity = 90 * 24 * time.Hour
	// leafRenewal is what is left of that life when another one is signed.
	leafRenewal = leafValidity / 3
	// clockSkew is how far a client's clock may be behind ours.
	clockSkew = time.Hour
	// maxLeaves bounds what strangers can make us remember by asking for one
	// name after the other.
	maxLeaves = 1024
)

// localCA signs certificates for whatever name a client asks for, and keeps
// those asked for last. Signing takes no lock; clients that ask for the same
// new name wait for one signature.
type localCA struct {
	root   *x509.Certificate
	key    crypto.Signer
	signed prometheus.Counter
	now    func() time.Time
	max    int

	mu     sync.Mutex // guards the following
	leaves map[string]*leaf
	recent *list.List // of *leaf, the one asked for last in front
}

// leaf is a certificate for one name or address, or about to be one.
type leaf struct {
	host  string
	ready chan struct{} // closed once the following are set
	cert  *tls.Certificate
	err   error

	place *list.Element // in recent; guarded by localCA.mu
}

func newLocalCA(root *x509.Certificate, key crypto.Signer, signed prometheus.Counter) *localCA {
	return &localCA{
		root: root, key: key, signed: signed, now: time.Now, max: maxLeaves,
		leaves: map[string]*leaf{}, recent: list.New(),
	}
}

// certificate returns a certificate for the server name or, if that is empty,
// for the address at our end of conn. The name is in lower case.
func (ca *localCA) certificate(name string, conn net.Conn) (*tls.Certificate, error) {
	host := name
	if name == "" {
		addr, err := localAddr(conn)
		if err != nil {
			return nil, err
		}
		host = addr.String()
	} else if _, err := netip.ParseAddr(name); err == nil || !validHost(name) {
		return nil, fmt.Errorf("no certificate for server name %q: it is not a host name (RFC 6066 section 3)", name)
	}
	l, mine := ca.lookup(host)
	if mine {
		l.cert, l.err = ca.sign(host)
		close(l.ready)
		if l.err != nil {
			ca.forget(l)
		}
	}
	<-l.ready
	if l.err != nil {
		return nil, fmt.Errorf("sign a certificate for %q: %w", host, l.err)
	}
	return l.cert, nil
}

// localAddr returns the address that the client dialled.
func localAddr(conn net.Conn) (netip.Addr, error) {
	if conn == nil || conn.LocalAddr() == nil {
		return netip.Addr{}, errors.New("the client named no server, and the address it dialled is not known")
	}
	ap, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the client named no server, and the address it dialled is not an IP address: %w", err)
	}
	return ap.Addr().Unmap().WithZone(""), nil
}

// lookup returns the leaf for host. If mine is true, it is new and the caller
// must sign it.
func (ca *localCA) lookup(host string) (l *leaf, mine bool) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if l := ca.leaves[host]; l != nil {
		if !ca.due(l) {
			ca.recent.MoveToFront(l.place)
			return l, false
		}
		ca.dropLocked(l)
	}
	l = &leaf{host: host, ready: make(chan struct{})}
	l.place = ca.recent.PushFront(l)
	ca.leaves[host] = l
	if ca.recent.Len() > ca.max {
		ca.dropLocked(ca.recent.Back().Value.(*leaf))
	}
	return l, true
}

// due reports whether the leaf has been signed and its time has come.
func (ca *localCA) due(l *leaf) bool {
	return isClosed(l.ready) && l.cert != nil && l.cert.Leaf.NotAfter.Sub(ca.now()) < leafRenewal && l.cert.Leaf.NotAfter.Before(ca.root.NotAfter)
}

// forget drops a leaf that could not be signed, so that the next client tries again.
func (ca *localCA) forget(l *leaf) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.leaves[l.host] == l {
		ca.dropLocked(l)
	}
}

func (ca *localCA) dropLocked(l *leaf) {
	ca.recent.Remove(l.place)
	delete(ca.leaves, l.host)
}

// sign makes a key and a certificate for host, a name or an address.
func (ca *localCA) sign(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	begin := ca.now().Add(-clockSkew)
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Sluice development"}},
		NotBefore:             begin,
		NotAfter:              earlier(begin.Add(leafValidity), ca.root.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		tmpl.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		tmpl.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.root, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	ca.signed.Inc()
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
