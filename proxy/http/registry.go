package http

import (
	"sync"
	"sync/atomic"
)

// registry knows the connections and QUIC sockets being served.
type registry struct {
	draining atomic.Bool // the server takes up nothing: it rests, or is shutting down; written under mu
	leaving  atomic.Bool // clients are to go, but none is refused

	mu       sync.Mutex // guards the following fields
	stopping bool       // it is shutting down
	conns    map[*conn]struct{}
	sockets  map[*quicSocket]struct{}
	empty    chan struct{} // closed when stopping and nothing is left
}

func (r *registry) init() {
	r.conns = map[*conn]struct{}{}
	r.sockets = map[*quicSocket]struct{}{}
	r.empty = make(chan struct{})
}

// add takes up a connection, unless the server rests or is shutting down.
func (r *registry) add(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining.Load() {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

// addSocket takes up a QUIC socket, unless the server is shutting down.
func (r *registry) addSocket(q *quicSocket) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return false
	}
	r.sockets[q] = struct{}{}
	return true
}

func (r *registry) remove(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	r.checkEmpty()
}

func (r *registry) removeSocket(q *quicSocket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sockets, q)
	r.checkEmpty()
}

// checkEmpty closes empty once. r.mu is held.
func (r *registry) checkEmpty() {
	if !r.stopping || len(r.conns) > 0 || len(r.sockets) > 0 {
		return
	}
	select {
	case <-r.empty:
	default:
		close(r.empty)
	}
}

// drain has nothing more taken up and returns the QUIC sockets. Further calls
// change nothing.
func (r *registry) drain() []*quicSocket {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
	r.draining.Store(true)
	r.checkEmpty()
	var sockets []*quicSocket
	for q := range r.sockets {
		sockets = append(sockets, q)
	}
	return sockets
}

// leavesOrDrains reports whether clients are to go.
func (r *registry) leavesOrDrains() bool { return r.draining.Load() || r.leaving.Load() }

// allSockets returns the QUIC sockets.
func (r *registry) allSockets() (all []*quicSocket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q := range r.sockets {
		all = append(all, q)
	}
	return all
}

// each calls f for every connection there is now.
func (r *registry) each(f func(*conn)) {
	r.mu.Lock()
	conns := make([]*conn, 0, len(r.conns))
	for c := range r.conns {
		conns = append(conns, c)
	}
	r.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}
