package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

const (
	// defaultUDPIdle ends a session without datagrams where the mapping says
	// nothing.
	defaultUDPIdle = time.Minute
	// receiveRest is how long a socket is left alone that fails to receive for
	// want of memory.
	receiveRest = time.Second
)

// Datagram is a datagram as it came in, to a socket other than the one that
// ServeUDP is given.
type Datagram struct {
	Payload []byte
	From    netip.AddrPort // its sender, without a zone; IPv4 as IPv4
	Scope   uint32         // the interface that From belongs to if it is link-local; 0: none
	Local   netip.Addr     // the address of this node it was sent to; invalid: not known
}

// UDPOptions say how ServeUDP begins and when it has done enough. The zero
// value is fine: it begins with nothing and goes on until its context ends.
type UDPOptions struct {
	// First are datagrams for the port that came elsewhere before the socket
	// was open. They are served before its own, in order. The payloads are
	// ServeUDP's until it returns.
	First []Datagram
	// Rest is how long the port may be without a session before the socket is
	// given up; 0 means for ever.
	Rest time.Duration
	// Resting is called, from within ServeUDP, when the socket is about to be
	// given up because of Rest or because the mapping was withdrawn, and has new
	// datagrams come elsewhere from the moment it returns. nil: they cannot.
	Resting func()
	// Sessions go on from another process. ServeUDP owns them.
	Sessions []UDPSession
	// Leave, unless nil, has the port left to another process when it ends:
	// ServeUDP returns nil, and Left has been told of what there was, if anything,
	// and owns it.
	Leave context.Context
	Left  func(UDPPort)
	// Shared says that the other process has the socket already, and gets what is
	// still in it.
	Shared bool
}

// udpPort is one socket and the sessions of its clients. But for what is fixed
// it belongs to its loop.
type udpPort struct {
	server  *Server
	loop    *udpLoop
	fd      int32
	number  uint16
	ipv4    bool // it is a socket of AF_INET
	name    string
	mapping func() *router.Mapping
	options UDPOptions
	running sync.WaitGroup // sessions, until they are in the books as ended
	done    chan error     // gets why the loop is through with the port, nil: as wanted

	sessions  map[sessionKey]*session
	last      *session // that a datagram came for, or nil
	roster    roster   // guarded by sessionCaps.mu
	slot      uint32
	listening bool        // slot is watched
	restless  *time.Timer // runs out when the port has rested; nil: never
	quiet     time.Time   // since when there is no session
	withdrawn bool        // it may end when nobody wants it
	over      bool
	expect    int      // datagrams to ask the kernel for
	leaves    bool     // it is to be left once what is in hand is served
	left      *UDPPort // what is left of it; nil: it was not
}

// ServeUDP serves the sessions of the clients that send to pc, a socket of
// listen.UDP, and owns it: pc itself is closed at once, its socket when ServeUDP
// returns. New sessions are served by what mapping returns when they begin; nil
// refuses them. Each has a socket of its own towards the backend, and answers
// come from the very address that the client wrote to. An event loop does the
// work, so that a session costs no goroutine and a silent one no buffer.
//
// It returns a nil error, with every session over, when
//
//   - ctx has ended, which cuts the sessions: without the socket there is no way
//     to answer;
//   - the mapping was withdrawn, with Withdraw or before ServeUDP was called,
//     mapping returns nil or one that has expired, and the last of the sessions
//     that on_delete lets live has ended;
//   - there was no session for o.Rest.
//
// In the last two cases left are the datagrams that had come to the socket
// before o.Resting took effect, in order: to be served elsewhere, such as by
// another ServeUDP as its First. Any other return is an error of the socket.
func (s *Server) ServeUDP(ctx context.Context, pc *net.UDPConn, mapping func() *router.Mapping, o UDPOptions) (left []Datagram, err error) {
	u, err := s.newUDPPort(pc, mapping, o)
	if err != nil {
		return nil, fmt.Errorf("serve UDP on %v: %w", pc.LocalAddr(), err)
	}
	defer event.CloseFD(u.fd)
	if err := s.udp.join(s, u); err != nil {
		return nil, fmt.Errorf("serve UDP on %s: %w", u.name, err)
	}
	defer s.udp.leave(u)
	u.loop.post(udpCommand{kind: cmdServe, port: u})
	defer context.AfterFunc(ctx, func() { u.loop.post(udpCommand{kind: cmdClose, port: u}) })()
	if o.Leave != nil {
		defer context.AfterFunc(o.Leave, func() { u.loop.post(udpCommand{kind: cmdLeave, port: u}) })()
	}
	err = <-u.done
	u.running.Wait()
	switch {
	case u.left != nil:
		u.leaveTo(u.left)
		return nil, nil
	case ctx.Err() != nil:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("serve UDP on %s: %w", u.name, err)
	}
	return u.retire(ctx), nil
}

