package certs

import (
	"container/heap"
	"time"
)

// queue has domains by the time to look at them again. The zero value is empty.
type queue struct{ byTime domainHeap }

// first returns the one whose time comes first, nil if there is none.
func (q *queue) first() *domain {
	if len(q.byTime) == 0 {
		return nil
	}
	return q.byTime[0]
}

// set has d looked at when it is time; the zero time: never.
func (q *queue) set(d *domain, wake time.Time) {
	if wake.IsZero() {
		q.remove(d)
		return
	}
	d.wake = wake
	if d.place >= 0 {
		heap.Fix(&q.byTime, d.place)
		return
	}
	heap.Push(&q.byTime, d)
}

func (q *queue) remove(d *domain) {
	if d.place >= 0 {
		heap.Remove(&q.byTime, d.place)
	}
}

type domainHeap []*domain

func (h domainHeap) Len() int           { return len(h) }
func (h domainHeap) Less(i, j int) bool { return h[i].wake.Before(h[j].wake) }

func (h domainHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *domainHeap) Push(x any) {
	d := x.(*domain)
	d.place = len(*h)
	*h = append(*h, d)
}

func (h *domainHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	d.place = -1
	return d
}
