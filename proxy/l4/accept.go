package l4

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// Listener is a listening TCP socket that the server accepts from. Its methods
// may be called from any goroutine.
type Listener struct {
	server  *Server
	socket  *loop.Listener
	mapping func(port int) *router.Mapping
}

// ListenTCP serves the connections that come to ln, which may be to one port or,
// where the kernel steers them there, to many: mapping returns what is mapped to
// a port, nil for nothing, which resets the connection. It is called from several
// goroutines at once and must not block. The server owns ln from here on,
// whatever it returns.
//
// A client that may not connect, one over a limit, and one whose backend cannot
// be reached is reset, as a port without a listener would do it.
func (s *Server) ListenTCP(ln *net.TCPListener, mapping func(port int) *router.Mapping) (*Listener, error) {
	group, err := s.loops.start()
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("serve %v: %w", ln.Addr(), err)
	}
	l := &Listener{server: s, mapping: mapping}
	if l.socket, err = group.Listen(ln, l.accept); err != nil {
		return nil, err
	}
	return l, nil
}

// Close stops listening. When it returns clients are refused, and the port can
// be listened on again. Flows go on. It returns nil, also when called again.
func (l *Listener) Close() error {
	l.socket.Close()
	return nil
}

// File returns another descriptor of the socket, which the caller owns, for
// somebody who goes on to listen with it. It fails once the Listener is closed.
func (l *Listener) File() (*os.File, error) { return l.socket.File() }

// Leave stops accepting from a socket that somebody else has open as well and
// goes on to listen with, such as a process that takes over.
func (l *Listener) Leave() { l.socket.Leave() }

// accept decides about a connection, on its loop. Most are taken to their
// backend by the loop; those that something must be read from first get a
// goroutine until that is done.
func (l *Listener) accept(in loop.Incoming) loop.Verdict {
	local := in.Local()
	m := l.mapping(int(local.Port()))
	if m == nil {
		return loop.Verdict{}
	}
	s := l.server
	f := s.newFlow(router.TCP, in.Client, local, mappingLabels(m))
	f.relayed = in.Flow
	if listen.Scarce(in.FD()) {
		f.refuse(limited)
		return loop.Verdict{}
	}
	if why := s.link(f, m); why != live {
		f.refuse(why)
		return loop.Verdict{}
	}
	if f.mapping.HTTP != nil || f.awaitsHeader() {
		return loop.Verdict{Action: loop.HandOver, Take: f.take}
	}
	if why := f.letIn(); why != live {
		f.conclude(why, nil)
		f.finish()
		return loop.Verdict{}
	}
	return f.approach()
}

// take serves a connection that a loop has handed over, on a goroutine of its
// own.
func (f *flow) take(c *net.TCPConn, err error) {
	if err != nil {
		f.stop(failed, err)
		f.finish()
		return
	}
	f.begin()
	if !f.attach(c) || !f.serve(c) {
		f.finish()
	}
}

var errTooManyFlows = errors.New("the node has as many TCP flows as its limit of open files lets it")

// refuse ends a flow that was never linked.
func (f *flow) refuse(why end) {
	var err error
	if why == limited { // those of mappings come later
		err = errTooManyFlows
	}
	f.conclude(why, err)
	for _, c := range f.conns {
		if c != nil {
			reset(c)
		}
	}
	f.server.metrics.ended(f.proto, why)
	f.log(time.Now(), why, err)
}
