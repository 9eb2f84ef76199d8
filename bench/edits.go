package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// editsResult is what many edits do to sessions that have nothing to do with
// them, and to the node's memory.
type editsResult struct {
	Size     int       `json:"mappings"`
	Sessions int       `json:"sessions"`
	Edits    int       `json:"edits"`
	Cut      []string  `json:"cut"`   // of each session that ended before its time, why
	Wrong    []string  `json:"wrong"` // of each session that got other bytes than it should have, what
	Bytes    int64     `json:"bytes"` // checked, each way
	Seconds  float64   `json:"seconds"`
	CPU      float64   `json:"edit_cpu_us"` // includes relaying the sessions' bytes
	Before   footprint `json:"before"`
	After    footprint `json:"after"`
}

// editsGrowthLimit is how much of its memory a node may gain by edits, which is
// what the readings themselves are apart.
const editsGrowthLimit = 1.05

func runEdits(ctx context.Context, b *bench) error {
	n, err := b.newSizedNode(ctx, "edits")
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.load(ctx); err != nil {
		return err
	}
	s, err := b.site("edits-node")
	if err != nil {
		return err
	}
	if err := n.start(ctx, s); err != nil {
		return err
	}
	if err := n.caughtUp(ctx, 0); err != nil {
		return err
	}
	res := &editsResult{Size: n.size, Sessions: b.options.sessions, Edits: b.options.edits}
	live := n.startSessions(ctx, res.Sessions)
	err = n.editUnder(ctx, live, res)
	live.end(res)
	if err != nil {
		return errors.Join(err, n.edge.proc.alive())
	}
	b.result.Edits = res
	return nil
}

// editUnder makes the edits while sessions live, between two looks at the
// node's memory.
func (n *sizedNode) editUnder(ctx context.Context, live *sessions, res *editsResult) (err error) {
	if err := live.established(ctx); err != nil {
		return err
	}
	if res.Before, err = settled(ctx, n.edge); err != nil {
		return err
	}
	before, err := n.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	var rev int64
	for i := range res.Edits {
		kv := n.change(i)
		if i%10 == 9 { // one of a session's own mapping, which leaves its backend as it is
			kv = n.relimit(n.sessionMapping(i/10%res.Sessions, res.Sessions), i)
		}
		if rev, err = n.store.edit(ctx, kv); err != nil {
			return err
		}
	}
	if err := n.caughtUp(ctx, rev); err != nil {
		return err
	}
	res.Seconds = time.Since(began).Seconds()
	after, err := n.cpu()
	if err != nil {
		return err
	}
	res.CPU = micros(after-before) / float64(res.Edits)
	// What the edits left half-way would count as growth.
	if err := n.deleteSpares(ctx); err != nil {
		return err
	}
	res.After, err = settled(ctx, n.edge)
	return err
}

// deleteSpares takes all mappings out that edits may have added, so that those
// that were loaded are left.
func (n *sizedNode) deleteSpares(ctx context.Context) (err error) {
	var rev int64
	for i := range spareMappings {
		if rev, err = n.store.edit(ctx, keyValue{key: n.spare(i).key}); err != nil {
			return err
		}
	}
	return n.caughtUp(ctx, rev)
}

// sessionMapping is which mapping the i-th of so many sessions uses: they are
// all over the range.
func (n *sizedNode) sessionMapping(i, sessions int) int { return i * (n.size / sessions) }

// relimit gives a mapping another limit, far above what it has.
func (n *sizedNode) relimit(i, edit int) keyValue {
	kv := n.mapping(i)
	kv.value = fmt.Sprintf(`{"backend":"%v","env":"env%06d","service":"ssh","limits":{"connections":%d}}`, n.backend(), i, 1000+edit)
	return kv
}

// sessions are long-lived connections, each of which has bytes echoed that
// nobody could guess and compares them.
type sessions struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	up      chan error // one from each: nil once its first bytes came back
	all     []session
}

type session struct {
	addr  netip.AddrPort
	bytes int64
	err   error
}

// errWrongBytes is what a session ends with that got other bytes than it sent.
var errWrongBytes = errors.New("the bytes that came back are not those that were sent")

func (n *sizedNode) startSessions(ctx context.Context, count int) *sessions {
	ctx, stop := context.WithCancel(ctx)
	live := &sessions{stop: stop, up: make(chan error, count), all: make([]session, count)}
	for i := range live.all {
		s := &live.all[i]
		s.addr = loopback(n.ports.Low + n.sessionMapping(i, count))
		live.running.Go(func() {
			s.err = s.run(ctx, uint64(i), live.up)
		})
	}
	return live
}

