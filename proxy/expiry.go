package proxy

import (
	"container/heap"
	"time"

	"github.com/remotegpu/sluice/router"
)

// expiries are the mappings that will expire, with one timer for all of them:
// tens of thousands may, each years ahead. A mapping that was replaced or
// deleted in the meantime stays until its time or the next sweep.
type expiries struct {
	queue expiryQueue
	sweep int // the length of the queue at which it is swept
	timer *time.Timer
	next  time.Time // when timer fires
}

// minSweep is below what length a sweep is not worth it.
const minSweep = 1024

func (x *expiries) add(m *router.Mapping) { heap.Push(&x.queue, m) }

func (x *expiries) stop() {
	if x.timer != nil {
		x.timer.Stop()
	}
}

// scheduleExpiry has expireDue called when the next mapping expires. p.mu is
// held.
func (p *mappedPorts) scheduleExpiry(now time.Time) {
	x := &p.expiries
	if len(x.queue) > max(x.sweep, minSweep) {
		x.queue = p.inForce(x.queue)
		x.sweep = 2 * len(x.queue)
	}
	switch {
	case len(x.queue) == 0 || x.next.Equal(x.queue[0].ExpiresAt):
		return
	case x.timer == nil:
		x.timer = time.AfterFunc(x.queue[0].ExpiresAt.Sub(now), p.expireDue)
	default:
		x.timer.Reset(x.queue[0].ExpiresAt.Sub(now))
	}
	x.next = x.queue[0].ExpiresAt
}

// inForce returns the mappings of the queue that are, as a queue.
func (p *mappedPorts) inForce(queue expiryQueue) expiryQueue {
	var left expiryQueue
	for _, m := range queue {
		if p.engine.mapping(m.Proto, m.Port) == m {
			left = append(left, m)
		}
	}
	heap.Init(&left)
	return left
}

// expireDue ends the mappings whose time has come.
func (p *mappedPorts) expireDue() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	x, now := &p.expiries, time.Now()
	for len(x.queue) > 0 && hasExpired(x.queue[0], now) {
		m := heap.Pop(&x.queue).(*router.Mapping)
		if p.engine.mapping(m.Proto, m.Port) == m { // not edited or deleted in the meantime
			p.expire(m)
			p.engine.l4.Withdraw(m, nil)
		}
	}
	x.next = time.Time{}
	p.scheduleExpiry(now)
}

func hasExpired(m *router.Mapping, now time.Time) bool {
	return !m.ExpiresAt.IsZero() && !now.Before(m.ExpiresAt)
}

// expiryQueue is a heap of mappings by expires_at, for container/heap.
type expiryQueue []*router.Mapping

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].ExpiresAt.Before(q[j].ExpiresAt) }
func (q expiryQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *expiryQueue) Push(m any)        { *q = append(*q, m.(*router.Mapping)) }

func (q *expiryQueue) Pop() any {
	old := *q
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return m
}
