package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// OCSP is an authority that issues certificates which ask for a stapled OCSP
// response (RFC 7633), and the responder that they name, on a real socket. Make
// one with NewOCSP. All methods are safe for concurrent use.
type OCSP struct {
	Root    *x509.Certificate
	RootPEM []byte
	Roots   *x509.CertPool

	t   testing.TB
	url string
	key *ecdsa.PrivateKey

	mu     sync.Mutex // guards the following
	serial int64
	asked  int
	play   func(*OCSPAnswer)
}

// OCSPAnswer is an answer on its way, for a test to change.
type OCSPAnswer struct {
	ocsp.Response                     // good, of a minute ago, for an hour
	By            *x509.Certificate   // who signs it; the authority
	Key           *ecdsa.PrivateKey   // of By
	Spoil         func([]byte) []byte // what becomes of the bytes; nil: nothing
	HTTPStatus    int                 // 0: 200
}

// NewOCSP starts the responder, which ends with the test.
func NewOCSP(t testing.TB) *OCSP {
	t.Helper()
	o := &OCSP{t: t, key: newOCSPKey(t), Roots: x509.NewCertPool(), serial: 100}
	o.Root, o.RootPEM = o.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil, o.key)
	o.Roots.AddCert(o.Root)
	server := httptest.NewServer(http.HandlerFunc(o.serve))
	t.Cleanup(server.Close)
	o.url = server.URL
	return o
}

func newOCSPKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (o *OCSP) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	o.t.Helper()
	o.mu.Lock()
	o.serial++
	tmpl.SerialNumber = big.NewInt(o.serial)
	o.mu.Unlock()
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), o.key)
	if err != nil {
		o.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		o.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Issue makes a certificate for names, with that of the authority behind it, and
// its key. It asks for stapling if must is set, and names the responder in any
// case.
func (o *OCSP) Issue(must bool, names ...string) (chain, key []byte) {
	o.t.Helper()
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, OCSPServer: []string{o.url},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if must {
		value, err := asn1.Marshal([]int{5})
		if err != nil {
			o.t.Fatal(err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: value}}
	}
	private := newOCSPKey(o.t)
	_, chain = o.sign(tmpl, o.Root, private)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		o.t.Fatal(err)
	}
	return append(chain, o.RootPEM...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Responder makes a responder's certificate, which the authority has named as
// such only if named is set, and its key.
func (o *OCSP) Responder(named bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	o.t.Helper()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "responder"}, KeyUsage: x509.KeyUsageDigitalSignature}
	if named {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}
	key := newOCSPKey(o.t)
	cert, _ := o.sign(tmpl, o.Root, key)
	return cert, key
}

// Play has answers changed from now on; nil: they are good.
func (o *OCSP) Play(play func(*OCSPAnswer)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.play = play
}

// Asked returns how many requests there were.
func (o *OCSP) Asked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

func (o *OCSP) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	req, err := ocsp.ParseRequest(body)
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/ocsp-request" {
		http.Error(w, "no OCSP request", http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	o.asked++
	play := o.play
	o.mu.Unlock()
	now := time.Now()
	a := &OCSPAnswer{Response: ocsp.Response{
		Status: ocsp.Good, SerialNumber: req.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
	}, By: o.Root, Key: o.key}
	if play != nil {
		play(a)
	}
	if a.By != o.Root {
		a.Certificate = a.By
	}
	der, err := ocsp.CreateResponse(o.Root, a.By, a.Response, a.Key)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if a.Spoil != nil {
		der = a.Spoil(der)
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	if a.HTTPStatus != 0 {
		w.WriteHeader(a.HTTPStatus)
	}
	w.Write(der)
}