// newUDPPort takes the socket out of pc, so that the runtime's poller does not
// watch it as well.
func (s *Server) newUDPPort(pc *net.UDPConn, mapping func() *router.Mapping, o UDPOptions) (*udpPort, error) {
	defer pc.Close()
	fd := -1
	err := listen.WithFD(pc, func(of int) (err error) {
		fd, err = unix.FcntlInt(uintptr(of), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("dup", err)
	})
	if err != nil {
		return nil, fmt.Errorf("take the socket over: %w", err)
	}
	local := pc.LocalAddr().(*net.UDPAddr)
	// The address does not tell: a socket of both families may be bound to one of IPv4.
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tell its family: %w", err)
	}
	return &udpPort{
		server: s, fd: int32(fd), number: uint16(local.Port), ipv4: family == unix.AF_INET, name: local.String(),
		mapping: mapping, options: o, done: make(chan error, 1), sessions: map[sessionKey]*session{}, expect: 1,
	}, nil
}

// settleTime is how long a datagram whose socket the kernel has looked up may
// take until it is queued there: it is under way on another processor.
const settleTime = 10 * time.Millisecond

// retire returns what is left in the socket, after Resting has turned the
// stream of datagrams away from it. The loop is through with it.
func (u *udpPort) retire(ctx context.Context) (left []Datagram) {
	if u.options.Resting != nil {
		u.options.Resting()
		select {
		case <-ctx.Done():
		case <-time.After(settleTime):
		}
	}
	return u.drainSocket()
}

// serve begins with u.
func (l *udpLoop) serve(u *udpPort) {
	if u.over { // its context ended first
		return
	}
	joinDatagrams(u.fd)
	u.quiet = l.poll.Time(l.poll.Now)
	for i := range u.options.Sessions {
		l.resume(u, &u.options.Sessions[i])
	}
	for _, d := range u.options.First {
		l.takeFirst(u, d)
	}
	if u.options.Rest > 0 {
		u.restless = time.AfterFunc(u.options.Rest, func() { l.post(udpCommand{kind: cmdRest, port: u}) })
	}
	l.listen(u)
	// It may have been withdrawn before anybody knew that it is served.
	u.withdrawn = u.isUnmapped()
	l.leaveIfWithdrawn(u)
}

// listen has datagrams of u's socket come in.
func (l *udpLoop) listen(u *udpPort) {
	slot, err := l.watch(u.fd, udpSlot{port: u})
	if err != nil {
		l.closePort(u, err)
		return
	}
	u.slot, u.listening = slot, true
}

func (l *udpLoop) ignore(u *udpPort) {
	if u.listening {
		l.poll.Remove(u.fd)
		l.unwatch(u.slot)
		u.listening = false
	}
}

