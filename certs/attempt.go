package certs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// attempt is what the last attempt to obtain or renew a certificate came to,
// whichever node made it: a value of Shared. The zero value is that none was
// made, or that the last one succeeded.
type attempt struct {
	Node     string    `json:"node"`
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended,omitzero"` // zero: it is under way, or its node died
	Failures int       `json:"failures,omitempty"`
	Err      string    `json:"err,omitempty"`       // what the last failure was
	FailedAt string    `json:"failed_at,omitempty"` // which node it was met by
	Next     time.Time `json:"next,omitzero"`       // no node tries again before
	Wish     int64     `json:"wish,omitempty"`      // Domain.Rev of the entry that it was made for
	rev      int64     // of the value
}

// underWay reports whether some node is at it, as far as one can tell.
func (a attempt) underWay(now time.Time) bool {
	return !a.Began.IsZero() && a.Ended.IsZero() && now.Sub(a.Began) < attemptLimit
}

// over reports whether a certificate was stored after it: its node has died
// before it could take the value back.
func (a attempt) over(stored *Stored) bool {
	return stored != nil && !a.Began.IsZero() && stored.Modified.After(latest(a.Began, a.Ended))
}

// attemptOf reads a value. One that makes no sense counts as none: it is worth
// less than a certificate.
func attemptOf(v Value, now time.Time) (a attempt) {
	if len(v.Data) > 0 && json.Unmarshal(v.Data, &a) != nil {
		a = attempt{}
	}
	a.rev = v.Rev
	return a.asOf(now)
}

// asOf returns the attempt by this node's clock. Where it ended, or began, later
// than now, the clock of the node that wrote it is ahead, by a year perhaps, for
// which nobody would try again. The times between its times are as good as any,
// so that it counts as one of this moment.
func (a attempt) asOf(now time.Time) attempt {
	ahead := latest(a.Began, a.Ended).Sub(now)
	if ahead <= 0 {
		return a
	}
	for _, t := range []*time.Time{&a.Began, &a.Ended, &a.Next} {
		if !t.IsZero() {
			*t = t.Add(-ahead)
		}
	}
	return a
}

// peek returns the attempt as this node knows it.
func (m *Manager) peek(key string) attempt {
	v, ok := m.cfg.Store.Peek(key)
	if !ok {
		return attempt{}
	}
	return attemptOf(v, time.Now())
}

// attemptChanged takes up what some node came to.
func (m *Manager) attemptChanged(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.shared[key]
	if d == nil {
		return
	}
	if a := m.peek(key); a.rev == 0 || a.rev > d.attempt.rev {
		d.attempt = a
		m.refresh(d, time.Now())
		m.finish()
	}
}

// readAttempt reads what is shared now.
func (m *Manager) readAttempt(ctx context.Context, key string) (attempt, error) {
	v, err := m.cfg.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return attempt{}, fmt.Errorf("read what became of other nodes' attempts: %w", err)
	}
	return attemptOf(v, time.Now()), nil
}

// writeAttempt replaces what is shared, if that is still old; an attempt without
// a beginning deletes it. It returns what is shared now.
func (m *Manager) writeAttempt(ctx context.Context, key string, old, is attempt) (attempt, error) {
	var data []byte
	if !is.Began.IsZero() {
		var err error
		if data, err = json.Marshal(is); err != nil {
			return old, err
		}
	}
	rev, err := m.cfg.Store.Swap(ctx, key, old.rev, data)
	if err != nil {
		return old, fmt.Errorf("tell other nodes of the attempt: %w", err)
	}
	is.rev = rev
	return is, nil
}

// heldError is why an order is not begun: another node tried meanwhile, and
// failed.
type heldError struct{ by attempt }

func (e *heldError) Error() string {
	return fmt.Sprintf("%s has just failed, and the next attempt is at %s", e.by.FailedAt, e.by.Next.UTC().Format(time.RFC3339))
}

// turn is one node's attempt for one name.
type turn struct {
	m        *Manager
	d        *domain
	name     string
	key      string // of Shared
	provider string
	issuer   string
	staple   bool
	gen      int // of d
	wish     int64
	base     time.Time // when it became due, for all nodes alike
	asking   bool      // it is only the authority's wish that is to be asked for
	failures int       // as was known when it began

	began  time.Time
	known  attempt // as of the last look at Shared
	failed bool    // the failure is shared
}

// turnKey finds the turn in the context of an attempt, where certmagic tells
// what it is about to do.
type turnKey struct{}

// onEvent is certmagic's: it is called with the lock of the name held.
func onEvent(ctx context.Context, event string, data map[string]any) error {
	t, _ := ctx.Value(turnKey{}).(*turn)
	if t == nil {
		return nil
	}
	switch event {
	case "cert_obtaining":
		return t.permit(ctx)
	case "cert_failed":
		if err, _ := data["error"].(error); err != nil && ctx.Err() == nil {
			t.fail(ctx, err)
		}
	}
	return nil
}

// permit looks at what other nodes came to since this one began to wait for the
// lock, and says that it is this one's turn, or returns why not.
func (t *turn) permit(ctx context.Context) error {
	known, err := t.m.readAttempt(ctx, t.key)
	if err != nil {
		return err
	}
	t.known = known
	if known.Wish >= t.wish && known.Failures > t.failures && time.Now().Before(known.Next) {
		return &heldError{known}
	}
	t.began = time.Now()
	known.Node, known.Began, known.Ended, known.Wish = t.m.cfg.Node, t.began, time.Time{}, t.wish
	t.known, err = t.m.writeAttempt(ctx, t.key, t.known, known)
	return err
}

// fail shares that the attempt failed. Where it cannot be shared, this node
// alone goes by it.
func (t *turn) fail(ctx context.Context, cause error) {
	m, now := t.m, time.Now()
	if m.cfg.Store.Lacking(t.name) != nil {
		return // it says nothing of the other nodes' attempts
	}
	a := t.known
	a.Node, a.Ended, a.Wish = m.cfg.Node, now, t.wish
	a.FailedAt, a.Err = m.cfg.Node, inBrief(reason(cause))
	if a.Began.IsZero() {
		a.Began = now
	}
	pause, counts := m.backoff(a.Failures+1, cause)
	if counts {
		a.Failures++
	}
	a.Next = now.Add(pause)
	t.failed = true
	shared, err := m.writeAttempt(ctx, t.key, t.known, a)
	if err != nil {
		m.log.Warn("cannot tell other nodes of a failed attempt", "domain", t.name, "err", err)
		t.known.rev, a.rev = 0, 0
		t.known = a
		return
	}
	t.known = shared
}

// errKept bounds what is kept of an error, in bytes.
const errKept = 600

// inBrief makes a line of what others wrote.
func inBrief(text string) string {
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	if len(text) > errKept {
		text = strings.ToValidUTF8(text[:errKept], "") + "..."
	}
	return text
}
