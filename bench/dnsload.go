package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// dnsWatch asks the zone's own server for a name's addresses, twenty times a
// second, and knows which of them there may be.
type dnsWatch struct {
	began time.Time
	rig   *dnsRig
	end   context.CancelFunc
	ended chan struct{}

	mu    sync.Mutex // guards the following, until ended
	is    []netip.Addr
	at    time.Time
	next  chan struct{} // closed with the next view
	views int
	empty int
	wrong []string
}

const dnsViewEvery = 50 * time.Millisecond

func (r *dnsRig) startWatch(ctx context.Context) *dnsWatch {
	ctx, end := context.WithCancel(ctx)
	w := &dnsWatch{began: time.Now(), rig: r, end: end, ended: make(chan struct{}), next: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for wait(ctx, dnsViewEvery) == nil {
			if is, err := lookUp(ctx, r.knot, dnsKept); err == nil {
				w.note(is)
			}
		}
	}()
	return w
}

func (w *dnsWatch) stop() {
	w.end()
	<-w.ended
}

func (w *dnsWatch) note(is []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.is, w.at = is, time.Now()
	w.views++
	if len(is) == 0 {
		w.empty++
	}
	for i, a := range is {
		known := slices.ContainsFunc(w.rig.net.hosts, func(h *netHost) bool { return h.addr == a }) || slices.Contains(w.rig.moved, a)
		if !known || slices.Contains(is[:i], a) {
			w.wrong = append(w.wrong, fmt.Sprint(is))
		}
	}
	close(w.next)
	w.next = make(chan struct{})
}

// until returns when ok was first so, from now on.
func (w *dnsWatch) until(ctx context.Context, ok func([]netip.Addr) bool) (time.Time, error) {
	limit, cancel := context.WithTimeoutCause(ctx, dnsPatience, errors.New("waited a minute"))
	defer cancel()
	for {
		w.mu.Lock()
		next := w.next
		w.mu.Unlock()
		select {
		case <-limit.Done():
			return time.Time{}, context.Cause(limit)
		case <-next:
		}
		w.mu.Lock()
		is, at := w.is, w.at
		w.mu.Unlock()
		if ok(is) {
			return at, nil
		}
	}
}

// dnsLoad is two populations of clients that go by a name each.
type dnsLoad struct {
	kept, plain tallies
	end         context.CancelFunc
	running     sync.WaitGroup
}

const (
	dnsClients  = 20 // of each population
	dnsAskEvery = 200 * time.Millisecond
)

func (r *dnsRig) startLoad(ctx context.Context) *dnsLoad {
	ctx, end := context.WithCancel(ctx)
	l := &dnsLoad{end: end}
	began := time.Now()
	for name, to := range map[string]*tallies{dnsKept: &l.kept, dnsPlain: &l.plain} {
		to.began = began
		for range dnsClients {
			l.running.Go(func() {
				for wait(ctx, dnsAskEvery/2+rand.N(dnsAskEvery)) == nil {
					r.visit(ctx, name, to)
				}
			})
		}
	}
	return l
}

func (l *dnsLoad) stop() {
	l.end()
	l.running.Wait()
}

// visit looks a name up and connects to one of its addresses, as a client does that
// has no other try.
func (r *dnsRig) visit(ctx context.Context, name string, to *tallies) {
	at := time.Now()
	addrs, err := lookUp(ctx, r.resolver, name)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address")
	}
	if err == nil {
		err = takes(ctx, addrs[rand.N(len(addrs))])
	}
	if ctx.Err() == nil {
		to.note(at, err)
	}
}

// tallies count connections by the second in which they began.
type tallies struct {
	began time.Time

	mu           sync.Mutex // guards the following
	made, failed []int
}

func (t *tallies) note(at time.Time, err error) {
	second := int(at.Sub(t.began) / time.Second)
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.made) <= second {
		t.made, t.failed = append(t.made, 0), append(t.failed, 0)
	}
	t.made[second]++
	if err != nil {
		t.failed[second]++
	}
}

func (t *tallies) result(length float64) connections {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := connections{Share: make([]float64, int(length)+1)}
	for i := range t.made {
		c.Made += t.made[i]
		c.Failed += t.failed[i]
		if i < len(c.Share) && t.made[i] > 0 {
			c.Share[i] = float64(t.failed[i]) / float64(t.made[i])
		}
	}
	return c
}
