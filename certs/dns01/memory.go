package dns01

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/libdns/libdns"
)

// Memory keeps notes that outlive the process, and that all nodes share. A
// certmagic.Storage is one: the error about what is not there is fs.ErrNotExist.
type Memory interface {
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string, recursive bool) ([]string, error)
}

// notes is where the notes are in Memory: one for each record, below its name,
// so that nobody ever changes one that another wrote.
const notes = "challenges"

// note says that a record is there, or may be.
type note struct {
	Record      string    `json:"record"` // with its last dot
	Zone        string    `json:"zone"`
	Value       string    `json:"value"`
	Provider    string    `json:"provider"`
	Certificate string    `json:"certificate,omitempty"` // name whose attempt added it
	Process     string    `json:"process"`
	Since       time.Time `json:"since"`
}

// noteKey is where the note about a record is.
func noteKey(name, value string) string {
	sum := sha256.Sum256([]byte(value))
	return noteDir(name) + "/" + hex.EncodeToString(sum[:16])
}

func noteDir(name string) string { return notes + "/" + strings.TrimSuffix(name, ".") }

// note writes a note about p, which is about to be added.
func (s *Solver) note(ctx context.Context, p *presented, value string) (key string, err error) {
	key = noteKey(p.place.name, value)
	text, err := json.Marshal(note{
		Record: p.place.name, Zone: p.place.zone, Value: value, Provider: p.provider.Name(),
		Certificate: certificateOf(ctx), Process: s.process, Since: time.Now().UTC(),
	})
	if err != nil {
		return "", err
	}
	return key, s.cfg.Memory.Store(ctx, key, text)
}

// forget removes a note. One that stays is met again by Run, and tells of a
// record that is gone, which does no harm.
func (s *Solver) forget(ctx context.Context, key string) {
	s.mu.Lock()
	delete(s.ahead, key)
	s.mu.Unlock()
	if err := s.cfg.Memory.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("the note about a challenge record stays", "key", key, "err", err)
	}
}

// clear deletes the records of that name that earlier attempts for the same
// certificate left: whoever calls holds its lock, so they belong to nobody.
func (s *Solver) clear(ctx context.Context, name, certificate string) {
	s.sweep(ctx, noteDir(name), func(n note) bool {
		return certificate != "" && n.Certificate == certificate && !s.holds(n)
	})
}

// holds reports whether a record is this process's own and in use.
func (s *Solver) holds(n note) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for rec, p := range s.presented {
		if rec.value == n.Value && p.place.name == n.Record {
			return true
		}
	}
	return false
}

// sweep deletes the records that notes below dir tell of and that nobody is at
// work on any more: those that ours says yes to, and all that are too old. What
// fails is logged; the note stays for the next time.
func (s *Solver) sweep(ctx context.Context, dir string, ours func(note) bool) {
	keys, err := s.cfg.Memory.List(ctx, dir, true)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("notes about challenge records cannot be read", "err", err)
		}
		return
	}
	for _, key := range keys {
		if strings.Count(key, "/") != strings.Count(notes, "/")+2 {
			continue // the name above notes: storage lists that too
		}
		n, err := s.readNote(ctx, key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // somebody was faster
		case err != nil:
			s.log.Warn("a note about a challenge record cannot be read", "key", key, "err", err)
			continue
		}
		if ours(n) || time.Since(s.age(key, n)) > s.cfg.Stale && !s.holds(n) {
			s.remove(ctx, key, n)
		}
	}
}

// age returns since when a note is there. One of a node whose clock is ahead, by a
// year perhaps, is there since this process has met it.
func (s *Solver) age(key string, n note) time.Time {
	now := time.Now()
	if !n.Since.After(now) {
		return n.Since
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ahead[key].IsZero() {
		s.ahead[key] = now
	}
	return s.ahead[key]
}

func (s *Solver) readNote(ctx context.Context, key string) (n note, err error) {
	text, err := s.cfg.Memory.Load(ctx, key)
	if err != nil {
		return note{}, err
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return note{}, fmt.Errorf("it is no note: %w", err)
	}
	return n, nil
}

// remove deletes the record that a note tells of, and then the note.
func (s *Solver) remove(ctx context.Context, key string, n note) {
	provider := s.cfg.Providers[n.Provider]
	if provider == nil {
		s.log.Warn("a challenge record was left behind by way of a DNS provider that is not configured any more: delete it by hand",
			"record", n.Record, "value", n.Value, "provider", n.Provider)
		s.forget(ctx, key)
		return
	}
	rr := libdns.RR{Type: "TXT", Name: libdns.RelativeName(n.Record, n.Zone), Data: n.Value, TTL: ttl}
	if _, err := provider.DeleteRecords(ctx, n.Zone, []libdns.Record{rr}); err != nil {
		s.log.Warn("a challenge record that was left behind cannot be deleted", "record", n.Record, "zone", n.Zone, "err", err)
		return
	}
	s.metrics.swept.Inc()
	s.log.Info("deleted a challenge record that was left behind", "record", n.Record, "zone", n.Zone, "since", n.Since)
	s.forget(ctx, key)
}

// forgetful is a Memory that keeps nothing.
type forgetful struct{}

func (forgetful) Store(context.Context, string, []byte) error { return nil }
func (forgetful) Load(context.Context, string) ([]byte, error) {
	return nil, fs.ErrNotExist
}
func (forgetful) Delete(context.Context, string) error { return nil }
func (forgetful) List(context.Context, string, bool) ([]string, error) {
	return nil, fs.ErrNotExist
}
