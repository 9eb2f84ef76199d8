package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/remotegpu/sluice/router"
)

// TLSFiles are PEM files that backends refer to by a name. Either may be absent.
type TLSFiles struct {
	CA        string // authorities that backends' certificates come from
	Cert, Key string // this node's certificate towards backends
}

// Secure says how to speak TLS to a target. Values are comparable; the zero value
// stands for clear text.
type Secure struct {
	On         bool
	ServerName string // sent, and verified where VerifyName is ""
	VerifyName string
	Insecure   bool // nothing is verified
	CA         router.Authorities
	Client     string // the name of TLSFiles with this node's certificate
}

// SecureAs returns what t, which may be nil, says, with this name to send.
func SecureAs(t *router.BackendTLS, serverName string) Secure {
	if t == nil {
		return Secure{}
	}
	return Secure{On: true, ServerName: serverName, VerifyName: t.VerifyName, Insecure: t.Insecure, CA: t.CA, Client: t.Client}
}

// rereadAfter is how long a file is taken to be what it was when last looked at.
const rereadAfter = 10 * time.Second

// tlsStore reads the files of TLSFiles when they are first needed, and anew once
// they have changed. What could be read stays in use while that fails.
type tlsStore struct {
	files map[string]TLSFiles
	log   *slog.Logger

	mu    sync.Mutex // guards the following fields
	pools map[router.Authorities]*kept[x509.CertPool]
	certs map[string]*kept[tls.Certificate]
}

// kept is what was read from files.
type kept[T any] struct {
	value   *T
	looked  time.Time
	changed [2]time.Time // of the files
	failing bool
}

func newTLSStore(files map[string]TLSFiles, log *slog.Logger) *tlsStore {
	return &tlsStore{files: files, log: log,
		pools: map[router.Authorities]*kept[x509.CertPool]{}, certs: map[string]*kept[tls.Certificate]{}}
}

// reread brings k up to date. It needs the lock of the store.
func reread[T any](s *tlsStore, k *kept[T], name string, read func() (*T, error), files ...string) (*T, error) {
	now := time.Now()
	if k.value != nil && now.Sub(k.looked) < rereadAfter {
		return k.value, nil
	}
	k.looked = now
	var changed [2]time.Time
	for i, f := range files {
		if info, err := os.Stat(f); err == nil {
			changed[i] = info.ModTime()
		}
	}
	if k.value != nil && changed == k.changed && !k.failing {
		return k.value, nil
	}
	value, err := read()
	if err == nil {
		k.value, k.changed, k.failing = value, changed, false
		return value, nil
	}
	err = fmt.Errorf("upstream_tls.%s of sluice.yaml: %w", name, err)
	if k.value == nil {
		return nil, err
	}
	if !k.failing {
		s.log.Error("files for TLS with backends cannot be read; what was read before stays in use", "name", name, "err", err)
	}
	k.failing = true
	return k.value, nil
}

// pool returns the authorities of a, which is not zero.
func (s *tlsStore) pool(a router.Authorities) (*x509.CertPool, error) {
	if pem, ok := a.PEM(); ok {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(pem)) // which router has tried
		return pool, nil
	}
	name := a.String()
	files, known := s.files[name]
	if !known || files.CA == "" {
		return nil, fmt.Errorf("sluice.yaml of this node has no upstream_tls.%s.ca; add it, or give the certificates in PEM", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.pools[a]
	if k == nil {
		k = &kept[x509.CertPool]{}
		s.pools[a] = k
	}
	return reread(s, k, name+".ca", func() (*x509.CertPool, error) {
		pem, err := os.ReadFile(files.CA)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", files.CA)
		}
		return pool, nil
	}, files.CA)
}

// client returns this node's certificate called name.
func (s *tlsStore) client(name string) (*tls.Certificate, error) {
	files, known := s.files[name]
	if !known || files.Cert == "" {
		return nil, fmt.Errorf("sluice.yaml of this node has no upstream_tls.%s.cert; add it with its key", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.certs[name]
	if k == nil {
		k = &kept[tls.Certificate]{}
		s.certs[name] = k
	}
	return reread(s, k, name, func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		return &cert, err
	}, files.Cert, files.Key)
}

// CheckTLS says what this node lacks to speak TLS as t, which may be nil, has it.
// The error is a *router.FieldError whose path begins behind that of t.
func (d *Dialer) CheckTLS(t *router.BackendTLS) error {
	if t == nil {
		return nil
	}
	if !t.CA.IsZero() {
		if _, err := d.tls.pool(t.CA); err != nil {
			return &router.FieldError{Path: "ca", Msg: err.Error()}
		}
	}
	if t.Client != "" {
		if _, err := d.tls.client(t.Client); err != nil {
			return &router.FieldError{Path: "client", Msg: err.Error()}
		}
	}
	return nil
}

// ClientTLS returns how to speak TLS as s has it, with these protocols to choose
// from. roots, unless nil, take the place of the system's where s names no
// authorities. Files are looked at for each connection, so that new ones need no
// new configuration.
func (d *Dialer) ClientTLS(s Secure, roots *x509.CertPool, protocols ...string) *tls.Config {
	cfg := &tls.Config{
		ServerName: s.ServerName, InsecureSkipVerify: s.Insecure, RootCAs: roots, MinVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(0), NextProtos: protocols,
		DynamicRecordSizingDisabled: true, // a record for each write, not three
	}
	if s.Client != "" {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.tls.client(s.Client) }
	}
	if s.CA.IsZero() && s.VerifyName == "" {
		return cfg
	}
	name := s.VerifyName
	if name == "" {
		name = s.ServerName
	}
	// crypto/tls verifies by one name and by authorities that never change:
	// VerifyConnection, which resumed sessions go through as well, does it here.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		pool := roots
		if !s.CA.IsZero() {
			var err error
			if pool, err = d.tls.pool(s.CA); err != nil {
				return err
			}
		}
		return verify(state, name, pool)
	}
	return cfg
}

// verify checks that a backend's certificate is good for name.
func verify(state tls.ConnectionState, name string, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the backend has shown no certificate")
	}
	chain := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		chain.AddCert(c)
	}
	leaf := state.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: chain}); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}
