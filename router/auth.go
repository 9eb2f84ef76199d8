package router

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
)

// BasicAuth lets those in who know a user's password (RFC 7617).
type BasicAuth struct {
	Users map[string]PasswordHash `json:"users"` // by name; empty where File is given
	// File is the name that the node's sluice.yaml has for a file of users.
	File  string `json:"file"`
	Realm string `json:"realm"` // "" means "sluice"
	// Keep has the backend get the credentials too.
	Keep bool `json:"keep"`

	decoy *PasswordHash
}

// Decoy returns the hash that the password of an unknown user is held against,
// so that it takes as long as that of one who is known; nil where there is a
// File, which has its own.
func (b *BasicAuth) Decoy() *PasswordHash { return b.decoy }

func (b *BasicAuth) check(at string) error {
	switch {
	case b.File != "" && len(b.Users) > 0:
		return fieldErrorf(at, "users and file exclude each other; keep one")
	case b.File != "" && !isFileName(b.File):
		return fieldErrorf(join(at, "file"), "is not a name under password_files in sluice.yaml")
	case b.File == "" && len(b.Users) == 0:
		return fieldErrorf(join(at, "users"), "is missing; give users and the hashes of their passwords, {\"name\": \"$2y$10$...\"}, as htpasswd -nB makes them")
	}
	names := make([]string, 0, len(b.Users))
	for name := range b.Users {
		if !IsUserName(name) {
			return fieldErrorf(join(at, "users"), "%q is not a user's name, which is not empty and holds neither a colon nor a control character", name)
		}
		names = append(names, name)
	}
	if !isPlainText(b.Realm) || strings.ContainsAny(b.Realm, `"\`) {
		return fieldErrorf(join(at, "realm"), "%q holds a quote, a backslash or a control character; leave it out", b.Realm)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	decoy := b.Users[names[0]]
	b.decoy = &decoy
	return nil
}

// IsUserName reports whether s can be a user's name in BasicAuth.
func IsUserName(s string) bool { return s != "" && !strings.Contains(s, ":") && isPlainText(s) }

// PasswordHash is what is kept of a password, by bcrypt or Argon2id. It is never
// part of an error.
type PasswordHash struct {
	Text string // as written
	// Of Argon2id (RFC 9106); Sum is empty for bcrypt.
	Salt, Sum    []byte
	Time, Memory uint32 // passes, KiB
	Threads      uint8
}

// The most that verifying one password may take: about a second, and 64 MiB.
const (
	maxBcryptCost    = 14
	maxArgon2Time    = 10
	maxArgon2Memory  = 64 << 10
	maxArgon2Threads = 16
)

const hashForms = "write one of bcrypt (\"$2y$10$...\", from htpasswd -nB) or Argon2id (\"$argon2id$v=19$m=65536,t=3,p=4$...\")"

// UnmarshalText reads a hash in the form that htpasswd and crypt have it.
func (h *PasswordHash) UnmarshalText(text []byte) error {
	*h = PasswordHash{Text: string(text)}
	parts := strings.Split(h.Text, "$")
	if len(parts) < 2 || parts[0] != "" {
		return fieldErrorf("", "is not the hash of a password, which must not stand here itself; "+hashForms)
	}
	switch parts[1] {
	case "2a", "2b", "2y":
		return h.checkBcrypt(parts)
	case "argon2id":
		return h.readArgon2(parts)
	}
	return fieldErrorf("", "is a hash of another kind than bcrypt and Argon2id, which withstand guessing; "+hashForms)
}

func (h *PasswordHash) checkBcrypt(parts []string) error {
	const digits = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	if len(parts) != 4 || len(parts[2]) != 2 || len(parts[3]) != 53 || strings.Trim(parts[3], digits) != "" {
		return fieldErrorf("", "is not a whole hash of bcrypt, which is 60 characters long")
	}
	cost, err := strconv.Atoi(parts[2])
	if err != nil || cost < 4 || cost > maxBcryptCost {
		return fieldErrorf("", "must have a cost from 4 to %d: each password that somebody tries takes as long; 10 to 12 is usual", maxBcryptCost)
	}
	return nil
}

func (h *PasswordHash) readArgon2(parts []string) error {
	if len(parts) != 6 || parts[2] != "v=19" {
		return fieldErrorf("", "is not a whole hash of Argon2id, version 19; "+hashForms)
	}
	var n [3]uint64
	given := strings.Split(parts[3], ",")
	for i, name := range []string{"m=", "t=", "p="} {
		if len(given) != 3 || !strings.HasPrefix(given[i], name) {
			return fieldErrorf("", "must name memory, time and threads of Argon2id as m=65536,t=3,p=4")
		}
		var err error
		if n[i], err = strconv.ParseUint(given[i][2:], 10, 32); err != nil || n[i] == 0 {
			return fieldErrorf("", "must name memory, time and threads of Argon2id as m=65536,t=3,p=4")
		}
	}
	if n[0] > maxArgon2Memory || n[1] > maxArgon2Time || n[2] > maxArgon2Threads || n[0] < 8*n[2] {
		return fieldErrorf("", "asks for more than m=%d,t=%d,p=%d, or for less memory than 8 times p: each password that somebody tries takes as much",
			maxArgon2Memory, maxArgon2Time, maxArgon2Threads)
	}
	h.Memory, h.Time, h.Threads = uint32(n[0]), uint32(n[1]), uint8(n[2])
	var err, err2 error
	h.Salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	h.Sum, err2 = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err != nil || err2 != nil || len(h.Salt) < 8 || len(h.Sum) < 16 || len(h.Sum) > 64 {
		return fieldErrorf("", "is not a whole hash of Argon2id: salt or sum is no base64, or too short")
	}
	return nil
}
