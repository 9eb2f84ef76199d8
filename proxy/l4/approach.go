package l4

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// stallTimeout is how long one side of a relay may take none of the bytes that
// wait for it, which hold memory here: longer than anybody pauses who comes
// back.
const stallTimeout = 10 * time.Minute

// approach is a flow's way to its backend, until it is there. It belongs to the
// flow's loop, or to a goroutine while that resolves a name.
type approach struct {
	upstream.Attempt
	target upstream.Endpoint // under way
	addr   netip.AddrPort    // of it

	// Guarded by the flow's mu.
	resolving bool // a goroutine has it
	abandoned bool // the flow has ended meanwhile
}

var errNoBackend = errors.New("the mapping has no backend for bytes that are not HTTP")

// approach begins the way of an admitted flow of a mapping to its backend, on
// the flow's loop.
func (f *flow) approach() loop.Verdict {
	m := f.mapping
	refused := func(why end, err error) loop.Verdict {
		f.conclude(why, err)
		f.finish()
		return loop.Verdict{}
	}
	if m.Backend == nil {
		return refused(failed, errNoBackend)
	}
	a, err := f.server.cfg.Dialer.Attempt(m.Backend, nil, f.client.Addr())
	if err != nil {
		return refused(connectFailed, err)
	}
	var header []byte
	if version := m.ProxyProtocol.Send; version != "" {
		if header, err = f.proxyHeader().Append(nil, version); err != nil {
			return refused(failed, err)
		}
	}
	f.way = &approach{Attempt: a}
	f.way.Timeout = m.EffectiveConnectTimeout()
	next := f.nextTarget()
	if !next.Wait && !next.To.IsValid() {
		f.server.metrics.connect.Observe(time.Since(f.since).Seconds())
		err := f.way.Err()
		f.way.Done()
		return refused(connectFailed, err)
	}
	t := f.terms(m.IdleTimeout)
	t.First, t.Header = header, len(header)
	return loop.Verdict{Action: loop.Connect, Terms: t, Next: next}
}

// terms returns what f is relayed under.
func (f *flow) terms(idle time.Duration) loop.Terms {
	return loop.Terms{Owner: onLoop{f}, IdleTimeout: idle, StallTimeout: stallTimeout, Pace: f}
}

// nextTarget returns where f goes next.
func (f *flow) nextTarget() loop.Next {
	addr, target, state := f.way.Next()
	switch state {
	case upstream.Ready:
		f.way.target, f.way.addr = target, addr
		return loop.Next{To: addr, Timeout: f.way.Limit()}
	case upstream.Unresolved:
		f.mu.Lock()
		f.way.resolving = true
		f.mu.Unlock()
		f.server.running.Go(f.resolve)
		return loop.Next{Wait: true}
	}
	return loop.Next{}
}

// resolve finds the next address of f, which waits, by resolving names.
func (f *flow) resolve() {
	way := f.way
	ctx := f.begin()
	next := loop.Next{}
	for {
		addr, target, state := way.Next()
		if state == upstream.Unresolved {
			_ = way.Resolve(ctx) // Next and Err know
			continue
		}
		if state == upstream.Ready {
			way.target, way.addr = target, addr
			next = loop.Next{To: addr, Timeout: way.Limit()}
		}
		break
	}
	f.mu.Lock()
	way.resolving = false
	abandoned := way.abandoned
	f.mu.Unlock()
	if abandoned {
		way.Done()
		return
	}
	f.relayed.Dial(next, way.Err())
}

// begin gives f a context, which ends when f is stopped, for a goroutine to wait
// with.
func (f *flow) begin() context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil {
		f.ctx, f.cancel = context.WithCancel(context.Background())
		if f.stopped {
			f.cancel()
		}
	}
	return f.ctx
}

// onLoop is a flow as its loop sees it.
type onLoop struct{ *flow }

// Dialed implements loop.Owner.
func (f onLoop) Dialed(took time.Duration, err error) loop.Next {
	if err != nil {
		f.way.Failed(took, err)
		return f.nextTarget()
	}
	f.way.Connected(took)
	f.lease = f.way.Lease()
	f.server.metrics.connect.Observe(time.Since(f.since).Seconds())
	f.setTarget(f.way.target, f.way.addr)
	f.way = nil
	return loop.Next{}
}

// ends are the reasons why a loop ends flows, in l4's words.
var ends = [...]end{
	loop.ClientClosed: clientClosed, loop.BackendClosed: backendClosed, loop.ClientReset: clientReset, loop.BackendReset: backendReset,
	loop.Idle: idle, loop.Stalled: stalled, loop.Cut: failed, loop.Stopped: drained, loop.ConnectFailed: connectFailed, loop.Failed: failed,
}

// Ended implements loop.Owner.
func (f onLoop) Ended(r loop.Report) {
	err := r.Err
	if f.way != nil {
		if r.End == loop.ConnectFailed {
			f.server.metrics.connect.Observe(time.Since(f.since).Seconds())
			if tried := f.way.Err(); tried != nil {
				err = tried
			}
		}
		f.leaveWay()
	}
	f.up.Store(r.Up)
	f.down.Store(r.Down)
	f.conclude(ends[r.End], err) // unless stop said why already
	f.finish()
}

// leaveWay gives up the way to the backend of a flow that has ended.
func (f *flow) leaveWay() {
	f.mu.Lock()
	resolving := f.way.resolving
	f.way.abandoned = true
	f.mu.Unlock()
	if !resolving {
		f.way.Done()
	}
}

// Chunk implements loop.Pace.
func (f *flow) Chunk(up bool, most int) int { return f.at.Load().rate(up).chunk(most) }

// Spend implements loop.Pace.
func (f *flow) Spend(up bool, n int) time.Duration { return f.at.Load().rate(up).spend(n) }

func (p *port) rate(up bool) *bucket {
	if up {
		return &p.up
	}
	return &p.down
}
