package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// Imported is the Issuer of certificates that were brought by an operator
// rather than obtained.
const Imported = "imported"

// Stored is a certificate as the nodes share it. It is immutable, but for what
// the callee of an interface says of bytes that it returned.
type Stored struct {
	// Name is what it was stored for, in lower case, such as *.ssh.x-gpu.com.
	// The certificate may cover further names.
	Name string
	// Issuer is certmagic's key of whoever issued it, such as
	// acme-v02.api.letsencrypt.org-directory, or Imported.
	Issuer string
	// Chain and Key are PEM, as they were stored. Key is a secret.
	Chain, Key []byte
	// Meta is certmagic's CertificateResource in JSON; nil: none was stored.
	Meta []byte
	// Certificate is Chain and Key, parsed, with its Leaf. Never nil, and the
	// same pointer each time as long as nothing else is stored.
	Certificate *tls.Certificate
	// Rev orders what was stored under one name and issuer: a later one has a
	// higher Rev. It says nothing across names or clusters.
	Rev int64
	// Modified is when it was stored, by the clock of the node that did.
	Modified time.Time
	// Gone says that it was deleted from storage since. It stays on the shelf
	// until it has expired or another one is stored in its place.
	Gone bool
}

// ParseStored makes a Stored of what is kept for a certificate, or says what is
// wrong with it: a key that is not the chain's, a chain that does not cover
// name. It neither looks at dates nor asks who signed the chain. It sets Name,
// Issuer, Chain, Key, Meta and Certificate.
func ParseStored(issuer, name string, chain, key, meta []byte) (*Stored, error) {
	cert, err := parsePair(name, chain, key)
	if err != nil {
		return nil, fmt.Errorf("the stored certificate of %s from %s %w", name, issuer, err)
	}
	return &Stored{Name: name, Issuer: issuer, Chain: chain, Key: key, Meta: meta, Certificate: cert}, nil
}

// parsePair reads a certificate that is to be good for name. Its error goes on
// where "the certificate" begins.
func parsePair(name string, chain, key []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("is not usable: %w", err)
	}
	if cert.Leaf == nil { // GODEBUG=x509keypairleaf=0
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("is not usable: %w", err)
		}
	}
	host := name
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		host = "any." + parent
	}
	if err := cert.Leaf.VerifyHostname(host); err != nil {
		return nil, fmt.Errorf("is for another name: %w", err)
	}
	return &cert, nil
}

// Shelf has every certificate that any node has stored, in memory: it is filled
// from this node's disk at once, and kept up to date by watching storage. With
// storage away it stays as it was. All methods are safe for concurrent use and
// never wait for the network.
type Shelf interface {
	// Stored returns the certificates stored for exactly that name, in lower
	// case, one for each issuer that has issued one, in the order of issuers.
	// Those that are torn, corrupt or sealed with a key that this node lacks
	// are not among them; in their place is the last good one of the same
	// issuer, if there was one. The result is the caller's.
	Stored(name string) []*Stored
	// Served is Stored without Chain and Key, which are sealed in memory too: it
	// neither opens nor parses them.
	Served(name string) []*Stored
	// StoredNames returns the names for which Stored returns something, in no
	// particular order. The result is the caller's.
	StoredNames() []string
	// StoredTrouble says in words why something that is stored for name is not
	// used, and nil where all is. It is meant for the verdict of the name.
	StoredTrouble(name string) error
	// Lacking says in words which cluster key this node would need to obtain, or
	// to read, the certificate of a name, and does not have; nil: it has what
	// it needs, as far as is known.
	Lacking(name string) error
	// WatchStored has changed called with names after Stored or StoredTrouble
	// of them would answer otherwise than before, until stop is called. What
	// was there before the call is not told: read StoredNames after it. Calls
	// come one at a time, from a goroutine of the shelf's, after the change is
	// to be seen, and must not block; names is the callee's. Once stop has
	// returned, no call is under way, so changed must not call it.
	WatchStored(changed func(names []string)) (stop func())
}

// Value is a small value that nodes share.
type Value struct {
	Data     []byte    // the receiver's to keep, not to modify
	Rev      int64     // for Swap; higher after each change. 0: there is none
	Modified time.Time // by the clock of the node that wrote it
}

// ErrSwapped is what Swap returns where another node was quicker. Get the value
// again and decide anew.
var ErrSwapped = errors.New("another node has changed it meanwhile")

