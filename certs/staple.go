package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/crypto/ocsp"
)

// stapleFolder is where the nodes share OCSP responses: the one that fetches a
// response has all others serve it, and a node that starts has it on its disk.
const stapleFolder = "shared/ocsp/"

// stapleKey is the key of Shared for the response of a certificate: one for each
// place that certificates are kept in, so that a renewal leaves nothing behind.
func stapleKey(s *Stored) string {
	return stapleFolder + certmagic.StorageKeys.Safe(s.Issuer) + "/" + certmagic.StorageKeys.Safe(s.Name)
}

// stapleValue is what is shared. Revoked, if there is any, is newer than Good,
// which may still be served.
type stapleValue struct {
	Good    []byte `json:"good,omitempty"` // DER, as all responses
	Revoked []byte `json:"revoked,omitempty"`
}

const (
	// stapleWait is how long a certificate that needs a response, and has none
	// yet, is not served while there is another one.
	stapleWait = time.Minute
	// staplesAtOnce bounds how many responders are asked at the same time.
	staplesAtOnce = 8
	// stapleLimit bounds everything that is done to get one response.
	stapleLimit = time.Minute
)

// staple is what there is of OCSP for a certificate that asks for it. All of it is
// guarded by Manager.mu.
type staple struct {
	key   string
	name  string
	cert  *tls.Certificate // as stored: without a response
	users map[*domain]bool // that serve it, or are about to
	since time.Time        // when this node met the certificate

	good    *ocsp.Response // nil: none; it may have expired
	served  *tls.Certificate
	revoked *ocsp.Response // newer than good; nil: it is not
	rev     int64          // of the shared value

	err      error // of the last attempt to fetch; nil: it succeeded
	failures int   // in a row
	held     time.Time
	busy     bool // an attempt is under way
	wake     time.Time
}

// newest returns the last response, whatever it says; nil if there is none.
func (st *staple) newest() *ocsp.Response {
	if st.revoked != nil {
		return st.revoked
	}
	return st.good
}

func (st *staple) holds(now time.Time) bool { return st.good != nil && now.Before(st.good.NextUpdate) }

// given is what handshakes get: a certificate whose response has expired goes
// without, since clients would refuse it for that one.
func (st *staple) given(now time.Time) *tls.Certificate {
	if st.holds(now) {
		return st.served
	}
	return st.cert
}

// due returns when a response is to be fetched: half-way through the life of the
// one that is there.
func (st *staple) due() time.Time {
	r := st.newest()
	if r == nil {
		return st.since
	}
	return r.ThisUpdate.Add(r.NextUpdate.Sub(r.ThisUpdate) / 2)
}

// put takes a response that was verified, if it is newer than what there is, or
// that has expired, and reports whether it did.
func (st *staple) put(r *ocsp.Response, now time.Time) bool {
	had := st.newest()
	switch {
	case had == nil || r.ThisUpdate.After(had.ThisUpdate):
	case r.ThisUpdate.Equal(had.ThisUpdate) && had.Status == ocsp.Good && r.Status == ocsp.Revoked:
	case had.Status == ocsp.Good && !now.Before(had.NextUpdate):
	default:
		return false
	}
	if r.Status == ocsp.Revoked {
		st.revoked = r
		return true
	}
	served := *st.cert
	served.OCSPStaple = r.Raw
	st.good, st.served, st.revoked = r, &served, nil
	return true
}

// value is what is to be shared.
func (st *staple) value() (v stapleValue) {
	if st.good != nil {
		v.Good = st.good.Raw
	}
	if st.revoked != nil {
		v.Revoked = st.revoked.Raw
	}
	return v
}

// take takes a shared value up. What it holds is verified here as well: it may be
// of a certificate before.
func (st *staple) take(v Value, now time.Time) (news bool) {
	if v.Rev < st.rev {
		return false
	}
	st.rev = v.Rev
	var shared stapleValue
	issuer, err := issuerOf(st.cert)
	if err != nil || json.Unmarshal(v.Data, &shared) != nil {
		return false
	}
	for _, der := range [][]byte{shared.Good, shared.Revoked} {
		if r, err := verifyOCSP(der, st.cert.Leaf, issuer, now); err == nil && st.put(r, now) {
			news = true
		}
	}
	if news {
		st.err, st.failures = nil, 0
	}
	return news
}

