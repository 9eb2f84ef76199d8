package l4

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// lastWords is how long the sound direction of a relay may go on after the
// other one could no longer write: a backend that answers and resets without
// reading the whole request is still heard.
const lastWords = 10 * time.Second

// pair is an established relay of which a side passes through code, such as TLS:
// two connections, and a goroutine for each direction.
type pair struct {
	flow            *flow
	client, backend side

	mu       sync.Mutex // guards the following fields
	finished int        // directions that have met a FIN
	first    end        // whose FIN came first
	broken   *side      // could not be written to any more
	brokenBy error
}

// relay has bytes go between c and backend, those of peeked first, until both are
// closed. It owns both from here on. Where both are the kernel's, a loop does
// that, and relay reports that the flow goes on; else it returns when no
// goroutine of the pair runs any more.
func (f *flow) relay(c, backend net.Conn, peeked []byte, idleTimeout time.Duration) (goesOn bool) {
	client, peeked := unwrap(c, peeked)
	server, _ := unwrap(backend, nil)
	raw, isRaw := client.(*net.TCPConn)
	rawServer, isRawToo := server.(*net.TCPConn)
	if isRaw && isRawToo {
		return f.moveToLoop(raw, rawServer, peeked, idleTimeout)
	}
	p := &pair{flow: f, client: newSide(client), backend: newSide(server)}
	f.stopWhenIdle(idleTimeout)
	up := newDirection(p, &p.client, &p.backend, &f.up, &f.at.Load().up)
	down := newDirection(p, &p.backend, &p.client, &f.down, &f.at.Load().down)
	var other sync.WaitGroup
	other.Go(down.run)
	up.sendFirst(peeked)
	up.run()
	other.Wait()
	f.stop(failed, errors.New("both directions ended without a reason")) // never the first to say so
	return false
}

// moveToLoop gives both connections of f to a loop. It reports whether the flow
// goes on there.
func (f *flow) moveToLoop(c, backend *net.TCPConn, peeked []byte, idleTimeout time.Duration) (goesOn bool) {
	group, err := f.server.loops.start()
	if err != nil {
		f.stop(failed, err)
		return false
	}
	t := f.terms(idleTimeout)
	t.First = peeked
	p := f.lockPort()
	defer p.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false // and both are reset
	}
	f.conns = [2]net.Conn{} // the loop's, also on error
	relayed, err := group.Relay(c, backend, t)
	if err != nil {
		f.concludeLocked(failed, err)
		return false
	}
	f.relayed = relayed
	return true
}

// endsOf returns the ends that stand for s closing first and for s resetting.
func (p *pair) endsOf(s *side) (closed, reset end) {
	if s == &p.client {
		return clientClosed, clientReset
	}
	return backendClosed, backendReset
}

// sawEOF is called when src has sent all that it will: dst is told likewise.
// It reports whether the pair lives on, half-closed.
func (p *pair) sawEOF(src, dst *side) bool {
	closed, _ := p.endsOf(src)
	p.mu.Lock()
	p.finished++
	if p.finished == 1 {
		p.first = closed
	}
	both, first, broken, brokenBy := p.finished == 2, p.first, p.broken, p.brokenBy
	p.mu.Unlock()
	switch {
	case broken != nil: // an end that a reset followed, or took for itself
		p.abort(broken, brokenBy)
	case both:
		p.flow.close(first)
	case !dst.closeWrite():
		// It cannot be told that half of it is over, and would wait for ever.
		p.flow.close(first)
	default:
		return true
	}
	return false
}

// cannotRead is called when src failed: its peer is gone, and the other one
// must learn that this was no orderly end.
func (p *pair) cannotRead(src *side, err error) {
	p.mu.Lock()
	if p.broken != nil {
		src, err = p.broken, p.brokenBy
	}
	p.mu.Unlock()
	p.abort(src, err)
}

// cannotWrite is called when dst failed while it was written to. What it sent
// before that is still to be read by the other direction, which ends the pair
// when it is through; or at once where nobody reads.
func (p *pair) cannotWrite(dst *side, err error) {
	p.mu.Lock()
	unread := p.finished > 0 || p.broken != nil
	if p.broken == nil {
		p.broken, p.brokenBy = dst, err
	}
	culprit, err := p.broken, p.brokenBy
	p.mu.Unlock()
	if unread || dst.raw == nil {
		p.abort(culprit, err)
		return
	}
	_, why := p.endsOf(dst)
	p.flow.stopAfter(lastWords, why)
}

// abort ends the pair with a reset on both sides, on account of culprit.
func (p *pair) abort(culprit *side, err error) {
	_, why := p.endsOf(culprit)
	if isReset(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // the reason says it all. A TLS peer that just vanished is one that reset.
	} else {
		why = failed
	}
	victim := &p.client
	if culprit == victim {
		victim = &p.backend
	}
	victim.flush(p.flow.ctx.Done())
	p.flow.stop(why, err)
}
