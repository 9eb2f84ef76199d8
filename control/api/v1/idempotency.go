package v1

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/wire"
)

// IdempotencyFolder is where requests are remembered that came with an
// Idempotency-Key, below the prefix.
const IdempotencyFolder = "idempotency/"

const (
	// idempotencyKept is how long they are remembered.
	idempotencyKept = 24 * time.Hour
	// idempotencyRuns is how long a request with a key may take, besides what it
	// waits for nodes. After that another of its key takes its place: whoever
	// answered it is dead by then.
	idempotencyRuns = 5 * time.Second
	// maxReplayed bounds the answers that are kept.
	maxReplayed = 256 << 10
	// maxIdempotencyKey bounds the key.
	maxIdempotencyKey = 255
)

// remembered is a request that came with a key: who made it, what it was, and,
// once Status is set, what it was answered with.
type remembered struct {
	Request string            `json:"request"` // a hash of it
	Began   time.Time         `json:"began"`
	Until   time.Time         `json:"until"` // when it is over, at the latest
	Status  int               `json:"status,omitempty"`
	Header  map[string]string `json:"header,omitempty"`
	Body    string            `json:"body,omitempty"`
}

// once has a request done once, however often a client that lost the answer sends
// it: with the same Idempotency-Key it is answered as the first time, by whatever
// node. next answers it.
func (s *Server) once(ctx huma.Context, token string, next func(huma.Context)) {
	key := ctx.Header("Idempotency-Key")
	if key == "" || ctx.Operation().Method == http.MethodGet {
		next(ctx)
		return
	}
	if secret, _ := ctx.Operation().Metadata["secret"].(bool); secret || len(key) > maxIdempotencyKey {
		s.refuse(ctx, invalid("Idempotency-Key", fmt.Sprintf("Idempotency-Key: is not taken here (an answer that holds a secret is not kept), or has more than %d characters; leave it out", maxIdempotencyKey)))
		return
	}
	body, err := io.ReadAll(ctx.BodyReader())
	if err != nil {
		s.refuse(ctx, problem(http.StatusRequestEntityTooLarge, wire.TooLarge, fmt.Sprintf("read the body: %v", err)))
		return
	}
	at := ctx.URL()
	now := time.Now().UTC()
	m := &remembered{Request: hashOf(ctx.Method(), at.Path, at.RawQuery, ctx.Header("If-Match")+ctx.Header("If-None-Match"), withoutSecrets(body)), Began: now, Until: now.Add(idempotencyRuns + waitsFor(at.Query()))}
	place := IdempotencyFolder + hashOf(token)[:16] + "/" + hashOf(token, key)
	rev, before, err := s.begin(ctx.Context(), place, m)
	switch p := (*Problem)(nil); {
	case errors.As(err, &p):
		s.refuse(ctx, p)
		return
	case err != nil:
		s.refuse(ctx, problem(http.StatusServiceUnavailable, wire.Unavailable, err.Error()))
		return
	case before != nil:
		before.replay(ctx)
		return
	}
	bounded, cancel := context.WithDeadline(ctx.Context(), m.Until)
	defer cancel()
	rec := &recorder{humaContext: huma.WithContext(ctx, bounded), body: bytes.NewReader(body), header: map[string]string{}}
	next(rec)
	s.end(ctx.Context(), place, rev, m, rec)
}

// waitsFor returns how long a request waits for nodes, by its query, at most.
func waitsFor(query url.Values) time.Duration {
	if query.Get("wait") == "" {
		return 0
	}
	seconds, err := strconv.Atoi(query.Get("timeout"))
	if err != nil || seconds < 1 || seconds > 60 {
		seconds = 10 // the default, or what is refused
	}
	return time.Duration(seconds) * time.Second
}

// describeOnce adds the header to the operations that take it.
func describeOnce(op *huma.Operation, next func(*huma.Operation)) {
	if secret, _ := op.Metadata["secret"].(bool); op.Method != http.MethodGet && !secret {
		most := maxIdempotencyKey
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: "string", MaxLength: &most},
			Description: "Sent again with the same key, within a day, the same request is answered as the first time, and nothing is done twice.",
		})
	}
	next(op)
}

func hashOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// withoutSecrets returns a body without the secrets of services: whoever reads
// etcd could try out which ones a hash is of. They are no part of what tells
// requests apart.
func withoutSecrets(body []byte) string {
	var v map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return string(body) // which is refused, and not kept
	}
	services, _ := v["services"].(map[string]any)
	had := false
	for _, s := range services {
		if s, ok := s.(map[string]any); ok && s["secrets"] != nil {
			had = true
			delete(s, "secrets")
		}
	}
	if !had {
		return string(body)
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // what was decoded encodes
	}
	return string(text)
}