// established waits until every session has had its first bytes back.
func (l *sessions) established(ctx context.Context) error {
	for range l.all {
		select {
		case err := <-l.up:
			if err != nil {
				return fmt.Errorf("open sessions: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// end has all sessions say goodbye and notes what became of them.
func (l *sessions) end(res *editsResult) {
	l.stop()
	l.running.Wait()
	for i, s := range l.all {
		res.Bytes += s.bytes
		switch {
		case errors.Is(s.err, errWrongBytes):
			res.Wrong = append(res.Wrong, fmt.Sprintf("session %d: %v", i, s.err))
		case s.err != nil:
			res.Cut = append(res.Cut, fmt.Sprintf("session %d: %v", i, s.err))
		}
	}
}

const (
	sessionBlock = 700                    // bytes at a time
	sessionPause = 100 * time.Millisecond // between two of them, on average
	sessionLimit = 20 * time.Second       // for a block to come back
)

// run has bytes echoed until ctx ends, and then ends its connection in order:
// its last byte is to be the last that comes back. It sends on up once.
func (s *session) run(ctx context.Context, seed uint64, up chan<- error) error {
	c, err := dialTCP(ctx, s.addr)
	if err != nil {
		up <- err
		return err
	}
	defer c.Close()
	random := rand.New(rand.NewPCG(seed, 1))
	sent, back := make([]byte, sessionBlock), make([]byte, sessionBlock)
	rest := time.NewTimer(0)
	defer rest.Stop()
	for first := true; ; first = false {
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		err := s.exchange(c, sent, back)
		if first {
			up <- err
		}
		if err != nil {
			return err
		}
		rest.Reset(sessionPause/2 + rand.N(sessionPause))
		select {
		case <-ctx.Done():
			return s.goodbye(c)
		case <-rest.C:
		}
	}
}

func (s *session) exchange(c net.Conn, sent, back []byte) error {
	if err := c.SetDeadline(time.Now().Add(sessionLimit)); err != nil {
		return err
	}
	if _, err := c.Write(sent); err != nil {
		return fmt.Errorf("after %d bytes: %w", s.bytes, err)
	}
	if _, err := io.ReadFull(c, back); err != nil {
		return fmt.Errorf("after %d bytes: %w", s.bytes, err)
	}
	if !bytes.Equal(sent, back) {
		return fmt.Errorf("after %d bytes: %w", s.bytes, errWrongBytes)
	}
	s.bytes += int64(len(sent))
	return nil
}

func (s *session) goodbye(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(sessionLimit)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	n, err := io.Copy(io.Discard, c)
	if n > 0 {
		return fmt.Errorf("%d bytes after the last: %w", n, errWrongBytes)
	}
	if err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

func (r *editsResult) growth() float64 { return float64(r.After.RSS) / float64(r.Before.RSS) }

func (r *editsResult) section() string {
	return fmt.Sprintf("%d edits in a row at %d mappings, one in ten of a session's own mapping, in %.1f s (%.0f a second, %s µs of CPU time each, "+
		"the sessions' bytes included), while %d sessions had %s of random bytes echoed and compared: %d sessions cut, %d with a wrong byte. "+
		"Memory %s before and %s after (%.2f×), files %d and %d, with all sessions live and garbage collected at both times.\n",
		r.Edits, r.Size, r.Seconds, float64(r.Edits)/r.Seconds, figure(r.CPU), r.Sessions, byteSize(float64(r.Bytes)), len(r.Cut), len(r.Wrong),
		byteSize(float64(r.Before.RSS)), byteSize(float64(r.After.RSS)), r.growth(), r.Before.FDs, r.After.FDs)
}

func (r *editsResult) bars() []bar {
	name := fmt.Sprintf("%d edits: ", r.Edits)
	return []bar{
		{name + fmt.Sprintf("of %d live sessions cut", r.Sessions), "0", fmt.Sprint(len(r.Cut)), len(r.Cut) == 0},
		{name + "sessions with a byte lost or altered", "0", fmt.Sprint(len(r.Wrong)), len(r.Wrong) == 0},
		{name + "memory after to before", "≤ " + times(editsGrowthLimit), times(r.growth()), r.growth() <= editsGrowthLimit},
	}
}

// failures shows the first session of each kind that fared ill.
func (r *editsResult) failures() []string {
	var all []string
	for _, list := range [][]string{r.Cut, r.Wrong} {
		if len(list) > 0 {
			all = append(all, "edits: "+list[0])
		}
	}
	return all
}
