package http

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// maxAuthBody bounds what a service may have a client told.
const maxAuthBody = 64 << 10

// grant is what a service says of a request that it lets pass.
type grant struct {
	names []string     // of fields that are its alone, in lower case with - for _
	lines []field.Line // their values
}

// apply has h say what g does, and nothing else under its names.
func (g *grant) apply(h *field.List) {
	if len(g.names) == 0 {
		return
	}
	h.DelFunc(func(l *field.Line) bool {
		for _, name := range g.names {
			if likeName(l.Name, name) {
				return true
			}
		}
		return false
	})
	for _, l := range g.lines {
		h.Append(l)
	}
}

// ask has the service of f say whether x may pass. It returns the answer for who
// may not, or nil.
func (s *Server) ask(x *exchange, f *router.ForwardAuth) *answer {
	id, cached := s.grants.id(x, f)
	if cached {
		if x.grant = s.grants.find(id, x.began); x.grant != nil {
			return nil
		}
	}
	said, failed := s.askService(x, f)
	switch {
	case failed != nil && failed.status == statusClientGone:
		return &answer{failed: failed}
	case failed != nil:
		return x.authFailed(f, failed.err)
	case said.status >= 500:
		return x.authFailed(f, fmt.Errorf("it answers with status %d", said.status))
	case said.tooLong || said.status < 200:
		return x.authFailed(f, fmt.Errorf("its answer, with status %d, is none that can be passed on", said.status))
	case said.status >= 300:
		return x.refuse(endAuthDenied, said.answer())
	}
	x.grant = &grant{names: f.Names()}
	for _, l := range said.fields.Lines() {
		for _, name := range f.Copy {
			if field.EqualFold(l.Name, name) {
				x.grant.lines = append(x.grant.lines, l)
			}
		}
	}
	if cached {
		s.grants.keep(id, x.grant, time.Now().Add(f.Cache.TTL))
	}
	return nil
}

func (x *exchange) authFailed(f *router.ForwardAuth, why error) *answer {
	status := f.OnFailure
	if status == 0 {
		status = 503
	}
	x.out.err = fmt.Errorf("ask forward_auth: %w", why)
	return x.refuse(endAuthFailed, plain(status, "whether you may come here cannot be found out at the moment\n"))
}

// askService sends the head of x to the service and returns its answer.
func (s *Server) askService(x *exchange, f *router.ForwardAuth) (*recorded, *failure) {
	said, h := &recorded{}, new(field.List)
	for _, l := range x.req.header.Lines() {
		h.Append(l)
	}
	dropFields(h, isForwarding)
	h.DelFunc(isOfBody)
	sub := &exchange{conn: x.conn, client: x.client, began: time.Now(), body: noBody{}, down: said}
	sub.req = request{method: f.Method, authority: x.req.authority, header: h, host: x.req.host}
	if sub.req.method == "" {
		sub.req.method = "GET"
	}
	sub.req.target, _ = parseTarget("/" + strings.TrimPrefix(f.Path, "/"))
	sub.setForwarding(h)
	x.tellIdentity(h)
	h.Add("X-Forwarded-Method", x.req.method)
	h.Add("X-Forwarded-Uri", x.req.target.String())
	sub.hop = hop{backend: f.Backend, vars: x.hop.vars, connect: router.DefaultConnectTimeout, total: f.EffectiveTimeout()}

	x.life.attach(asking{sub})
	sub.startTotal()
	failed := s.forward.forward(sub)
	sub.times.end()
	sub.life.end()
	if !x.life.detach() {
		return nil, x.clientGone(x.life.abandoned())
	}
	if failed == nil && said.aborted {
		failed = &failure{status: 502, err: errAuthCut}
	}
	return said, failed
}

var errAuthCut = errors.New("its answer broke off")

// asking has the service no longer be asked once nobody waits for its answer.
type asking struct{ sub *exchange }

func (a asking) interrupt() { a.sub.life.abandon(errClientLeft) }

