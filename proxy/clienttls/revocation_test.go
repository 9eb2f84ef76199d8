package clienttls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/router"
)

// staffCA is an authority, of which there are several of one name.
type staffCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newStaffCA(t *testing.T, serial int64) staffCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := staffCA{t: t, key: key}
	ca.cert = ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "Staff CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, key)
	return ca
}

// sign signs a certificate of an hour's life for key.
func (ca staffCA) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	ca.t.Helper()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := ca.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return signed
}

func (ca staffCA) leaf(serial int64) []*x509.Certificate {
	return []*x509.Certificate{ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "alice"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.key)}
}

// crl returns a list, in PEM, as of so long ago.
func (ca staffCA) crl(ago time.Duration, extensions []pkix.Extension, serials ...int64) []byte {
	ca.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-ago), NextUpdate: time.Now().Add(time.Hour), ExtraExtensions: extensions}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// termsOf returns terms with authorities and lists.
func termsOf(t *testing.T, lists []byte, cas ...staffCA) *clienttls.Terms {
	t.Helper()
	var all []byte
	for _, ca := range cas {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	}
	files := clienttls.AuthorityFiles{CA: filepath.Join(t.TempDir(), "ca"), CRL: filepath.Join(t.TempDir(), "crl")}
	for path, content := range map[string][]byte{files.CA: all, files.CRL: lists} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return clienttls.New(clienttls.Config{Authorities: map[string]clienttls.AuthorityFiles{"staff": files}})
}

// An authority that has renewed its key under its old name has a list for each.
func TestListsOfOldAndNewKeyBothCount(t *testing.T) {
	old, renewed := newStaffCA(t, 1), newStaffCA(t, 2)
	terms := termsOf(t, append(old.crl(2*time.Minute, nil, 77), renewed.crl(time.Minute, nil, 78)...), old, renewed)
	staff := &router.ClientAuth{CA: "staff"}
	if said := terms.Trouble(staff); said != "" {
		t.Fatal(said)
	}
	for _, tc := range []struct {
		ca     staffCA
		serial int64
		good   bool
	}{{old, 77, false}, {old, 78, true}, {renewed, 78, false}, {renewed, 77, true}} {
		if id := terms.Auth(staff).Identify(tc.ca.leaf(tc.serial), time.Now()); id.Verified != tc.good {
			t.Errorf("%d under the key of %v: %+v", tc.serial, tc.ca.cert.SerialNumber, id)
		}
	}
}

// Where there are lists, a key without one lets nobody in.
func TestKeyWithoutAList(t *testing.T) {
	old, renewed := newStaffCA(t, 1), newStaffCA(t, 2)
	terms := termsOf(t, renewed.crl(time.Minute, nil), old, renewed)
	if id := terms.Auth(&router.ClientAuth{CA: "staff"}).Identify(old.leaf(5), time.Now()); id.Verified || !strings.Contains(id.Why, "no list of revoked certificates") {
		t.Errorf("under a key whose list is missing: %+v", id)
	}
}

// A part of a list, taken for the whole, would let in who the rest revokes.
func TestPartsOfListsAreRefused(t *testing.T) {
	ca := newStaffCA(t, 1)
	delta := []pkix.Extension{{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
	terms := termsOf(t, append(ca.crl(2*time.Minute, nil, 77), ca.crl(time.Minute, delta)...), ca)
	staff := &router.ClientAuth{CA: "staff"}
	if said := terms.Trouble(staff); !strings.Contains(said, "give the whole list") {
		t.Errorf("of a delta list it says %q", said)
	}
	if id := terms.Auth(staff).Identify(ca.leaf(5), time.Now()); id.Verified {
		t.Error("somebody gets in")
	}
}
