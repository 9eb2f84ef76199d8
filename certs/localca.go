package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The files of the development CA, in the data directory. Clients are given the
// first; whoever has the second can impersonate any server to them.
const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"
)

// rootValidity is how long a new root holds.
const rootValidity = 10 * 365 * 24 * time.Hour

// openLocalCA loads the development CA in dir, or makes one there if there is
// none. What it cannot use it leaves alone and refuses in words: clients may
// trust it, so that a new root in its place would have to be handed out again.
func openLocalCA(dir string, signed prometheus.Counter) (*localCA, error) {
	certPath, keyPath := filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile)
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := os.ReadFile(keyPath)
	for _, err := range []error{certErr, keyErr} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if certErr == nil && keyErr != nil {
		return nil, fmt.Errorf("%s is there but its key %s is not: %s", certPath, keyPath, caAdvice)
	}
	var key crypto.Signer
	var err error
	if keyErr == nil {
		if key, err = parseKey(keyPEM); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", keyPath, err, caAdvice)
		}
	}
	if certErr != nil {
		// A key without its certificate is where an earlier first start was
		// cut off: the key is written first, and nobody trusts it yet.
		if certPEM, key, err = createRoot(certPath, keyPath, key); err != nil {
			return nil, err
		}
	}
	root, err := parseRoot(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", certPath, err, caAdvice)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(root.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to the key %s: %s", certPath, keyPath, caAdvice)
	}
	return newLocalCA(root, key, signed), nil
}

const caAdvice = "restore both files, or delete both to have a new CA made, which clients must then be told to trust"

// createRoot writes a new root, and a new key unless one is given.
func createRoot(certPath, keyPath string, key crypto.Signer) (certPEM []byte, _ crypto.Signer, err error) {
	if err := os.MkdirAll(filepath.Dir(certPath), 0o700); err != nil {
		return nil, nil, err
	}
	if key == nil {
		ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(ec)
		if err != nil {
			return nil, nil, err
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := writeFile(keyPath, block, 0o600); err != nil {
			return nil, nil, err
		}
		key = ec
	}
	serial := newSerial()
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// Several of these may end up in one trust store: tell them apart.
		Subject:               pkix.Name{Organization: []string{"Sluice"}, CommonName: "Sluice development CA " + hex.EncodeToString(serial.Bytes()[:4])},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certPEM, key, writeFile(certPath, certPEM, 0o644)
}

// newSerial returns a serial number of 127 random bits that is never short.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // positive, and all 16 bytes long
	return new(big.Int).SetBytes(b[:])
}

// parseKey reads a private key in PEM.
func parseKey(blob []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(blob)
	if block == nil {
		return nil, errors.New("no private key in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

// parseRoot reads a root certificate in PEM that is fit to sign with now.
func parseRoot(blob []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(blob)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in it")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	switch {
	case !root.IsCA || root.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("it is not the certificate of a CA")
	case root.CheckSignatureFrom(root) != nil:
		return nil, errors.New("its signature is not its own: it is damaged or not a root")
	case time.Now().After(root.NotAfter):
		return nil, fmt.Errorf("it expired on %s", root.NotAfter.UTC().Format(time.DateOnly))
	}
	return root, nil
}

// writeFile makes path hold data, all of it or nothing, also after a crash.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil { // not subject to the umask
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync() // or the name may not survive a crash
}