// state says how st is doing, for metrics.
func (st *staple) state(now time.Time) string {
	switch {
	case st.revoked != nil:
		return "revoked"
	case st.holds(now):
		return "stapled"
	}
	return "missing"
}

// trouble says what is wrong, nil where nothing is.
func (st *staple) trouble(now time.Time) error {
	when := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case st.revoked != nil && st.holds(now):
		return fmt.Errorf("its authority has revoked it at %s; the OCSP response of before that is stapled until %s: obtain another certificate",
			when(st.revoked.RevokedAt), when(st.good.NextUpdate))
	case st.revoked != nil:
		return fmt.Errorf("its authority has revoked it at %s: obtain another certificate", when(st.revoked.RevokedAt))
	case st.holds(now) && st.err != nil:
		return fmt.Errorf("its OCSP response, which is stapled until %s, is not renewed: %w", when(st.good.NextUpdate), st.err)
	case st.holds(now):
		return nil
	case st.err != nil:
		return fmt.Errorf("it requires a stapled OCSP response and there is none, so that clients which look for it refuse it: %w", st.err)
	case now.Sub(st.since) >= stapleWait:
		return errors.New("it requires a stapled OCSP response and there is none yet")
	}
	return nil
}

// stapleOf has d use the staple of the certificate that is best for it, if that
// asks for one. m.mu is held.
func (m *Manager) stapleOf(d *domain, best *Stored, now time.Time) {
	var st *staple
	if best != nil && mustStaple(best.Certificate.Leaf) {
		key := stapleKey(best)
		if st = m.staples[key]; st == nil || st.cert != best.Certificate {
			st = m.newStaple(key, best, st, now)
		}
	}
	if old := d.staple; old != nil && old != st {
		delete(old.users, d)
		if len(old.users) == 0 && m.staples[old.key] == old {
			delete(m.staples, old.key)
			m.stapleGone[old.key] = old.rev
			m.wakeStaples()
		}
	}
	if d.staple = st; st != nil {
		st.users[d] = true
	}
}

// newStaple begins with a certificate; old is that of the one before in its place,
// which may be nil. m.mu is held.
func (m *Manager) newStaple(key string, s *Stored, old *staple, now time.Time) *staple {
	st := &staple{key: key, name: s.Name, cert: s.Certificate, users: map[*domain]bool{}, since: now}
	m.staples[key] = st
	delete(m.stapleGone, key)
	if old != nil {
		st.rev = old.rev
	}
	if v, ok := m.cfg.Store.Peek(key); ok {
		st.take(v, now)
	}
	m.wakeStaples()
	return st
}

func (m *Manager) wakeStaples() {
	select {
	case m.restaple <- struct{}{}:
	default:
	}
}

// ready returns what d is to serve: best, or for a while what it serves now, if
// best needs a response that is about to come. m.mu is held.
func (m *Manager) ready(d *domain, best *Stored, now time.Time) *Stored {
	m.stapleOf(d, best, now)
	st := d.staple
	if st == nil || st.holds(now) || st.revoked != nil || now.Sub(st.since) >= stapleWait {
		return best
	}
	if d.best == nil || d.best.Certificate == best.Certificate || !holds(d.best, now) {
		return best
	}
	return d.best
}

// given is what handshakes get of s, which is what ready returned.
func (d *domain) given(s *Stored, now time.Time) *tls.Certificate {
	switch {
	case s == nil:
		return nil
	case !mustStaple(s.Certificate.Leaf):
		return s.Certificate
	case d.staple == nil || d.staple.cert != s.Certificate: // it stays, with its response, until its successor is ready
		return d.cert.Load()
	}
	return d.staple.given(now)
}

