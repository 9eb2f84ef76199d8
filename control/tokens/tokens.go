// Package tokens says who may use the control API: bearer tokens with a role and
// a scope, kept in etcd by their hashes, and client certificates that stand for
// one.
//
// It reads and judges, and never acts: keys come in by Load and Change, and
// control/api asks Verify. A token is 32 random bytes, so that a plain hash
// keeps it as well as a slow one would.
package tokens

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// Folder is where tokens are, below the prefix.
const Folder = "tokens/"

// Role is what a token may do. Each may do what those before it may.
type Role string

const (
	// Viewer reads, but no secrets.
	Viewer Role = "viewer"
	// Operator changes mappings, routes, domains, names, pools and environments, and
	// drains nodes.
	Operator Role = "operator"
	// Admin rolls back, and changes tokens.
	Admin Role = "admin"
)

var roles = []Role{Viewer, Operator, Admin}

// Token is the value of the key tokens/<name>.
type Token struct {
	Name string `json:"-"`
	Rev  int64  `json:"-"` // etcd revision of the value

	Role Role `json:"role"`
	// Envs, unless empty, is what the names of the environments begin with that
	// the token is for, and Pools the services; all else is out of its scope.
	Envs  string   `json:"envs"`
	Pools []string `json:"pools"`
	// Hash is the SHA-256 of the token, in hexadecimal; Former that of the one
	// before, which is good until FormerUntil.
	Hash        string    `json:"hash"`
	Former      string    `json:"former"`
	FormerUntil time.Time `json:"former_until"`
	// Certificate, in the place of Hash, is the name (a DNS or URI name, else the
	// common name) of the client certificate that stands for the token.
	Certificate string    `json:"certificate"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"` // zero: never
	Note        string    `json:"note"`       // for people
}

// MarshalJSON writes what is set, as Parse reads it.
func (t *Token) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Role        Role      `json:"role"`
		Envs        string    `json:"envs,omitempty"`
		Pools       []string  `json:"pools,omitempty"`
		Hash        string    `json:"hash,omitempty"`
		Former      string    `json:"former,omitempty"`
		FormerUntil time.Time `json:"former_until,omitzero"`
		Certificate string    `json:"certificate,omitempty"`
		CreatedAt   time.Time `json:"created_at,omitzero"`
		ExpiresAt   time.Time `json:"expires_at,omitzero"`
		Note        string    `json:"note,omitempty"`
	}{t.Role, t.Envs, t.Pools, t.Hash, t.Former, t.FormerUntil, t.Certificate, t.CreatedAt, t.ExpiresAt, t.Note})
}

// Parse reads the value of the key tokens/<name>. The error is a
// *router.FieldError.
func Parse(name string, value []byte) (*Token, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	t := &Token{Name: name}
	if err := router.Decode(value, t); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	return t, nil
}

// Check says what is wrong with t, which can be written where it returns nil. The
// error is a *router.FieldError.
func (t *Token) Check() error {
	if !slices.Contains(roles, t.Role) {
		return &router.FieldError{Path: "role", Msg: fmt.Sprintf("%q is none; write viewer, operator or admin", t.Role)}
	}
	for _, h := range []struct{ path, hash string }{{"hash", t.Hash}, {"former", t.Former}} {
		if b, err := hex.DecodeString(h.hash); h.hash != "" && (err != nil || len(b) != sha256.Size) {
			return &router.FieldError{Path: h.path, Msg: "is not a SHA-256 in hexadecimal; sluice token create makes one"}
		}
	}
	if (t.Hash == "") == (t.Certificate == "") {
		return &router.FieldError{Path: "hash", Msg: "give either hash or certificate"}
	}
	for path, at := range map[string]time.Time{"created_at": t.CreatedAt, "expires_at": t.ExpiresAt, "former_until": t.FormerUntil} {
		if at.UTC().Year() > 9999 {
			return &router.FieldError{Path: path, Msg: "lies beyond the year 9999, in UTC"}
		}
	}
	if t.Former != "" && t.FormerUntil.IsZero() {
		return &router.FieldError{Path: "former_until", Msg: "is missing: a former token must end"}
	}
	if t.Role == Admin && t.scoped() {
		return &router.FieldError{Path: "envs", Msg: "an admin's token has no scope: whoever may change tokens may change that; make it an operator's"}
	}
	return nil
}

// CheckName refuses what cannot be a token's name. It is part of the token.
func CheckName(name string) error {
	if name == "" || len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return &router.FieldError{Path: "name", Msg: fmt.Sprintf("%q is no name for a token; write 1 to 64 of a-z, 0-9 and hyphens", name)}
	}
	return nil
}

func (t *Token) scoped() bool { return t.Envs != "" || len(t.Pools) > 0 }

// May reports whether the token is for role or more.
func (t *Token) May(role Role) bool { return slices.Index(roles, t.Role) >= slices.Index(roles, role) }

// Unscoped reports whether the token is for all there is, rather than for some
// environments or pools.
func (t *Token) Unscoped() bool { return !t.scoped() }

// HasEnv reports whether an environment is within the token's scope.
func (t *Token) HasEnv(id string) bool { return strings.HasPrefix(id, t.Envs) }

// HasPool reports whether a service is within the token's scope.
func (t *Token) HasPool(service string) bool {
	return len(t.Pools) == 0 || slices.Contains(t.Pools, service)
}

// prefix is what tokens begin with, so that scanners of leaked secrets find them.
const prefix = "sluice_"

// New returns a token of that name, and what is to be stored of it.
func New(name string, now time.Time) (secret string, t *Token) {
	secret = generate(name)
	return secret, &Token{Name: name, Hash: hashOf(secret), CreatedAt: now.UTC().Truncate(time.Second)}
}