// takeIn passes on datagrams of clients, as many as came at once lately.
func (l *udpLoop) takeIn(u *udpPort) {
	n, errno := l.in.receive(u.fd, 0, u.expect, true)
	switch errno {
	case 0:
	case unix.EAGAIN:
		return
	case unix.ENOMEM, unix.ENOBUFS:
		l.server.cfg.Logger.Warn("the kernel has no memory for datagrams; trying again", "port", u.number, "err", errno)
		l.ignore(u)
		time.AfterFunc(receiveRest, func() { l.post(udpCommand{kind: cmdUnmute, port: u}) })
		return
	default:
		l.closePort(u, errno)
		return
	}
	u.expect = batchSize
	if n < batchSize {
		u.expect = min(max(2*n, u.expect/2), batchSize)
	}
	if l.poll.Pending() {
		// Sessions that were stopped before a datagram was sent do not get it.
		l.inHand = u // which is to get these datagrams, and so does not end for want of any
		l.poll.Obey(l.carryOut)
		l.inHand = nil
	}
	for i := 0; i < n && !u.over; {
		key, segment := l.in.key(i), l.in.segment(i)
		end := l.in.run(i, n, &key, segment)
		l.take(u, key, l.in.iovs[i:end], segment)
		i = end
	}
	if u.leaves {
		l.surrender(u)
	}
	l.leaveIfWithdrawn(u)
}

// takeFirst serves a datagram that came elsewhere.
func (l *udpLoop) takeFirst(u *udpPort, d Datagram) {
	from := unmapped(d.From)
	if !from.Addr().IsValid() || u.ipv4 && !from.Addr().Is4() {
		l.server.metrics.drop(dropSend) // an answer could not be sent from here
		return
	}
	key := sessionKey{peer: from.Addr().As16(), peerPort: from.Port(), scope: d.Scope}
	if d.Local.IsValid() {
		key.local = d.Local.As16()
	}
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(d.Payload)}}
	iov[0].SetLen(len(d.Payload))
	l.take(u, key, iov[:], len(d.Payload))
}

// take passes datagrams of one size, of which the last may be shorter, to their
// session, begun now if there is none. They are only valid during the call.
func (l *udpLoop) take(u *udpPort, key sessionKey, iovs []unix.Iovec, segment int) {
	m := u.mapping()
	if m != nil && m.ProxyProtocol.Accept && l.server.trusts(key.from().Addr()) {
		for i := range iovs {
			for p := range datagramsOf(&iovs[i], segment) {
				l.takeProxied(u, key, p, m)
			}
		}
		return
	}
	s := u.last
	if s == nil || s.key != key {
		if s = u.sessions[key]; s == nil {
			var why dropReason
			if s, why = l.begin(u, key, u.named(&key), m); s == nil {
				for i := range iovs {
					l.server.metrics.dropped[why].Add(float64(segments(int(iovs[i].Len), segment)))
				}
				return
			}
		}
		u.last = s
	}
	l.bringUp(s, iovs, segment)
}

// named returns a header that says of a session what its key does.
func (u *udpPort) named(key *sessionKey) upstream.ProxyHeader {
	return upstream.ProxyHeader{Src: key.from(), Dst: netip.AddrPortFrom(key.to(), u.number)}
}

// takeProxied is take for a datagram from a trusted proxy. Each has a header. One
// that names nobody, as health checks send it, leaves the addresses as they are.
func (l *udpLoop) takeProxied(u *udpPort, key sessionKey, p []byte, m *router.Mapping) {
	from, payload, err := upstream.SplitUDPProxyHeader(p)
	if err != nil {
		l.server.metrics.drop(dropHeader)
		return
	}
	if !from.Src.IsValid() {
		from = u.named(&key)
	}
	key.client, key.clientPort = from.Src.Addr().As16(), from.Src.Port()
	s := u.sessions[key]
	if s == nil {
		var why dropReason
		if s, why = l.begin(u, key, from, m); s == nil {
			l.server.metrics.drop(why)
			return
		}
	}
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(payload)}}
	iov[0].SetLen(len(payload))
	l.bringUp(s, iov[:], len(payload))
}

