package etcd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// stream is one life of the watch: a watcher for each span, all on one gRPC
// stream, from the revision after a load until anything goes wrong.
//
// Each span reaches revisions by itself. The lowest of them is what all have
// reached. An edit raises one span only; a fence, which asks etcd to name the
// revision that the whole stream has reached, raises the others. The same
// question, asked of a quiet stream, tells a frozen watch from an idle one.
type stream struct {
	c     *Client
	feed  *feed
	inbox inbox
	begin func(ctx context.Context) // loads what is aside; nil: there is nothing

	// The rest belongs to run.
	aside    asideStream
	reached  []int64   // by span; those of what is aside come last
	reported int64     // last revision passed to the handler
	newest   int64     // highest revision among the changes passed
	seen     int64     // highest revision named by any response
	asked    time.Time // when a fence was last asked for
	waiting  bool      // whether no answer has come since
	waitedAt time.Time // when waiting began
	armed    time.Time // when the next fence is due; zero: no time is set
	risen    time.Time // when reported last rose, or newest got ahead of it
}

// newStream returns a stream that goes on from a load of revision rev, the newest
// of which is newest.
func newStream(c *Client, conn *clientv3.Client, rev int64, newest mark, aside Aside) *stream {
	spans := watched(c.prefix)
	s := &stream{
		c:        c,
		inbox:    inbox{ready: make(chan struct{}, 1)},
		aside:    asideStream{h: aside.Handler, first: len(spans)},
		reported: rev,
		newest:   rev,
		seen:     rev,
	}
	if more := aside.spans(c.prefix); len(more) > 0 {
		s.begin = func(ctx context.Context) { s.loadAside(ctx, conn, more, rev) }
		spans = append(spans, more...)
	}
	s.reached = slices.Repeat([]int64{rev}, len(spans))
	s.feed = c.newFeed(conn, spans, rev, s.inbox.put)
	s.feed.course = course{conn: conn, patient: c.pace.request, cluster: c.State().Cluster, mark: newest}
	return s
}

// run returns an error that says why the stream ended, nil if because of ctx.
// All goroutines it started have ended by then.
func (s *stream) run(ctx context.Context, h handler) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	running.Go(func() { s.feed.run(ctx) })
	running.Go(func() { s.feed.sendQuestions(ctx) })
	if s.begin != nil {
		running.Go(func() { s.begin(ctx) })
	}

	s.c.syncs.follow(s.feed.askProgress)
	defer s.c.syncs.follow(nil)
	if s.aside.h == nil { // else its load has to come
		s.c.syncs.reached(slices.Min(s.reached))
	}
	beat := time.NewTicker(s.c.pace.heartbeat)
	defer beat.Stop()
	fence := time.NewTimer(time.Hour)
	defer fence.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.inbox.ready:
			if err := s.take(h); err != nil {
				return err
			}
			s.armFence(fence)
		case <-fence.C:
			s.armed = time.Time{}
			s.askFence()
			s.armFence(fence)
		case <-beat.C:
			// The answer may have come while the handler was busy.
			if err := s.take(h); err != nil {
				return err
			}
			if err := s.checkAlive(); err != nil {
				return err
			}
		}
	}
}

// armFence sets when to ask for a fence, if one is needed: at once, but not too
// often under a stream of edits. etcd leaves a question unanswered while one of
// the watchers is behind, such as just after the load, so it is repeated.
func (s *stream) armFence(timer *time.Timer) {
	if s.newest <= s.reported {
		timer.Stop()
		s.armed = time.Time{}
		return
	}
	after := s.c.pace.fence
	if s.waiting {
		after *= 5
	}
	if at := s.asked.Add(after); !at.Equal(s.armed) {
		s.armed = at
		timer.Reset(time.Until(at)) // fires at once if that is negative
	}
}

func (s *stream) askFence() {
	s.asked = time.Now()
	if !s.waiting {
		s.waiting, s.waitedAt = true, s.asked
	}
	s.feed.askProgress()
}

