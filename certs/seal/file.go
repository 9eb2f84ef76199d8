package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/chacha20poly1305"
)

// Key is one key of a ring. The zero value is not usable. It prints as its ID,
// also where it is part of what is printed: fmt looks into no function.
type Key struct {
	id     [idBytes]byte
	secret func() [chacha20poly1305.KeySize]byte
}

// NewKey returns a random key.
func NewKey() Key {
	var secret [chacha20poly1305.KeySize]byte
	_, _ = rand.Read(secret[:]) // it never fails
	return keyOf(secret)
}

// keyOf returns the key with that secret. The ID is made of the secret, and so
// tells a mistyped key from the one that was meant; it does not tell the key.
func keyOf(secret [chacha20poly1305.KeySize]byte) Key {
	mac := hmac.New(sha256.New, secret[:])
	mac.Write([]byte("sluice cluster key ID"))
	return Key{id: [idBytes]byte(mac.Sum(nil)), secret: func() [chacha20poly1305.KeySize]byte { return secret }}
}

// ID returns the key's ID, 16 hexadecimal digits. It is no secret.
func (k Key) ID() string { return hex.EncodeToString(k.id[:]) }

// String returns the ID: the key itself is never printed.
func (k Key) String() string { return "cluster key " + k.ID() }

// Format implements fmt.Formatter: whatever the verb, it prints the ID.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue implements slog.LogValuer: the key itself is never logged.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Line returns the key as it stands in a file, without an end of line. It is
// the one way to get the secret out.
func (k Key) Line() string {
	secret := k.secret()
	return k.ID() + " " + base64.StdEncoding.EncodeToString(secret[:])
}

// fileHead is what a file of keys begins with.
const fileHead = `# The cluster key of Sluice: whoever has it can read the private keys in etcd.
# The first key seals, all of them open. The same on all nodes.
`

// maxFile bounds a file of keys, in bytes, and maxKeys the keys in it.
const (
	maxFile = 64 << 10
	maxKeys = 64
)

// Parse reads the text of a file of keys: a line for each, its ID and its 32
// bytes in base64, apart from empty lines and those that begin with #. Errors
// name the line, and none of what could be a secret.
func Parse(text []byte) (*Ring, error) {
	var keys []Key
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		k, err := parseLine(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		for _, other := range keys {
			if other.id == k.id {
				return nil, fmt.Errorf("line %d: key %s is there twice", n, k.ID())
			}
		}
		if keys = append(keys, k); len(keys) > maxKeys {
			return nil, fmt.Errorf("line %d: more than %d keys", n, maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in it: want a line such as `sluice certs key generate` prints")
	}
	return newRing(keys)
}

func parseLine(line string) (Key, error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return Key{}, fmt.Errorf("want two words, the ID of a key and its %d bytes in base64; there are %d", chacha20poly1305.KeySize, len(fields))
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return Key{}, errors.New("the second word is not base64")
	}
	if len(raw) != chacha20poly1305.KeySize {
		return Key{}, fmt.Errorf("the key has %d bytes, want %d", len(raw), chacha20poly1305.KeySize)
	}
	k := keyOf([chacha20poly1305.KeySize]byte(raw))
	if k.ID() != fields[0] {
		return Key{}, fmt.Errorf("the ID is %s, and the key's is %s: one of the two was copied wrong", shown(fields[0]), k.ID())
	}
	return k, nil
}

// shown returns a word of a file as an error may have it: one that is no ID may
// be a key in the wrong place.
func shown(id string) string {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != idBytes {
		return "not one of 16 hexadecimal digits"
	}
	return id
}

// FormatFile returns the text of a file of keys, of which the first seals.
func FormatFile(keys []Key) []byte {
	text := []byte(fileHead)
	for _, k := range keys {
		text = append(append(text, k.Line()...), '\n')
	}
	return text
}

// ReadFile reads a file of keys. It refuses one that others than its owner may
// read or write. The error is fs.ErrNotExist where there is none.
func ReadFile(path string) (*Ring, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("read the cluster key: %s is not a file", path)
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("read the cluster key: %s has mode %#o, and others than its owner can read it: `chmod 600 %s`", path, mode.Perm(), path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("read the cluster key: %s has %d bytes, which is no file of keys", path, info.Size())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	ring, err := Parse(text)
	clear(text)
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %s: %w", path, err)
	}
	return ring, nil
}

// WriteFile writes a file of keys, of which the first seals, for its owner
// alone. It appears whole and on disk. The error is fs.ErrExist where there is
// one and replace is false.
func WriteFile(path string, keys []Key, replace bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the cluster key: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(f.Name()); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, err = f.Write(FormatFile(keys))
	if err = errors.Join(err, giveToOwner(f, path), f.Sync(), f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path) // unlike a rename it replaces nothing
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// giveToOwner has f belong, if root writes it, to whoever has the file that it
// replaces, or else the directory: nodes seldom run as root.
func giveToOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		info, err = os.Stat(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		return f.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// Keys returns the keys of the ring, the one that seals first.
func (r *Ring) Keys() []Key {
	if r == nil {
		return nil
	}
	return append([]Key(nil), r.keys...)
}