// stapleChanged takes up what some node has shared.
func (m *Manager) stapleChanged(key string) {
	if !strings.HasPrefix(key, stapleFolder) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.staples[key]
	if st == nil {
		return
	}
	now := time.Now()
	if v, ok := m.cfg.Store.Peek(key); ok && st.take(v, now) {
		m.restapled(st, now)
		m.finish()
	}
}

// restapled has those that use st serve what it has now. m.mu is held.
func (m *Manager) restapled(st *staple, now time.Time) {
	for d := range st.users {
		m.refresh(d, now)
	}
	m.wakeStaples()
}

// stapleStates counts staples by their state.
func (m *Manager) stapleStates() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	states := map[string]int{"stapled": 0, "missing": 0, "revoked": 0}
	now := time.Now()
	for _, st := range m.staples {
		states[st.state(now)]++
	}
	return states
}

// stapler fetches responses in one Run.
type stapler struct {
	m      *Manager
	client *http.Client
	all    sync.WaitGroup
	free   int // guarded by m.mu
}

// runStaples fetches responses and has them served until ctx ends.
func (m *Manager) runStaples(ctx context.Context) {
	defer m.cfg.Store.WatchShared("shared/", m.stapleChanged)()
	s := &stapler{m: m, client: newOCSPClient(), free: staplesAtOnce}
	defer s.all.Wait()
	s.catchUp()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(s.look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-m.restaple:
		case <-timer.C:
		}
	}
}

// catchUp takes up what was shared before anybody watched.
func (s *stapler) catchUp() {
	m := s.m
	m.mu.Lock()
	var keys []string
	for key := range m.staples {
		keys = append(keys, key)
	}
	m.mu.Unlock()
	for _, key := range keys {
		m.stapleChanged(key)
	}
}

// look starts what is due, and returns how long nothing else will be.
func (s *stapler) look(ctx context.Context) time.Duration {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	for key, rev := range m.stapleGone {
		delete(m.stapleGone, key)
		if rev != 0 {
			s.all.Go(func() { s.forget(ctx, key, rev) })
		}
	}
	for _, st := range m.staples {
		if !st.wake.IsZero() && !now.Before(st.wake) {
			m.restapled(st, now) // it has expired, or was waited for long enough
			m.finish()
		}
		st.wake = st.since.Add(stapleWait)
		if st.holds(now) {
			st.wake = st.good.NextUpdate
		} else if !now.Before(st.wake) {
			st.wake = time.Time{}
		}
		sooner(st.wake)
		at := latest(st.due(), st.held)
		switch {
		case st.busy:
		case now.Before(at):
			sooner(at)
		case s.free > 0: // else one that ends wakes us
			s.free--
			st.busy = true
			base := st.due()
			s.all.Go(func() { s.fetch(ctx, st, base) })
		}
	}
	return next.Sub(now)
}

// forget deletes what is shared for a certificate that is no more. The other
// nodes do so as well, and one is first.
func (s *stapler) forget(ctx context.Context, key string, rev int64) {
	ctx, cancel := context.WithTimeout(ctx, shareLimit)
	defer cancel()
	if _, err := s.m.cfg.Store.Swap(ctx, key, rev, nil); err != nil && !errors.Is(err, ErrSwapped) {
		s.m.log.Debug("cannot delete the OCSP response of a certificate that is no more", "key", key, "err", err)
	}
}

