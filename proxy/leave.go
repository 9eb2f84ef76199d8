package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// steeredNetwork is what the sockets that steered ports have in common are called
// where a socket is given by its network.
const steeredNetwork = "steered"

// Socket says what a socket is for, as listen.Inherited is told: Network is "tcp"
// or "udp" and Address what was asked for, or Network says what else it is.
type Socket struct{ Network, Address string }

// EachSocket calls visit with another descriptor of every socket that clients
// come to, one after the other, until an error. visit owns the file. A port that
// opens or closes meanwhile may be among them or not: whoever is to know them all
// holds Apply up. UDP sockets of steered ports come by Retire.
func (e *Engine) EachSocket(visit func(Socket, *os.File) error) error {
	for _, public := range []struct {
		network string
		of      []publicSocket
	}{{"tcp", e.public.tcpSockets(e.cfg)}, {"udp", e.public.udpSockets(e.cfg)}} {
		for _, s := range public.of {
			f, err := listen.Duplicate(s.socket, s.address)
			if err != nil {
				return err
			}
			if err := visit(Socket{public.network, s.address}, f); err != nil {
				return err
			}
		}
	}
	return e.mapped.opener.each(visit)
}

// Left is what a process that is about to end leaves to the one that has its
// sockets: whatever UDP sockets carry. The files belong to who has it.
type Left struct {
	UDP  []l4.UDPPort
	QUIC []proxyhttp.QUICElder
}

// Begin has UDP sockets read from, where Config.Held kept that back, and goes on
// with what another process has left. What nobody wants here is closed.
func (e *Engine) Begin(from Left) {
	e.begin.Do(func() {
		e.elders = map[string][]proxyhttp.QUICElder{}
		open := map[string]bool{}
		for _, pc := range e.public.quic {
			open[pc.LocalAddr().String()] = true
		}
		for _, elder := range from.QUIC {
			if !open[elder.Local] {
				elder.Socket.Close()
				continue
			}
			e.elders[elder.Local] = append(e.elders[elder.Local], elder)
		}
		e.mapped.adopt(from.UDP)
		close(e.held)
	})
}

// hasBegun reports whether the engine serves everything: no other process is to,
// as until Begin with Config.Held.
func (e *Engine) hasBegun() bool {
	select {
	case <-e.held:
		return true
	default:
		return false
	}
}

// eldersOf returns the processes that have connections on a UDP socket, whose
// files are the caller's.
func (e *Engine) eldersOf(pc *net.UDPConn) []proxyhttp.QUICElder {
	return e.elders[pc.LocalAddr().String()]
}

// mayRead waits until UDP sockets may be read from. It reports false if they never
// may.
func (e *Engine) mayRead() bool {
	select {
	case <-e.held:
		return true
	case <-e.ctx.Done():
		return false
	}
}

// Hold has the engine neither begin to rest nor be shut down until the function
// returned is called. It fails while the engine rests: what is closed cannot be
// handed over.
func (e *Engine) Hold() (release func(), err error) {
	e.rest.mu.Lock()
	if e.rest.on || e.rest.end {
		e.rest.mu.Unlock()
		return nil, errors.New("it is drained, or about to stop")
	}
	return e.rest.mu.Unlock, nil
}

// Retire leaves every socket that clients come to to another process that has it
// too, and returns the UDP sessions, which are the caller's to hand over. TCP
// flows and what has come to HTTP go on; Linger waits for them. Apply changes
// their rules from here on and opens nothing.
//
// Whoever calls it has called Hold.
func (e *Engine) Retire() Left {
	e.rest.end = true
	e.mapped.stop(false)
	e.public.close()
	e.settle()
	e.leave()
	e.udpServing.Wait()
	e.names.stop()
	e.downs.stop()
	e.uncheck()
	quic := e.http.Leave()
	e.leftMu.Lock()
	defer e.leftMu.Unlock()
	left := Left{UDP: e.left, QUIC: quic}
	e.left = nil
	return left
}

// settleLimit is how long connections may take that were being accepted when that
// ended. They are microseconds from being somebody's flow.
const settleLimit = 5 * time.Second

// settle waits until every connection that was accepted is somebody's.
func (e *Engine) settle() {
	e.publicAccepting.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	// Once for those that one loop has given to another, after it was told to
	// accept no more; and once for the other.
	for range 2 {
		if err := e.l4.Pulse(ctx); err != nil {
			e.cfg.Logger.Error("connections that were just accepted may be lost", "err", err)
		}
	}
}

// takeLeft takes note of what a UDP port leaves.
func (e *Engine) takeLeft(p l4.UDPPort) {
	e.leftMu.Lock()
	defer e.leftMu.Unlock()
	e.left = append(e.left, p)
}

// uncheck ends the health checks: the process that has taken over makes them.
func (e *Engine) uncheck() {
	e.retired.Store(true)
	e.applying.Lock()
	defer e.applying.Unlock()
	e.setChecked(&router.Table{}, e.table.Load())
}

// lingerLook is how often Linger looks whether anything is left.
const lingerLook = 50 * time.Millisecond

// Linger waits until nothing is left of what Retire let go on, or ctx ends, and is
// Shutdown then.
func (e *Engine) Linger(ctx context.Context) (cut int) {
	look := time.NewTicker(lingerLook)
	defer look.Stop()
	// Whoever is in hand is about to be one of the others.
	for ctx.Err() == nil && (e.inHand.Load() > 0 || e.Remaining() > 0) {
		e.http.Linger(ctx)
		e.l4.Linger(ctx)
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
	return e.Shutdown(ctx)
}

// Forsake cuts what came by HTTP/3 and closes its sockets, after Retire, where the
// process that reads them is gone: nobody passes packets on any more, and whoever
// begins next could not have the address. TCP flows go on.
func (e *Engine) Forsake() { e.forsakeUDP() }

// Pulse returns nil once everything that serves clients has shown that it goes on:
// the event loops turn, and mapped ports could be changed. It gives up when ctx
// ends, and says what has not. Calls are not to overlap.
func (e *Engine) Pulse(ctx context.Context) error {
	free := make(chan struct{})
	go func() {
		e.mapped.mu.Lock()
		defer e.mapped.mu.Unlock()
		close(free)
	}()
	select {
	case <-free:
	case <-ctx.Done():
		return fmt.Errorf("mapped ports cannot be changed: %w", ctx.Err())
	}
	return e.l4.Pulse(ctx)
}

// Remaining says how many flows there are: TCP connections of mappings and of
// routes that take them whole, UDP sessions, and connections that speak HTTP.
func (e *Engine) Remaining() int { return e.l4.Live() + e.http.Connections() }

// publicSocket is a public listener's socket, and the address that it was asked
// for.
type publicSocket struct {
	address string
	socket  syscall.Conn
}

func (p *publicListeners) tcpSockets(cfg Config) (all []publicSocket) {
	for i, ln := range p.https {
		all = append(all, publicSocket{cfg.HTTPS[i].Address, ln})
	}
	for i, ln := range p.http {
		all = append(all, publicSocket{cfg.HTTP[i].Address, ln})
	}
	return all
}

func (p *publicListeners) udpSockets(cfg Config) (all []publicSocket) {
	quic := p.quic
	for i := range cfg.HTTPS {
		if !cfg.HTTPS[i].NoHTTP3 && len(quic) > 0 {
			all = append(all, publicSocket{cfg.HTTPS[i].Address, quic[0]})
			quic = quic[1:]
		}
	}
	return all
}
