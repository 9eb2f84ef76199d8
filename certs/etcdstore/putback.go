package etcdstore

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
)

// What is in etcd may be older than what nodes have: somebody has restored a
// backup, or emptied a folder. A node then keeps what it has, says so, and puts
// it back. What was taken away on purpose is noted below shared/removed, and the
// notes too are kept by nodes, and put back, until their certificates end.

// Nodes begin to put back within putBackSpread of each other, so that mostly one
// does it all, and look again after putBackAgain while something is left.
const (
	putBackSpread = time.Second
	putBackAgain  = 5 * time.Second
	forgetEvery   = time.Hour
)

// sealedAt returns when the chain of a certificate was stored.
func sealedAt(from [files]sealed) time.Time {
	outside, err := seal.Look([]byte(from[chainFile].data))
	if err != nil {
		return time.Time{}
	}
	return outside.Time
}

// isOlder reports whether a certificate, stored at a time, came before another
// one. Issued before it alone says nothing: an operator may import an older one.
func isOlder(leaf *x509.Certificate, at time.Time, than *x509.Certificate, thanAt time.Time) bool {
	return leaf.NotBefore.Before(than.NotBefore) && at.Before(thanAt)
}

// vanished judges a certificate that is not in etcd any more.
func (c *cert) vanished(p place, ring *seal.Ring, removed func(*x509.Certificate) bool) {
	if c.gone = c.cert != nil; !c.gone || removed(c.cert.Leaf) || time.Now().After(c.cert.Leaf.NotAfter) {
		return
	}
	if _, err := c.open(p, c.good, ring); err != nil {
		return // nobody can put that back
	}
	c.gone, c.lost = false, true
	c.err = fmt.Errorf("the certificate of %s from %s is not in etcd any more, and nobody took it away: nodes serve what they have, until %s, and put it back",
		p.name, p.issuer, c.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// setBack says why the certificate in etcd is not to take the place of the one
// that this node has; nil: it is.
func (c *cert) setBack(p place, stored *certs.Stored, removed func(*x509.Certificate) bool) error {
	if c.cert == nil || c.good[chainFile] == (sealed{}) || removed(c.cert.Leaf) || time.Now().After(c.cert.Leaf.NotAfter) {
		return nil
	}
	is, has := stored.Certificate.Leaf, c.cert.Leaf
	what := "revoked or taken away"
	switch {
	case is.Equal(has):
		return nil
	case removed(is):
	case isOlder(is, stored.Modified, has, sealedAt(c.good)):
		what = "issued at " + is.NotBefore.UTC().Format(time.RFC3339)
	default:
		return nil
	}
	return fmt.Errorf("etcd has an older certificate of %s from %s, %s, as after a restore from an old backup: nodes keep the one that they have, until %s, and put it back",
		p.name, p.issuer, what, has.NotAfter.UTC().Format(time.RFC3339))
}

// removedLocked reports whether a certificate is known to have been taken away.
func (m *Mirror) removedLocked(leaf *x509.Certificate) bool {
	v := m.values[certs.RemovedKey(leaf)]
	return v != nil && v.good != (sealed{})
}

// noteOf returns what a note says; false: it is none, or none that can be read.
func (v *value) noteOf(key string) (note certs.Removed, ok bool) {
	if !strings.HasPrefix(key, certs.RemovedFolder) || v == nil || v.good == (sealed{}) {
		return note, false
	}
	return note, json.Unmarshal(v.open.Data, &note) == nil
}

// notedLocked has the certificate that a note is about looked at.
func (m *Mirror) notedLocked(key string, touched *touched) {
	if note, ok := m.values[key].noteOf(key); ok {
		touched.certs[place{note.Issuer, note.Name}] = true
	}
}

// keepsLocked reports whether a value that has gone from etcd is kept, to be put
// back.
func (m *Mirror) keepsLocked(key string, v *value) bool {
	note, ok := v.noteOf(key)
	if !ok || time.Now().After(note.Until) {
		return false
	}
	m.missing()
	return true
}

// missing wakes up who puts back.
func (m *Mirror) missing() {
	select {
	case m.lost <- struct{}{}:
	default:
	}
}

// lostNow returns what is to be put back: certificates and notes.
func (m *Mirror) lostNow() (places []place, notes map[string][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, c := range m.certs {
		if c.lost {
			places = append(places, p)
		}
	}
	notes = map[string][]byte{}
	for key, v := range m.values {
		if _, ok := v.noteOf(key); ok && v.now == (sealed{}) {
			notes[key] = v.open.Data
		}
	}
	return places, notes
}

// lostOne returns a certificate that is to be put back, and when it was stored;
// nil: it is not, or not any more.
func (m *Mirror) lostOne(p place) (*certs.Stored, time.Time) {
	ring := m.ring.get()
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.certs[p]
	if c == nil || !c.lost {
		return nil, time.Time{}
	}
	stored, err := c.open(p, c.good, ring)
	if err != nil {
		return nil, time.Time{}
	}
	return stored, stored.Modified
}

// overNotes returns the revisions of notes about certificates that have ended.
func (m *Mirror) overNotes(now time.Time) map[string]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	over := map[string]int64{}
	for key, v := range m.values {
		if note, ok := v.noteOf(key); ok && now.After(note.Until) {
			over[key] = v.now.rev
		}
	}
	return over
}

// keepUp puts back what etcd has lost, and deletes notes that are over, until ctx
// ends.
func (s *Store) keepUp(ctx context.Context) {
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.lost:
			again.Reset(rand.N(putBackSpread))
		case <-again.C:
			if s.putAllBack(ctx) {
				again.Reset(putBackAgain)
			}
		case <-forget.C:
			for key, rev := range s.overNotes(time.Now()) {
				_, _ = s.Swap(ctx, key, rev, nil) // else another node does, or this one in an hour
			}
		}
	}
}

