// Package seal keeps what nodes share in etcd, and on disk, from whoever reads
// it there: private keys, accounts, ticket keys. It seals values with the
// cluster key and opens them again.
//
// It owns the format of a sealed value and that of the file which holds the
// cluster key. It never talks to etcd and never decides what is sealed;
// certs/etcdstore and cmd/sluice call it.
//
// # The envelope
//
//	1 byte    version, 1
//	8 bytes   ID of the key that sealed it
//	8 bytes   when it was sealed, in nanoseconds since 1970, big endian
//	24 bytes  nonce, random
//	n bytes   ciphertext, XChaCha20
//	16 bytes  tag, Poly1305
//
// The associated data is the first 17 bytes and the path under which the value
// is kept. So a value that was copied to another path, or whose date was
// altered, does not open. Nonces of 24 bytes may be drawn at random for as many
// values as any cluster writes (draft-irtf-cfrg-xchacha section 2).
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	version   = 1
	idBytes   = 8
	headBytes = 1 + idBytes + 8
	// Overhead is how many bytes longer a sealed value is than what is in it.
	Overhead = headBytes + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// Ring is the cluster key: one or more keys, the first of which seals while all
// of them open. It is immutable and safe for concurrent use. A nil Ring has no
// keys.
type Ring struct {
	keys  []Key
	aeads map[[idBytes]byte]func() cipher.AEAD // which fmt does not look into
}

// newRing returns the ring of keys, of which there is at least one.
func newRing(keys []Key) (*Ring, error) {
	r := &Ring{keys: keys, aeads: make(map[[idBytes]byte]func() cipher.AEAD, len(keys))}
	for _, k := range keys {
		secret := k.secret()
		aead, err := chacha20poly1305.NewX(secret[:])
		if err != nil {
			return nil, err
		}
		r.aeads[k.id] = func() cipher.AEAD { return aead }
	}
	return r, nil
}

// IDs returns the IDs of the keys, that of the one which seals first.
func (r *Ring) IDs() []string {
	if r == nil {
		return nil
	}
	ids := make([]string, len(r.keys))
	for i, k := range r.keys {
		ids[i] = k.ID()
	}
	return ids
}

// Active returns the ID of the key that seals; "" where there is none.
func (r *Ring) Active() string {
	if r == nil {
		return ""
	}
	return r.keys[0].ID()
}

// Has reports whether the ring has the key with that ID.
func (r *Ring) Has(id string) bool {
	if r == nil {
		return false
	}
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == idBytes && r.aeads[[idBytes]byte(raw)] != nil
}

// String names the keys and tells none.
func (r *Ring) String() string {
	if r == nil {
		return "no cluster key"
	}
	return "cluster key " + strings.Join(r.IDs(), ", ")
}

// Format implements fmt.Formatter: whatever the verb, no key is printed.
func (r *Ring) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// LogValue implements slog.LogValuer: a key is never logged.
func (r *Ring) LogValue() slog.Value { return slog.StringValue(r.String()) }

// ErrNoKey says that a ring has no key to seal with.
var ErrNoKey = errors.New("there is no cluster key on this node")

// Seal returns plaintext sealed with the ring's first key for the path that it
// will be kept under, dated now. The error is ErrNoKey or nil.
func (r *Ring) Seal(path string, plaintext []byte, now time.Time) ([]byte, error) {
	if r == nil {
		return nil, ErrNoKey
	}
	k := r.keys[0]
	to := make([]byte, headBytes+chacha20poly1305.NonceSizeX, len(plaintext)+Overhead)
	to[0] = version
	copy(to[1:], k.id[:])
	binary.BigEndian.PutUint64(to[1+idBytes:], uint64(now.UnixNano()))
	nonce := to[headBytes:]
	_, _ = rand.Read(nonce) // it never fails
	return r.aeads[k.id]().Seal(to, nonce, plaintext, associated(to, path)), nil
}

// Open returns what was sealed for path. Errors say in words what is wrong; a
// *MissingKeyError is one that the right key would mend.
func (r *Ring) Open(path string, envelope []byte) ([]byte, error) {
	if _, err := Look(envelope); err != nil {
		return nil, err
	}
	id := [idBytes]byte(envelope[1:])
	if r == nil || r.aeads[id] == nil {
		return nil, &MissingKeyError{ID: hex.EncodeToString(id[:]), Have: r.IDs()}
	}
	rest := envelope[headBytes:]
	nonce, ciphertext := rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:]
	plaintext, err := r.aeads[id]().Open(nil, nonce, ciphertext, associated(envelope, path))
	if err != nil {
		return nil, errors.New("it is damaged, or was sealed for another key of etcd: the seal does not match")
	}
	return plaintext, nil
}

// associated returns what is bound to a value without being in it.
func associated(envelope []byte, path string) []byte {
	return append(append(make([]byte, 0, headBytes+len(path)), envelope[:headBytes]...), path...)
}

// Outside is what can be told of a sealed value without opening it. Anybody may
// have written it.
type Outside struct {
	KeyID string    // of the key that sealed it
	Time  time.Time // when it was sealed
	Size  int       // of what is in it, in bytes
}

// Look reads the outside of a sealed value.
func Look(envelope []byte) (Outside, error) {
	if len(envelope) > 0 && envelope[0] != version {
		return Outside{}, fmt.Errorf("it is not sealed, or by a later program: it begins with byte %#02x, want %#02x", envelope[0], version)
	}
	if len(envelope) < Overhead {
		return Outside{}, fmt.Errorf("it is not sealed, or was cut: it has %d bytes, a sealed value has %d or more", len(envelope), Overhead)
	}
	return Outside{
		KeyID: hex.EncodeToString(envelope[1 : 1+idBytes]),
		Time:  time.Unix(0, int64(binary.BigEndian.Uint64(envelope[1+idBytes:]))),
		Size:  len(envelope) - Overhead,
	}, nil
}

// MissingKeyError says that a value was sealed with a key that is not there.
type MissingKeyError struct {
	ID   string   // of that key
	Have []string // IDs of the keys there are
}

func (e *MissingKeyError) Error() string {
	have := "there is none on this node"
	if len(e.Have) > 0 {
		have = "this node has " + strings.Join(e.Have, ", ")
	}
	return fmt.Sprintf("it is sealed with cluster key %s, and %s: copy the line that begins with %s from cluster_key_file of a node that has it",
		e.ID, have, e.ID)
}