// checkAlive is called at every heartbeat: it judges how long the questions
// have been left unanswered and asks another.
func (s *stream) checkAlive() error {
	if late := time.Since(s.risen); s.newest > s.reported && late > s.c.pace.frozen {
		return fmt.Errorf("watch %s: %w: not all ranges have reached revision %d after %v", s.c.prefix, errFrozen, s.newest, late.Round(time.Millisecond))
	}
	if s.waiting {
		silence := time.Since(s.waitedAt)
		if silence > s.c.pace.frozen {
			return fmt.Errorf("watch %s: %w: no answer for %v", s.c.prefix, errFrozen, silence.Round(time.Millisecond))
		}
		if silence >= s.c.pace.heartbeat {
			s.c.noteLost(fmt.Errorf("watch %s: no answer for %v", s.c.prefix, silence.Round(time.Millisecond)))
		}
	}
	s.askFence()
	return nil
}

// take delivers all that has arrived as one batch.
func (s *stream) take(h handler) error {
	arrived := s.inbox.takeAll()
	if len(arrived) == 0 {
		return nil
	}
	var changes []Change
	sources := 0
	for _, a := range arrived {
		if a.err != nil {
			return fmt.Errorf("watch %s from revision %d: %w", s.c.prefix, s.reported+1, a.err)
		}
		if a.span >= s.aside.first {
			s.aside.take(s.c, a)
			if !a.load { // which says nothing of the watch
				s.advance(a)
			}
			continue
		}
		before := len(changes)
		changes = s.c.appendChanges(changes, a.events)
		if len(changes) > before {
			sources |= 1 << a.span // at most len(unwatched)+1 spans
		}
		s.advance(a)
	}
	if sources&(sources-1) != 0 {
		// More than one span contributed. Stable, since changes of one
		// revision keep the order of their transaction.
		slices.SortStableFunc(changes, func(a, b Change) int { return cmp.Compare(a.ModRev, b.ModRev) })
	}
	s.c.noteHeard(s.seen)
	s.deliver(h, changes)
	s.aside.deliver(s.reached)
	if s.aside.h == nil || s.aside.loaded {
		s.c.syncs.reached(slices.Min(s.reached))
	}
	return nil
}

// appendChanges appends what happened in events, keys below the prefix.
func (c *Client) appendChanges(to []Change, events []*mvccpb.Event) []Change {
	for _, ev := range events {
		ch := Change{Key: strings.TrimPrefix(string(ev.Kv.Key), c.prefix), ModRev: ev.Kv.ModRevision}
		if ev.Type == mvccpb.Event_DELETE {
			ch.Deleted = true
		} else {
			ch.Value = ev.Kv.Value
		}
		to = append(to, ch)
	}
	return to
}

// advance notes what an answer says about its span's progress.
func (s *stream) advance(a arrival) {
	s.seen = max(s.seen, a.rev)
	if len(a.events) == 0 {
		s.waiting = false
	}
	advance(s.reached, a)
}

// deliver passes changes, and the revision that all spans have reached if that
// completes changes passed before. What etcd's revision does on account of
// unwatched keys is nobody's concern: a node that reported it would, by the
// writing of its report, give every other node something to report.
func (s *stream) deliver(h handler, changes []Change) {
	complete := s.newest <= s.reported
	for _, ch := range changes {
		s.newest = max(s.newest, ch.ModRev)
	}
	rev := s.reported
	if s.newest > s.reported {
		rev = max(rev, slices.Min(s.reached[:s.aside.first]))
	}
	if len(changes) == 0 && rev == s.reported {
		return
	}
	rises := rev > s.reported
	s.reported = rev
	begun := time.Now()
	h.Change(rev, changes)
	// Nothing was asked or heard during the call: it is not etcd's silence.
	took := time.Since(begun)
	s.waitedAt, s.risen = s.waitedAt.Add(took), s.risen.Add(took)
	if rises || complete {
		s.risen = time.Now()
	}
	s.c.noteDelivered(rev)
	s.c.metrics.changes.Add(float64(len(changes)))
	if len(changes) > 0 {
		s.c.metrics.batches.Inc()
	}
}

// inbox gathers arrivals while the handler is busy. It is not bounded: neither
// is the client library's own queue in front of it, and what waits are the
// changes of the time that one call of the handler takes.
type inbox struct {
	ready chan struct{} // holds a token while there may be arrivals

	mu    sync.Mutex // guards queue
	queue []arrival
	spare []arrival // what takeAll returned before; its caller's until the next call
}

func (b *inbox) put(a arrival) {
	b.mu.Lock()
	b.queue = append(b.queue, a)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// takeAll returns what has arrived, valid until the next call.
func (b *inbox) takeAll() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.spare)
	all := b.queue
	b.queue, b.spare = b.spare[:0], all
	return all
}