// isOfBody reports whether a request field is about the body, or would have a
// service that is asked without one give half an answer.
func isOfBody(l *field.Line) bool {
	switch {
	case l.ID == field.ContentLength || l.ID == field.Expect:
		return true
	case l.ID != field.Other:
		return false
	}
	return field.EqualFold(l.Name, "Range") || len(l.Name) > 3 && field.EqualFold(l.Name[:3], "If-")
}

// noBody is the body of a request that has none.
type noBody struct{}

func (noBody) size() int64              { return 0 }
func (noBody) atHand() ([]byte, bool)   { return nil, true }
func (noBody) Read([]byte) (int, error) { return 0, io.EOF }
func (noBody) trailer() *field.List     { return nil }
func (noBody) announced() string        { return "" }
func (noBody) failure() *failure        { return nil }
func (noBody) stop()                    {}

// recorded is a response that is kept rather than sent. It is a downstream.
type recorded struct {
	status  int
	fields  field.List
	body    []byte
	tooLong bool
	aborted bool
}

func (r *recorded) inform(int, *field.List) {}
func (r *recorded) header() *field.List     { return &r.fields }

// writeHead keeps the fields for longer than the exchange lasts.
func (r *recorded) writeHead(status int) {
	r.status = status
	for i := range r.fields.Lines() {
		l := &r.fields.Lines()[i]
		l.Name, l.Value = strings.Clone(l.Name), strings.Clone(l.Value)
	}
}

func (r *recorded) write(p []byte) (int, error) {
	if len(r.body)+len(p) > maxAuthBody {
		r.tooLong = r.status >= 300
		return len(p), nil
	}
	r.body = append(r.body, p...)
	return len(p), nil
}

func (r *recorded) flush() error           { return nil }
func (r *recorded) trailer(string, string) {}
func (r *recorded) abort()                 { r.aborted = true }

func (r *recorded) upgrade() (io.ReadWriteCloser, error) {
	return nil, errors.New("a service that is asked cannot change protocols")
}

// answer returns what was recorded as an answer to the client.
func (r *recorded) answer() *answer {
	a := &answer{status: r.status, body: string(r.body), relayed: true, bare: true}
	for _, l := range r.fields.Lines() {
		if l.ID != field.ContentLength && l.ID != field.Trailer && l.ID != field.AltSvc {
			a.fields = append(a.fields, l)
		}
	}
	return a
}

const (
	grantShards = 16
	shardGrants = 256
	// maxGrant bounds what a grant that is kept may hold, in bytes.
	maxGrant = 4 << 10
)

// grants are the answers of services that hold for a while. Only who was let in
// can add one.
type grants struct {
	key    []byte
	shards [grantShards]grantShard
}

type grantID [16]byte

type grantShard struct {
	mu    sync.Mutex // guards known
	known map[grantID]keptGrant
}

type keptGrant struct {
	*grant
	until time.Time
}

// id returns what stands for who asks for what; cached is whether that is kept.
func (g *grants) id(x *exchange, f *router.ForwardAuth) (id grantID, cached bool) {
	if f.Cache == nil {
		return id, false
	}
	mac := hmac.New(sha256.New, g.key)
	part := func(s string) { fmt.Fprintf(mac, "%d %s\n", len(s), s) }
	part(f.ID())
	part(x.req.host)
	for _, name := range f.Cache.Headers() {
		part(name)
		for _, l := range x.req.header.Lines() {
			if field.EqualFold(l.Name, name) {
				part(l.Value)
				cached = true
			}
		}
	}
	copy(id[:], mac.Sum(nil))
	return id, cached
}

func (g *grants) find(id grantID, now time.Time) *grant {
	s := &g.shards[id[0]%grantShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, ok := s.known[id]
	if ok && now.After(kept.until) {
		delete(s.known, id)
		return nil
	}
	return kept.grant
}

func (g *grants) keep(id grantID, what *grant, until time.Time) {
	size := 0
	for _, l := range what.lines {
		size += len(l.Name) + len(l.Value)
	}
	if size > maxGrant {
		return
	}
	s := &g.shards[id[0]%grantShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[grantID]keptGrant{}
	}
	if len(s.known) >= shardGrants {
		for some := range s.known {
			delete(s.known, some)
			break
		}
	}
	s.known[id] = keptGrant{what, until}
}