// begin makes a session if the mapping and the limits let it. from says whose it
// is; its TLVs go with every datagram to the backend.
func (l *udpLoop) begin(u *udpPort, key sessionKey, from upstream.ProxyHeader, m *router.Mapping) (*session, dropReason) {
	srv := l.server
	if m == nil || hasExpired(m, time.Now()) {
		return nil, dropUnmapped
	}
	if !router.Allowed(from.Src.Addr(), m.Allow, m.Deny) { // before anything is made for it
		srv.CountRefused(m)
		return nil, dropDenied
	}
	s := &session{port: u, key: key, fd: -1}
	s.flow = srv.newFlow(router.UDP, from.Src, from.Dst, mappingLabels(m))
	s.flow.tlvs = from.TLVs
	s.flow.session = s
	why := srv.link(s.flow, m)
	if why == live {
		if why = s.flow.admit(); why == live && !l.makeRoom(s) {
			why = limited
		}
		if why != live {
			s.flow.discard()
		}
	}
	if why != live {
		return nil, dropsFor[why]
	}
	u.running.Add(1)
	u.sessions[key] = s
	if u.restless != nil {
		u.restless.Stop()
	}
	l.start(s)
	return s, 0
}

// makeRoom counts s against the limits of the server, for which another session
// may have to go.
func (l *udpLoop) makeRoom(s *session) bool {
	victim, was, ok := l.server.udpCaps.take(s, &s.port.roster, s.flow.client.Addr())
	if victim != nil {
		l.server.metrics.evicted[was].Inc()
		victim.flow.stop(evicted, nil)
	}
	return ok
}

// dropsFor gives the reasons of link and admit as those of datagrams.
var dropsFor = map[end]dropReason{drained: dropUnmapped, deleted: dropUnmapped, denied: dropDenied, limited: dropLimit}

// discard takes a linked flow out again that never began.
func (f *flow) discard() {
	f.stop(limited, nil)
	f.server.unlink(f, time.Now())
	f.server.running.Done()
}

// forget takes s out of the table, unless a newer session has its place.
func (l *udpLoop) forget(s *session) {
	u := s.port
	if u.last == s {
		u.last = nil
	}
	if u.sessions[s.key] != s {
		return
	}
	delete(u.sessions, s.key)
	if len(u.sessions) > 0 || u.over {
		return
	}
	u.quiet = time.Now()
	if u.restless != nil {
		u.restless.Reset(u.options.Rest)
	}
	l.leaveIfWithdrawn(u)
}

// isQuiet reports whether the port has had no session for long enough to rest.
func (u *udpPort) isQuiet() bool {
	return len(u.sessions) == 0 && time.Since(u.quiet) >= u.options.Rest
}

// leaveIfWithdrawn ends the port if nobody wants it any more.
func (l *udpLoop) leaveIfWithdrawn(u *udpPort) {
	if u.withdrawn && !u.over && u != l.inHand && len(u.sessions) == 0 && u.isUnmapped() {
		l.finishPort(u, nil)
	}
}

// isUnmapped reports whether no new session can begin for want of a mapping.
func (u *udpPort) isUnmapped() bool {
	m := u.mapping()
	return m == nil || hasExpired(m, time.Now())
}

// closePort ends u and all its sessions, because of err if it is not nil.
func (l *udpLoop) closePort(u *udpPort, err error) {
	if u.over {
		return
	}
	l.finishPort(u, err)
	for _, s := range u.sessions {
		if err != nil {
			s.flow.stop(failed, err)
		} else {
			s.flow.stop(l.server.endOfPort(s.flow.mapping), nil)
		}
	}
}

// finishPort hands u back to ServeUDP, which waits for the sessions.
func (l *udpLoop) finishPort(u *udpPort, err error) {
	l.ignore(u)
	u.over = true
	if u.restless != nil {
		u.restless.Stop()
	}
	u.done <- err
}

// endOfPort returns why the sessions of m end when their port does.
func (s *Server) endOfPort(m *router.Mapping) end {
	if s.isDraining() {
		return drained
	}
	return withdrawnEnd(m)
}