// begin notes that a request is under way, and returns the revision of that, or
// what the same request was answered with before.
func (s *Server) begin(ctx context.Context, at string, m *remembered) (rev int64, before *remembered, err error) {
	edit := etcd.Edit{Key: at}
	if edit.Value, err = json.Marshal(m); err != nil {
		return 0, nil, err
	}
	// Nearly every key comes once: it is looked at only where it is there already.
	rev, err = s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{edit}, s.by(ctx))
	if !errors.As(err, new(*etcd.ConflictError)) {
		return rev, nil, err
	}
	kv, err := s.cfg.Keys.Client.ReadKey(ctx, at)
	if err != nil {
		return 0, nil, err
	}
	if edit.Since = 0; kv != nil {
		edit.Since = kv.ModRev
		was := new(remembered)
		switch err := json.Unmarshal(kv.Value, was); {
		case err != nil: // nobody's
		case was.Request != m.Request:
			p := problem(http.StatusUnprocessableEntity, wire.Invalid, "Idempotency-Key: another request came with this key; give each request one of its own")
			p.Field = "Idempotency-Key"
			return 0, nil, p
		case was.Status != 0:
			return 0, was, nil
		case m.Began.Before(was.Until):
			return 0, nil, problem(http.StatusConflict, wire.UnderWay, "the first request with this Idempotency-Key is still under way; ask again in a moment")
		}
	}
	rev, err = s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{edit}, s.by(ctx))
	if errors.As(err, new(*etcd.ConflictError)) {
		err = problem(http.StatusConflict, wire.UnderWay, "another request with this Idempotency-Key has just begun; ask again in a moment")
	}
	return rev, nil, err
}

// end notes what a request was answered with. One that came to nothing is
// forgotten: sent again, it is tried again, which does no harm, and refusals leave
// nothing in etcd that somebody could fill it with. (With 504 the change was made.)
func (s *Server) end(ctx context.Context, at string, rev int64, m *remembered, rec *recorder) {
	// The client may be gone, which is what all of this is for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	edit := etcd.Edit{Key: at, Since: rev}
	m.Status, m.Header, m.Body = rec.status, rec.header, rec.out.String()
	if rec.status >= 400 && rec.status != http.StatusGatewayTimeout || rec.out.Len() > maxReplayed {
		edit.Delete = true
	} else if value, err := json.Marshal(m); err == nil {
		edit.Value = value
	}
	if _, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{edit}, s.by(ctx)); err != nil {
		s.cfg.Logger.Warn("control API: an answer is not remembered for its Idempotency-Key", "err", err)
	}
}

// replay answers as before.
func (m *remembered) replay(ctx huma.Context) {
	for name, value := range m.Header {
		ctx.SetHeader(name, value)
	}
	ctx.SetHeader("Idempotency-Replayed", "true")
	ctx.SetStatus(m.Status)
	_, _ = io.WriteString(ctx.BodyWriter(), m.Body) // the client may be gone
}

// humaContext lets a context be embedded: it has a method Context.
type humaContext huma.Context

// recorder answers a request and keeps what it answers.
type recorder struct {
	humaContext
	body   io.Reader
	status int
	header map[string]string
	out    bytes.Buffer
}

// Unwrap lets huma find the context below.
func (r *recorder) Unwrap() huma.Context { return r.humaContext }

// BodyReader implements huma.Context: the body was read before.
func (r *recorder) BodyReader() io.Reader { return r.body }

// SetStatus implements huma.Context.
func (r *recorder) SetStatus(code int) {
	r.status = code
	r.humaContext.SetStatus(code)
}

// Status implements huma.Context.
func (r *recorder) Status() int { return r.status }

// SetHeader implements huma.Context.
func (r *recorder) SetHeader(name, value string) {
	r.header[name] = value
	r.humaContext.SetHeader(name, value)
}

// BodyWriter implements huma.Context.
func (r *recorder) BodyWriter() io.Writer { return io.MultiWriter(r.humaContext.BodyWriter(), &r.out) }

// Memory is the requests that are remembered, as somebody goes through them who
// forgets what came long ago or is too much. Make one with NewMemory.
type Memory struct {
	now  time.Time
	most int
	of   map[string][]kept // by token
}

// kept is a request that stays, unless too many came after it.
type kept struct {
	began time.Time
	etcd.Edit
}

// NewMemory returns one of none. Of each token the most requests that came last are
// remembered.
func NewMemory(now time.Time, most int) *Memory {
	return &Memory{now: now, most: most, of: map[string][]kept{}}
}

// Look takes note of kvs, keys below IdempotencyFolder, and returns the edits that
// delete those of them that are of requests which came long ago.
func (m *Memory) Look(kvs []etcd.KV) (old []etcd.Edit) {
	for _, kv := range kvs {
		name, ok := strings.CutPrefix(kv.Key, IdempotencyFolder)
		if !ok {
			continue
		}
		var r remembered
		edit := etcd.Edit{Key: kv.Key, Delete: true, Since: kv.ModRev}
		if json.Unmarshal(kv.Value, &r) != nil || m.now.Sub(r.Began) >= idempotencyKept {
			old = append(old, edit)
			continue
		}
		token, _, _ := strings.Cut(name, "/")
		m.of[token] = append(m.of[token], kept{r.Began, edit})
	}
	return old
}

// Excess returns the edits that delete what is too much, the oldest, of all that
// Look was given.
func (m *Memory) Excess() (edits []etcd.Edit) {
	for _, token := range slices.Sorted(maps.Keys(m.of)) {
		all := m.of[token]
		slices.SortFunc(all, func(a, b kept) int { return a.began.Compare(b.began) })
		for _, k := range all[:max(0, len(all)-m.most)] {
			edits = append(edits, k.Edit)
		}
	}
	return edits
}
