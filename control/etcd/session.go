package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// NameTakenError says that another live node has this one's name.
type NameTakenError struct {
	Node   string
	Record string // of the other one, as it is in etcd
}

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("the node name %q is held by another live node, whose record is %s; "+
		"stop that one, or give this one a name of its own with \"node:\" in sluice.yaml", e.Node, e.Record)
}

// ErrSuperseded is returned by Run when a later process of the same node has
// taken over its keys.
var ErrSuperseded = errors.New("a later process of this node has taken over its record in etcd")

// Run writes to etcd what the other methods set, until ctx ends; it then gives
// the lease back, which removes all the keys, and returns nil. It returns a
// *NameTakenError if another node turns out to hold the name and to be alive,
// unless the name had been this node's before: then it goes on trying. It
// returns ErrSuperseded if it should not try any more. All else it mends.
// Call it once.
func (s *Session) Run(ctx context.Context) error {
	select {
	case <-s.named:
	case <-ctx.Done():
		return nil
	}
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
			return err
		}
		if taken := new(NameTakenError); errors.As(err, &taken) && !s.claimed {
			return err
		}
		if time.Since(began) > s.cfg.TTL {
			pause = newPause(s.c.pace)
		}
		if nag.due() {
			s.c.log.Warn("this node's record and verdicts are not in etcd; trying on", "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// hold takes a lease, claims the name and writes, until something goes wrong.
func (s *Session) hold(ctx context.Context) error {
	conn, err := s.c.connect(ctx)
	if err != nil {
		return err
	}
	l, err := s.grant(ctx, conn)
	if err != nil {
		return err
	}
	defer l.giveBack(ctx)
	if err := s.claim(l); err != nil {
		return l.orLost(err)
	}
	s.claimed = true
	s.c.metrics.registered.Set(1)
	s.c.log.Debug("this node's record is in etcd", "key", s.c.prefix+s.record)
	l.wg.Go(func() { s.guard(l) })
	return l.orLost(s.write(l))
}