// fetch gets a newer response than is known: from the other nodes or, if this
// node's turn has come, from the certificate's responder.
func (s *stapler) fetch(ctx context.Context, st *staple, base time.Time) {
	m := s.m
	limited, cancel := context.WithTimeout(ctx, stapleLimit)
	defer cancel()
	rank := m.roster.rank(limited, m.cfg.Node, st.key, 0)
	if begin := base.Add(time.Duration(rank) * m.cfg.TurnEvery); time.Now().Before(begin) {
		s.ended(st, func(time.Time) { st.held = begin })
		return
	}
	shared, getErr := m.cfg.Store.Get(limited, st.key)
	if getErr == nil && s.newer(st, shared) {
		s.ended(st, func(now time.Time) { st.held = now.Add(m.cfg.RetryMin) })
		return
	}
	r, err := s.ask(limited, st)
	if err != nil && ctx.Err() != nil { // stopping
		s.ended(st, func(time.Time) {})
		return
	}
	m.metrics.stapleFetched(r, err)
	if err != nil {
		s.failed(st, err)
		return
	}
	value, news := s.apply(st, r)
	rev := int64(0)
	if value != nil && !bytes.Equal(value, shared.Data) && (getErr == nil || errors.Is(getErr, fs.ErrNotExist)) {
		rev = s.share(limited, st, shared.Rev, value)
	}
	s.ended(st, func(now time.Time) {
		st.rev = max(st.rev, rev)
		st.held = now.Add(m.cfg.RetryMin) // however short the life of responses is
		if !news {                        // the responder has nothing newer yet
			st.held = now.Add(max(m.cfg.RetryMin, r.NextUpdate.Sub(now)/2))
		}
	})
}

// apply has handshakes use a response that was fetched. It returns what is to be
// shared, nil where there is another certificate by now, and whether the response
// is newer than what was known.
func (s *stapler) apply(st *staple, r *ocsp.Response) (value []byte, news bool) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.staples[st.key] != st {
		return nil, false
	}
	now := time.Now()
	st.err, st.failures = nil, 0
	if news = st.put(r, now); news && r.Status == ocsp.Revoked {
		m.log.Error("a certificate that is served was revoked", "domain", st.name, "at", r.RevokedAt, "reason", r.RevocationReason)
	}
	m.restapled(st, now)
	m.finish()
	value, err := json.Marshal(st.value())
	if err != nil {
		return nil, news
	}
	return value, news
}

// newer takes a shared value up and reports whether nobody has to be asked.
func (s *stapler) newer(st *staple, v Value) bool {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.staples[st.key] != st || !st.take(v, now) {
		return false
	}
	m.restapled(st, now)
	m.finish()
	return now.Before(st.due())
}

// ask asks the responders. Their answers are parsed; a panic over one becomes a
// failure.
func (s *stapler) ask(ctx context.Context, st *staple) (r *ocsp.Response, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.m.log.Error("panic over an OCSP response", "domain", st.name, "panic", v, "stack", string(debug.Stack()))
			r, err = nil, fmt.Errorf("panic over the OCSP response: %v", v)
		}
	}()
	issuer, err := issuerOf(st.cert)
	if err != nil {
		return nil, err
	}
	return fetchOCSP(ctx, s.client, st.cert.Leaf, issuer)
}

// share has the other nodes see a response, and returns the revision; 0 if they
// have another one by now, or cannot be told: they then ask for themselves.
func (s *stapler) share(ctx context.Context, st *staple, since int64, value []byte) (rev int64) {
	rev, err := s.m.cfg.Store.Swap(ctx, st.key, since, value)
	if err != nil && !errors.Is(err, ErrSwapped) {
		s.m.log.Warn("cannot share an OCSP response with the other nodes", "domain", st.name, "err", err)
	}
	return rev
}

// failed notes that there is no response, and when the next attempt begins.
func (s *stapler) failed(st *staple, err error) {
	m := s.m
	s.ended(st, func(now time.Time) {
		st.failures++
		pause, _ := m.backoff(st.failures, err)
		st.err, st.held = err, now.Add(pause)
		level := slog.LevelWarn
		if !st.holds(now) {
			level = slog.LevelError // it is served without
		}
		m.log.Log(context.Background(), level, "no OCSP response for a certificate that requires one", "domain", st.name, "failures", st.failures, "next", st.held, "err", err)
		m.restapled(st, now)
	})
}

// ended notes what an attempt came to. note is not called if there is another
// certificate meanwhile.
func (s *stapler) ended(st *staple, note func(now time.Time)) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	s.free++
	st.busy = false
	if m.staples[st.key] == st {
		note(time.Now())
	}
	m.wakeStaples()
	m.finish()
}
