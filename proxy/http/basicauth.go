package http

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/netip"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

const (
	passwordShards = 16
	// shardPasswords bounds the verdicts that a shard keeps of each kind.
	shardPasswords = 256
	// maxVerifying bounds the passwords that wait to be verified, and
	// maxClientVerifying those of one client.
	maxVerifying       = 64
	maxClientVerifying = 4
)

// passwords verifies passwords, which is slow on purpose: as few at a time as
// leave half of the processors to others, the same one once, and with a verdict
// that is kept. So those who are in never wait for those who guess.
//
// Neither passwords nor their hashes are kept, but a MAC of both together under
// a key of the process: an edit of the hash makes it another one.
type passwords struct {
	key    [32]byte
	turns  chan struct{}
	shards [passwordShards]passwordShard

	mu        sync.Mutex // guards the following fields
	verifying map[passwordID]*verifying
	clients   map[netip.Addr]int // how many of verifying each has begun, by networkOf
}

type passwordID [16]byte

type passwordShard struct {
	mu    sync.Mutex // guards right and wrong
	right map[passwordID]struct{}
	wrong map[passwordID]struct{} // apart, so that guesses push out guesses only
}

// verifying is a password being verified; right is written before done is
// closed.
type verifying struct {
	done  chan struct{}
	right bool
}

func newPasswords() *passwords {
	p := &passwords{turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		verifying: map[passwordID]*verifying{}, clients: map[netip.Addr]int{}}
	rand.Read(p.key[:])
	return p
}

// authenticate returns the answer for who is not let in by b, or nil.
func (s *Server) authenticate(x *exchange, b *router.BasicAuth) *answer {
	user, password, ok := credentials(x.req.header)
	if !ok {
		return x.refuse(endUnauthorized, askPassword(b))
	}
	hash, known, err := s.passwordHash(b, user)
	if err != nil {
		x.out.err = err
		return x.refuse(endAuthFailed, plain(503, "whether you may come here cannot be found out at the moment\n"))
	}
	right, busy := s.passwords.verify(&hash, password, x.client.Addr())
	switch {
	case busy:
		return x.refuse(endAuthBusy, &answer{status: 503, body: "too many are signing in; try again in a moment\n",
			fields: []field.Line{noStore[0], {Name: "Retry-After", Value: "1"}}})
	case !right || !known:
		return x.refuse(endUnauthorized, askPassword(b))
	}
	if !b.Keep {
		x.req.header.Del("Authorization")
	}
	return nil
}

// askPassword returns an answer that has a browser ask for a password.
func askPassword(b *router.BasicAuth) *answer {
	realm := b.Realm
	if realm == "" {
		realm = "sluice"
	}
	return &answer{status: 401, body: "a name and a password are needed\n", fields: []field.Line{
		noStore[0], {Name: "WWW-Authenticate", Value: `Basic realm="` + realm + `", charset="UTF-8"`},
	}}
}

// credentials returns what the one Authorization field says. Where there are two,
// nobody knows which of them a backend would believe.
func credentials(h *field.List) (user, password string, ok bool) {
	found := ""
	for _, l := range h.Lines() {
		if field.EqualFold(l.Name, "Authorization") {
			if found != "" {
				return "", "", false
			}
			found = l.Value
		}
	}
	const scheme = "Basic "
	if len(found) < len(scheme) || !field.EqualFold(found[:len(scheme)], scheme) {
		return "", "", false
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimLeft(found[len(scheme):], " "))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(decoded), ":")
}

// verify reports whether password is that of hash, or that there are too many to
// be verified already.
func (p *passwords) verify(hash *router.PasswordHash, password string, client netip.Addr) (right, busy bool) {
	id := p.id(hash, password)
	shard := &p.shards[id[0]%passwordShards]
	if right, known := shard.verdict(id); known {
		return right, false
	}
	v, mine := p.begin(id, client)
	switch {
	case v == nil:
		return false, true
	case !mine:
		<-v.done
		return v.right, false
	}
	p.turns <- struct{}{}
	v.right = matches(hash, password)
	<-p.turns
	shard.keep(id, v.right)
	p.end(id, client, v)
	return v.right, false
}

func (p *passwords) id(hash *router.PasswordHash, password string) (id passwordID) {
	mac := hmac.New(sha256.New, p.key[:])
	mac.Write([]byte(hash.Text + "\x00" + password)) // the hash holds no NUL
	copy(id[:], mac.Sum(nil))
	return id
}

// begin returns how id is being verified, and whether that is the caller's to do;
// nil where it cannot begin.
func (p *passwords) begin(id passwordID, client netip.Addr) (v *verifying, mine bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.verifying[id]; v != nil {
		return v, false
	}
	client = networkOf(client)
	if len(p.verifying) >= maxVerifying || p.clients[client] >= maxClientVerifying {
		return nil, false
	}
	v = &verifying{done: make(chan struct{})}
	p.verifying[id] = v
	p.clients[client]++
	return v, true
}

// networkOf returns what stands for a client: of IPv6, where it has a /64 at least,
// that.
func networkOf(client netip.Addr) netip.Addr {
	client = client.Unmap()
	if client.Is4() || !client.IsValid() {
		return client
	}
	network, _ := client.WithZone("").Prefix(64) // which IPv6 addresses have
	return network.Addr()
}

func (p *passwords) end(id passwordID, client netip.Addr, v *verifying) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.verifying, id)
	client = networkOf(client)
	if p.clients[client]--; p.clients[client] == 0 {
		delete(p.clients, client)
	}
	close(v.done)
}

func (s *passwordShard) verdict(id passwordID) (right, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.right[id]; ok {
		return true, true
	}
	_, ok := s.wrong[id]
	return false, ok
}

func (s *passwordShard) keep(id passwordID, right bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	which := &s.wrong
	if right {
		which = &s.right
	}
	if *which == nil {
		*which = map[passwordID]struct{}{}
	}
	if len(*which) >= shardPasswords {
		for any := range *which {
			delete(*which, any)
			break
		}
	}
	(*which)[id] = struct{}{}
}

// matches verifies a password, in as long as the hash asks for.
func matches(hash *router.PasswordHash, password string) bool {
	if len(hash.Sum) == 0 {
		return bcrypt.CompareHashAndPassword([]byte(hash.Text), []byte(password)) == nil
	}
	sum := argon2.IDKey([]byte(password), hash.Salt, hash.Time, hash.Memory, hash.Threads, uint32(len(hash.Sum)))
	return subtle.ConstantTimeCompare(sum, hash.Sum) == 1
}