// Shared are small values that the nodes of a cluster share, sealed with the
// cluster key wherever they are kept. Keys lie below one of these:
//
//	shared/    what nodes hand to each other, such as ticket keys
//	attempts/  what the last attempt for a name came to: AttemptsKey
//	limits/    what an authority has refused, and until when
//
// The first two are watched and in memory on every node, and shared/ on disk as
// well; of limits/, Peek and WatchShared know nothing. All methods are safe for
// concurrent use.
type Shared interface {
	// Get reads the value as storage has it now, whichever node wrote it. The
	// error is fs.ErrNotExist where there is none. One that is damaged is
	// returned without Data, for Swap to write over it.
	Get(ctx context.Context, key string) (Value, error)
	// Peek returns the value as this node has it in memory, which may be older,
	// and false where it has none. It waits for nobody.
	Peek(key string) (Value, bool)
	// Swap writes the value if its revision is still since, 0 where there must
	// be none, and returns its new revision; nil data deletes it. The error is
	// ErrSwapped where it is another one; nothing was written then. With any
	// other error it may have been written.
	Swap(ctx context.Context, key string, since int64, data []byte) (rev int64, err error)
	// WatchShared has changed called with each key below a folder, shared/ or
	// attempts/, after Peek of it would answer otherwise than before, until
	// stop is called. As with WatchStored, what was there before is not told,
	// calls come one at a time and must not block, and none is under way once
	// stop has returned.
	WatchShared(folder string, changed func(key string)) (stop func())
}

// Store is all that the nodes of a cluster keep together, as certs/etcdstore
// does it.
type Store interface {
	certmagic.Storage
	certmagic.TryLocker
	certmagic.LockLeaseRenewer
	Shelf
	Shared
	// PutStored stores a certificate, all of it at once, under its Issuer and
	// Name, in place of the one that is there. Of s it takes Issuer, Name,
	// Chain, Key and Meta, and refuses what ParseStored refuses. The folder is
	// removed by Delete of FolderOf.
	PutStored(ctx context.Context, s *Stored) error
}

// AttemptsKey is the key of Shared for what attempts for a name came to.
func AttemptsKey(name string) string { return "attempts/" + certmagic.StorageKeys.Safe(name) }

// maxValue bounds a value of Shared, in bytes.
const maxValue = 256 << 10

// CheckShared says what is wrong with a key of Shared or with its value.
func CheckShared(key string, data []byte) error {
	folder, rest, _ := strings.Cut(key, "/")
	switch {
	case folder != "shared" && folder != "attempts" && folder != "limits":
		return fmt.Errorf("shared value %q: want a key below shared/, attempts/ or limits/", key)
	case rest == "" || path.Clean(key) != key:
		return fmt.Errorf("shared value %q: want a plain key such as shared/tickets", key)
	case len(data) > maxValue:
		return fmt.Errorf("shared value %s: %d bytes, want at most %d", key, len(data), maxValue)
	}
	return nil
}

// FileOf says which certificate, and which of its three files, a key of
// certmagic's storage is: certificates/<issuer>/<name>/<name>.<suffix>, suffix
// being crt, key or json. ok is false for any other key.
func FileOf(key string) (issuer, name, suffix string, ok bool) {
	rest, isCert := strings.CutPrefix(key, "certificates/")
	parts := strings.Split(rest, "/")
	if !isCert || len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return "", "", "", false
	}
	suffix, isFile := strings.CutPrefix(parts[2], parts[1]+".")
	if !isFile || suffix != "crt" && suffix != "key" && suffix != "json" {
		return "", "", "", false
	}
	name = parts[1]
	if strings.Contains(name, "*") {
		return "", "", "", false // that is not how it is written in keys
	}
	if parent, wildcard := strings.CutPrefix(name, "wildcard_."); wildcard {
		name = "*." + parent
	}
	// A folder of another spelling, such as *.example.com, is nobody's honest work,
	// and must not stand for the certificate.
	return parts[0], name, suffix, strings.HasPrefix(key, FolderOf(parts[0], name)+"/")
}

// FolderOf returns the folder of storage for the certificate of name from
// issuer.
func FolderOf(issuer, name string) string {
	return certmagic.StorageKeys.CertsSitePrefix(issuer, name)
}

// LoadStored reads a certificate from storage rather than from a shelf. The
// error is fs.ErrNotExist where there is none.
func LoadStored(ctx context.Context, storage certmagic.Storage, issuer, name string) (*Stored, error) {
	keys := certmagic.StorageKeys
	chain, err := storage.Load(ctx, keys.SiteCert(issuer, name))
	if err != nil {
		return nil, err
	}
	key, err := storage.Load(ctx, keys.SitePrivateKey(issuer, name))
	if err != nil {
		return nil, err
	}
	meta, err := storage.Load(ctx, keys.SiteMeta(issuer, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return ParseStored(issuer, name, chain, key, meta)
}