// putAllBack puts back what is lost, and reports whether it is to look again.
func (s *Store) putAllBack(ctx context.Context) (again bool) {
	places, notes := s.lostNow()
	var failed error
	for key, data := range notes { // first, so that what they are about does not come back
		if _, err := s.Swap(ctx, key, 0, data); err != nil && !errors.Is(err, certs.ErrSwapped) {
			failed = err
		}
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	for _, p := range places {
		if ctx.Err() != nil {
			return false
		}
		if err := s.putBack(ctx, p); err != nil {
			failed = fmt.Errorf("%s from %s: %w", p.name, p.issuer, err)
		}
	}
	if failed != nil && ctx.Err() == nil {
		s.cfg.Logger.Warn("cannot put back into etcd what this node has of certificates; it is tried again", "err", failed)
	}
	return len(places)+len(notes) > 0
}

// putBack puts a certificate back, unless another node does or has.
func (s *Store) putBack(ctx context.Context, p place) (err error) {
	if c, _ := s.lostOne(p); c == nil {
		return nil
	}
	lock := issueLock + p.name
	taken, err := s.TryLock(ctx, lock)
	if !taken {
		return err
	}
	defer func() { err = errors.Join(err, s.Unlock(context.WithoutCancel(ctx), lock)) }()
	held, at := s.lostOne(p)
	if held == nil {
		return nil
	}
	there, err := certs.LoadStored(ctx, s, p.issuer, p.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	crt, key, meta := filesOf(p.issuer, p.name)
	if err == nil {
		_, thereAt, _, err := s.read(ctx, crt)
		if err != nil {
			return err
		}
		if !s.replaces(held, at, there, thereAt) {
			return nil
		}
	}
	whole := map[string][]byte{crt: held.Chain, key: held.Key, meta: held.Meta}
	if err := s.write(ctx, s.lookup(lock).lock, whole); err != nil {
		return err
	}
	s.cfg.Logger.Warn("put a certificate back into etcd, which had lost it or had an older one", "domain", p.name, "issuer", p.issuer,
		"until", held.Certificate.Leaf.NotAfter)
	return nil
}

// replaces reports whether held is to take the place of what is there.
func (s *Store) replaces(held *certs.Stored, at time.Time, there *certs.Stored, thereAt time.Time) bool {
	s.Mirror.mu.Lock()
	defer s.Mirror.mu.Unlock()
	is, has := there.Certificate.Leaf, held.Certificate.Leaf
	return !is.Equal(has) && (s.removedLocked(is) || isOlder(is, thereAt, has, at))
}
