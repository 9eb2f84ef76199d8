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
	Loaded   footprint `json:"loaded"`      // before any edit
	Warm     int       `json:"warm_edits"`
	Before   footprint `json:"before"` // after the warm ones, which fill caches and pools
	After    footprint `json:"after"`
	// HeapBefore and HeapAfter are what of the memory is in use by Go values.
	HeapBefore float64 `json:"heap_before_bytes"`
	HeapAfter  float64 `json:"heap_after_bytes"`
}

// editsWarm are the edits that come first.
const editsWarm = 1000

// editsGrowthLimit is how much of its memory a node may gain by edits: what the
// readings of a node to which nothing happens are apart.
const editsGrowthLimit = 1.1

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
	res := &editsResult{Size: n.size, Sessions: b.options.sessions, Edits: b.options.edits, Warm: min(editsWarm, b.options.edits)}
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
	if res.Loaded, err = settled(ctx, n.edge); err != nil {
		return err
	}
	if _, _, err := n.editing(ctx, func() (int64, error) { return n.editRow(ctx, 0, res.Warm) }); err != nil {
		return err
	}
	if res.Before, res.HeapBefore, err = n.settledHeap(ctx); err != nil {
		return err
	}
	cpu, took, err := n.editing(ctx, func() (int64, error) { return n.editRow(ctx, res.Warm, res.Edits) })
	if err != nil {
		return err
	}
	res.Seconds, res.CPU = took.Seconds(), micros(cpu)/float64(res.Edits)
	res.After, res.HeapAfter, err = n.settledHeap(ctx)
	return err
}

// editRow makes count edits, the first of them number from, and returns the
// last revision. All mappings they added are deleted again by then: what is
// left half-way would count as growth.
func (n *sizedNode) editRow(ctx context.Context, from, count int) (rev int64, err error) {
	for i := from; i < from+count; i++ {
		kv := n.change(i)
		if i%10 == 9 { // one of a session's own mapping, which leaves its backend as it is
			sessions := n.bench.options.sessions
			kv = n.relimit(n.sessionMapping(i/10%sessions, sessions), i)
		}
		one, err := n.store.edit(ctx, kv)
		if err != nil {
			return 0, err
		}
		rev = max(rev, one)
	}
	for i := range spareMappings {
		one, err := n.store.edit(ctx, keyValue{key: n.spare(i).key})
		if err != nil {
			return 0, err
		}
		rev = max(rev, one)
	}
	return rev, nil
}

// settledHeap is settled, with the bytes that Go values take once garbage is
// collected: memory that grows while they do not is the allocator's.
func (n *sizedNode) settledHeap(ctx context.Context) (footprint, float64, error) {
	f, err := settled(ctx, n.edge)
	if err != nil {
		return f, 0, err
	}
	if err := collectGarbage(ctx, n.edge.admin); err != nil {
		return f, 0, err
	}
	text, err := getAdmin(ctx, n.edge.admin, "/metrics")
	if err != nil {
		return f, 0, err
	}
	heap, err := metric(text, "go_memstats_heap_alloc_bytes")
	return f, heap, err
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
	sessionPause = 400 * time.Millisecond // between two of them, on average
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

// growth is what all edits did to the memory, and since is what those after the
// warm ones did: memory that only the first edits take is no leak.
func (r *editsResult) growth() float64 { return float64(r.After.RSS) / float64(r.Loaded.RSS) }
func (r *editsResult) since() float64  { return float64(r.After.RSS) / float64(r.Before.RSS) }

func (r *editsResult) section() string {
	return fmt.Sprintf("%d edits in a row at %d mappings, one in ten of a session's own mapping, in %.1f s (%.0f a second, %s µs of CPU time each, "+
		"the sessions' bytes included), while %d sessions had %s of random bytes echoed and compared: %d sessions cut, %d with a wrong byte. "+
		"Memory %s when loaded, %s after %d edits that came first, %s at the end (%.2f×; since those first %.2f×), live heap %s and %s, files %d and %d, with all sessions live and garbage collected each time.\n",
		r.Edits, r.Size, r.Seconds, float64(r.Edits)/r.Seconds, figure(r.CPU), r.Sessions, byteSize(float64(r.Bytes)), len(r.Cut), len(r.Wrong),
		byteSize(float64(r.Loaded.RSS)), byteSize(float64(r.Before.RSS)), r.Warm, byteSize(float64(r.After.RSS)), r.growth(), r.since(), byteSize(r.HeapBefore), byteSize(r.HeapAfter), r.Before.FDs, r.After.FDs)
}

func (r *editsResult) bars() []bar {
	name := fmt.Sprintf("%d edits: ", r.Edits)
	return []bar{
		{name + fmt.Sprintf("of %d live sessions cut", r.Sessions), "0", fmt.Sprint(len(r.Cut)), len(r.Cut) == 0},
		{name + "sessions with a byte lost or altered", "0", fmt.Sprint(len(r.Wrong)), len(r.Wrong) == 0},
		{name + "memory at the end to loaded", "≤ " + times(editsGrowthLimit), times(r.growth()), r.growth() <= editsGrowthLimit},
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
