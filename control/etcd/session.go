package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// SessionConfig names a node to etcd. Node and Instance are required.
type SessionConfig struct {
	// Node is the node's name: letters, digits, '-', '_' and '.', at most 128.
	Node string
	// Instance tells this node from another one that was given the same name.
	// It stays the same when the node restarts, and is to be the value of
	// "instance" in the record given to SetRecord.
	Instance string
	// TTL is how long after its death a node's keys stay; 0: 10 s. Whole
	// seconds; servers grant at least 2 s.
	TTL time.Duration
}

const defaultTTL = 10 * time.Second

// Session is what a node shows of itself in etcd for as long as it lives: its
// record under nodes/ and its verdicts, all under one lease. Values are kept
// here and written by Run, which takes a new lease and writes everything
// again whenever the lease was lost. The methods besides Run are safe for
// concurrent use and never wait for etcd.
//
// The record is the claim to the name: nothing is written before SetRecord,
// and no other key unless the record is in etcd under this session's lease.
type Session struct {
	c       *Client
	cfg     SessionConfig
	ledger  *ledger
	record  string        // key of the node's record, below the prefix
	named   chan struct{} // closed by the first SetRecord
	naming  sync.Once
	claimed bool // whether the name has ever been ours; Run's
	held    held // Run's
	yields  bool // a later process of the node has the name, as long as it lives; Run's

	etcdPace pacemaker
	left     atomic.Bool // another process of the node goes on with it

	mu       sync.Mutex // guards the following field
	conflict error
}

// NewSession checks cfg and returns a Session, which does nothing before Run.
func (c *Client) NewSession(cfg SessionConfig) (*Session, error) {
	if !isName(cfg.Node) {
		return nil, fmt.Errorf("node name %q: write letters, digits, '-', '_' and '.', at most 128", cfg.Node)
	}
	if cfg.Instance == "" {
		return nil, errors.New("node " + cfg.Node + ": no instance given; it tells this node from another of that name")
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.TTL < time.Second || cfg.TTL%time.Second != 0 {
		return nil, fmt.Errorf("session TTL %v: write whole seconds", cfg.TTL)
	}
	record := "nodes/" + cfg.Node
	return &Session{c: c, cfg: cfg, ledger: newLedger(record), record: record, named: make(chan struct{})}, nil
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// SetRecord sets the node's record, a JSON object with the member "instance".
func (s *Session) SetRecord(record string) {
	s.ledger.set(s.record, record)
	s.naming.Do(func() { close(s.named) })
}

// SetProgress is SetRecord of a record that tells what was done: it is written
// after the verdicts that were set before it, of which it says that they are all.
func (s *Session) SetProgress(record string) {
	s.ledger.setBehind(s.record, record)
	s.naming.Do(func() { close(s.named) })
}

// Set sets another key below the prefix, under the same lease as the record. It
// has to be one that no other node writes, such as members/<node>.
func (s *Session) Set(key, value string) { s.ledger.set(key, value) }

// NameTakenError says that another live node has this one's name.
type NameTakenError struct {
	Node   string
	Record string // of the other one, as it is in etcd but for its instance
}

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("the node name %q is held by another live node, whose record is %s; "+
		"stop that one, or give this one a name of its own with \"node:\" in sluice.yaml", e.Node, e.Record)
}

// ErrSuperseded says that a later process of the same node holds its record.
// There are two machines with one instance, as after copying one, or an old
// process was left behind.
var ErrSuperseded = errors.New("a later process with this node's name and instance has taken over its record in etcd; " +
	"stop one of the two, or if one is a copy of the other's machine, delete the file \"instance\" in its data directory and give it a name of its own")

// Conflict says who else has the node's name: a *NameTakenError, ErrSuperseded,
// or nil for nobody.
func (s *Session) Conflict() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conflict
}

// setConflict notes how err, why the name is not held, says who has it.
func (s *Session) setConflict(err error) (conflict bool) {
	taken := new(NameTakenError)
	conflict = errors.Is(err, ErrSuperseded) || errors.As(err, &taken)
	if !conflict {
		err = nil
	}
	s.mu.Lock()
	s.conflict = err
	s.mu.Unlock()
	s.c.metrics.setConflict(conflict)
	return conflict
}

// Run writes to etcd what the other methods set, until ctx ends; it then gives
// the lease back, which removes all the keys, and returns nil. All that goes
// wrong it mends or waits for, but one thing: it returns a *NameTakenError if
// within a minute another live node turns out to hold the name.
//
// A later process of the same node gets the name, and this one goes quiet until
// that one has gone: two that took it from each other in turn would both be
// read wrong. Call it once.
func (s *Session) Run(ctx context.Context) error {
	select {
	case <-s.named:
	case <-ctx.Done():
		return nil
	}
	started := time.Now()
	pause := newPause(s.c.pace)
	var nag nag
	for {
		began := time.Now()
		err := s.hold(ctx)
		s.c.metrics.registered.Set(0)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrSuperseded) {
			s.yields = true
		}
		conflict := s.setConflict(err)
		if taken := new(NameTakenError); errors.As(err, &taken) && !s.claimed && time.Since(started) < s.c.pace.newcomer {
			return err
		}
		if time.Since(began) > s.cfg.TTL {
			pause = newPause(s.c.pace)
		}
		if nag.due() {
			level := slog.LevelWarn
			if conflict {
				level = slog.LevelError
			}
			s.c.log.Log(ctx, level, "this node's record and verdicts are not in etcd; it serves on, and tries on", "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// Leave has Run not give the lease back when its context ends: another process of
// the node is about to write the same keys under a lease of its own, and until then
// nobody is to find them gone. What that does not write goes when the lease ends.
func (s *Session) Leave() { s.left.Store(true) }

// hold takes a lease, claims the name and writes, until something goes wrong.
func (s *Session) hold(ctx context.Context) error {
	conn, err := s.c.connect(ctx)
	if err != nil {
		return err
	}
	if s.yields { // look before taking a lease for nothing
		held, err := s.c.get(ctx, conn, s.c.prefix+s.record)
		if err != nil {
			return err
		}
		if len(held.Kvs) > 0 && instanceOf(string(held.Kvs[0].Value)) == s.cfg.Instance {
			return ErrSuperseded
		}
	}
	l, err := s.c.grant(ctx, conn, s.cfg.TTL)
	if err != nil {
		return err
	}
	s.c.metrics.leases.Inc()
	defer func() {
		if s.left.Load() {
			l.leave()
			return
		}
		l.giveBack(ctx)
	}()
	if err := s.claim(l); err != nil {
		return l.orLost(err)
	}
	s.claimed, s.yields = true, false
	s.setConflict(nil)
	s.c.metrics.registered.Set(1)
	s.c.log.Debug("this node's record is in etcd", "key", s.c.prefix+s.record)
	l.wg.Go(func() { s.guard(l) })
	return l.orLost(s.write(l))
}
