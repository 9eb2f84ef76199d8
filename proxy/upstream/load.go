package upstream

import (
	"runtime"
	"sync"
	"sync/atomic"
	"weak"
)

// load counts the flows that a target has, attempts included, of all backends
// that balance by connections.
type load struct {
	flows atomic.Int64
	_     [56]byte // a cache line of its own; and the runtime packs no other object beside it
}

// loads finds the load of a target by its address, so that what is known of a
// target outlives an edit of its backend, and is the same for all backends that
// it belongs to. An entry goes when nobody holds its load any more: no backend
// in use, no flow.
type loads struct {
	byEndpoint sync.Map // Endpoint to weak.Pointer[load]
}

// of returns the load of ep, made if there is none.
func (l *loads) of(ep Endpoint) *load {
	var made *load
	for {
		x, known := l.byEndpoint.Load(ep)
		if !known {
			if made == nil {
				made = new(load)
			}
			entry := weak.Make(made)
			if x, known = l.byEndpoint.LoadOrStore(ep, entry); !known {
				runtime.AddCleanup(made, func(ep Endpoint) { l.byEndpoint.CompareAndDelete(ep, entry) }, ep)
				return made
			}
		}
		if found := x.(weak.Pointer[load]).Value(); found != nil {
			return found
		}
		l.byEndpoint.CompareAndDelete(ep, x) // its cleanup is about to
	}
}

// Lease is a flow's place in the count of its target's flows. The zero value
// counts nowhere.
type Lease struct {
	load *load
}

// Done gives the place back: the flow is over. Calling it again does nothing. It
// is not for use from two goroutines at once.
func (l *Lease) Done() {
	if l.load != nil {
		l.load.flows.Add(-1)
		l.load = nil
	}
}

// take counts a flow.
func (l *load) take() Lease {
	l.flows.Add(1)
	return Lease{l}
}