// Renew returns another token in the place of t's, which is good for so long.
func (t *Token) Renew(now time.Time, grace time.Duration) (secret string, renewed *Token) {
	secret = generate(t.Name)
	c := *t
	c.Hash, c.Former, c.FormerUntil = hashOf(secret), "", time.Time{}
	if grace > 0 {
		c.Former, c.FormerUntil = t.Hash, now.Add(grace).UTC().Truncate(time.Second)
	}
	return secret, &c
}

func generate(name string) string {
	var b [32]byte
	rand.Read(b[:])
	return prefix + name + "_" + base64.RawURLEncoding.EncodeToString(b[:])
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Registry is the tokens as etcd has them. It is safe for concurrent use; the
// zero value knows none.
type Registry struct {
	mu     sync.RWMutex
	loaded bool
	tokens map[string]*Token
	certs  map[string][]*Token // by certificate; the first one counts
}

// Load replaces all tokens by those among kvs. Those that cannot be read are no
// tokens.
func (r *Registry) Load(_ int64, kvs []etcd.KV) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens, r.certs, r.loaded = map[string]*Token{}, map[string][]*Token{}, true
	for _, kv := range kvs {
		r.put(kv.Key, kv.Value, kv.ModRev)
	}
}

// Change notes changes, in their order.
func (r *Registry) Change(_ int64, changes []etcd.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range changes {
		r.put(c.Key, c.Value, c.ModRev) // nil where it was deleted
	}
}

func (r *Registry) put(key string, value []byte, rev int64) {
	name, ok := strings.CutPrefix(key, Folder)
	if !ok {
		return
	}
	if old := r.tokens[name]; old != nil && old.Certificate != "" {
		r.certs[old.Certificate] = slices.DeleteFunc(r.certs[old.Certificate], func(t *Token) bool { return t == old })
	}
	delete(r.tokens, name)
	t, err := Parse(name, value)
	if err != nil {
		return
	}
	if r.tokens == nil {
		r.tokens, r.certs = map[string]*Token{}, map[string][]*Token{}
	}
	t.Rev = rev
	r.tokens[name] = t
	if t.Certificate != "" {
		r.certs[t.Certificate] = append(r.certs[t.Certificate], t)
		slices.SortFunc(r.certs[t.Certificate], lesser)
	}
}

// lesser orders tokens of one certificate, of which there should be one only:
// whoever puts another one there by hand gives nobody more than the least of them,
// on every node.
func lesser(a, b *Token) int {
	return cmp.Or(cmp.Compare(slices.Index(roles, a.Role), slices.Index(roles, b.Role)), strings.Compare(a.Name, b.Name))
}

// ByCertificate returns the token that a certificate's name stands for, or nil.
func (r *Registry) ByCertificate(name string) *Token {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if all := r.certs[name]; len(all) > 0 {
		return all[0]
	}
	return nil
}

// Get returns a token by its name, or nil. It must not be modified.
func (r *Registry) Get(name string) *Token {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.tokens[name]
}

// All returns the tokens in the order of their names. They must not be modified.
func (r *Registry) All() []*Token {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := slices.Collect(maps.Values(r.tokens))
	slices.SortFunc(all, func(a, b *Token) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// What Verify and VerifyCertificate say of a client. Nobody is told which it was.
var (
	// ErrNotLoaded: it cannot be told yet, since etcd has not been read.
	ErrNotLoaded = errors.New("tokens have not been read from etcd yet")
	ErrUnknown   = errors.New("unknown token")
	ErrExpired   = errors.New("expired token")
)

// Verify returns the token that secret is. It takes as long for a name that there
// is as for one that there is not, and for a hash that is nearly right as for
// one that is not.
func (r *Registry) Verify(secret string, now time.Time) (*Token, error) {
	rest, ok := strings.CutPrefix(secret, prefix)
	name, _, _ := strings.Cut(rest, "_")
	r.mu.RLock()
	t, loaded := r.tokens[name], r.loaded
	r.mu.RUnlock()
	if !loaded {
		return nil, ErrNotLoaded
	}
	known := t
	if known == nil {
		known = &Token{}
	}
	hash := hashOf(secret)
	good := match(hash, known.Hash)
	former := match(hash, known.Former) & earlier(now, known.FormerUntil)
	switch {
	case !ok || t == nil || good|former == 0:
		return nil, ErrUnknown
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return nil, ErrExpired
	}
	return t, nil
}

// match compares hashes in constant time. An empty one matches nothing, and takes
// as long about it.
func match(hash, with string) int {
	there := subtle.ConstantTimeEq(int32(len(with)), int32(len(hash)))
	if there == 0 {
		with = noHash
	}
	return subtle.ConstantTimeCompare([]byte(hash), []byte(with)) & there
}

// noHash is compared with where there is none.
var noHash = strings.Repeat("0", 2*sha256.Size)

func earlier(now, until time.Time) int {
	if now.Before(until) {
		return 1
	}
	return 0
}

// VerifyCertificate returns the token that a client certificate stands for, which
// TLS has verified.
func (r *Registry) VerifyCertificate(cert *x509.Certificate, now time.Time) (*Token, error) {
	names := slices.Clone(cert.DNSNames)
	for _, u := range cert.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		names = append(names, cert.Subject.CommonName)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.loaded {
		return nil, ErrNotLoaded
	}
	for _, name := range names {
		if len(r.certs[name]) == 0 {
			continue
		}
		t := r.certs[name][0]
		if !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) {
			return nil, ErrExpired
		}
		return t, nil
	}
	return nil, ErrUnknown
}
