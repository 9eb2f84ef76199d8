package l4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/remotegpu/sluice/proxy/listen"
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
	// Resting is called, from within ServeUDP, when Rest has passed, and has new
	// datagrams come elsewhere from the moment it returns. nil: they cannot.
	Resting func()
}

// udpPort is one socket and the sessions of its clients.
type udpPort struct {
	server  *Server
	conn    *net.UDPConn
	raw     syscall.RawConn
	number  uint16
	ipv4    bool // it is a socket of AF_INET
	mapping func() *router.Mapping
	rest    time.Duration
	running sync.WaitGroup // sessions

	// Of the receiving goroutine.
	fill func(fd uintptr) bool
	got  *batch
	n    int
	err  error

	mu       sync.Mutex // guards the following fields
	sessions map[sessionKey]*session
	restless *time.Timer // runs out when the port has rested; nil: never
}

// sessionKey tells sessions apart: by the client's address, by the address of
// ours that it wrote to, and by whom a PROXY header says it speaks for.
type sessionKey struct {
	peer   netip.AddrPort
	scope  uint32
	local  netip.Addr
	client netip.AddrPort
}

// ServeUDP serves the sessions of the clients that send to pc, a socket of
// listen.UDP, and owns it. New sessions are served by what mapping returns when
// they begin; nil refuses them. Each has a socket of its own towards the
// backend and a goroutine that reads from it, and answers come from the very
// address that the client wrote to.
//
// It returns a nil error once ctx has ended, with pc closed and every session
// over: without the socket there is no way to answer. So what on_delete keeps of
// a deleted mapping lasts only as long as its socket is left open. It also does
// so when there was no session for o.Rest; left are then the datagrams that had
// come to pc before o.Resting took effect, in order, to be served elsewhere: by
// another ServeUDP, as its First. Any other return is an error of the socket.
func (s *Server) ServeUDP(ctx context.Context, pc *net.UDPConn, mapping func() *router.Mapping, o UDPOptions) (left []Datagram, err error) {
	defer pc.Close()
	raw, err := pc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("serve UDP on %v: %w", pc.LocalAddr(), err)
	}
	u := &udpPort{server: s, conn: pc, raw: raw, mapping: mapping, rest: o.Rest, sessions: map[sessionKey]*session{}}
	local := pc.LocalAddr().(*net.UDPAddr)
	u.number, u.ipv4 = uint16(local.Port), local.IP.To4() != nil
	u.fill = u.fillBatch
	defer context.AfterFunc(ctx, u.interrupt)()
	u.takeFirst(o.First)
	if u.rest > 0 {
		u.mu.Lock()
		u.restless = time.AfterFunc(u.rest, u.interrupt)
		u.mu.Unlock()
		defer u.restless.Stop()
	}
	for {
		err = u.receive(ctx)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		rested := u.hasRested()
		if ctx.Err() != nil { // looked at after hasRested, which undoes interrupt
			break
		}
		if rested {
			return u.retire(ctx, o.Resting)
		}
	}
	u.stopSessions()
	u.running.Wait()
	if ctx.Err() != nil {
		return nil, nil
	}
	return nil, fmt.Errorf("serve UDP on %v: %w", pc.LocalAddr(), err)
}

// interrupt has receive fail with os.ErrDeadlineExceeded.
func (u *udpPort) interrupt() { u.conn.SetReadDeadline(time.Unix(1, 0)) }

// hasRested reports whether the port has no session, when the time for that is
// up. If it has, one that has begun since, it undoes interrupt.
func (u *udpPort) hasRested() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.sessions) > 0 {
		u.conn.SetReadDeadline(time.Time{})
		return false
	}
	return true
}

// takeFirst serves datagrams that came elsewhere.
func (u *udpPort) takeFirst(first []Datagram) {
	for _, d := range first {
		from := unmapped(d.From)
		if !from.Addr().IsValid() || u.ipv4 && !from.Addr().Is4() {
			u.server.metrics.drop(dropSend) // an answer could not be sent from here
			continue
		}
		u.take(d.Payload, sessionKey{peer: from, scope: d.Scope, local: d.Local.Unmap()})
	}
}

// settleTime is how long a datagram whose socket the kernel has looked up may
// take until it is queued there: it is under way on another processor.
const settleTime = 10 * time.Millisecond

// retire returns what is left in the socket, after resting has turned the
// stream of datagrams away from it.
func (u *udpPort) retire(ctx context.Context, resting func()) (left []Datagram, err error) {
	u.running.Wait() // sessions that are in the table no more
	if resting != nil {
		resting()
		select {
		case <-ctx.Done():
		case <-time.After(settleTime):
		}
	}
	b := batches.Get().(*batch)
	defer batches.Put(b)
	cerr := u.raw.Control(func(fd uintptr) {
		for {
			n, err := b.receive(fd, true)
			if err != nil { // mostly EAGAIN, that is none; and what cannot be read cannot be saved
				return
			}
			for i := range n {
				key := u.keyOf(b, i)
				left = append(left, Datagram{Payload: bytes.Clone(b.payload(i)), From: key.peer, Scope: key.scope, Local: key.local})
			}
		}
	})
	if cerr != nil {
		return nil, fmt.Errorf("empty the UDP socket on %v: %w", u.conn.LocalAddr(), cerr)
	}
	return left, nil
}

// receive takes datagrams in until the socket fails, which it also does when
// it is interrupted.
func (u *udpPort) receive(ctx context.Context) error {
	for {
		if err := u.raw.Read(u.fill); err != nil {
			return err
		}
		switch u.err {
		case nil:
		case syscall.ENOMEM, syscall.ENOBUFS:
			u.server.cfg.Logger.Warn("the kernel has no memory for datagrams; trying again", "port", u.number, "err", u.err)
			select {
			case <-ctx.Done():
			case <-time.After(receiveRest):
			}
			continue
		default:
			return u.err
		}
		for i := range u.n {
			u.take(u.got.payload(i), u.keyOf(u.got, i))
		}
		batches.Put(u.got)
		u.got = nil
	}
}

// fillBatch is called by the poller when the socket may be readable.
func (u *udpPort) fillBatch(fd uintptr) bool {
	b := batches.Get().(*batch)
	n, err := b.receive(fd, true)
	if err != nil {
		batches.Put(b)
		u.err = err
		return err != syscall.EAGAIN
	}
	u.got, u.n, u.err = b, n, nil
	return true
}

// keyOf returns which session datagram i of b belongs to, so far as the
// kernel can tell.
func (u *udpPort) keyOf(b *batch, i int) sessionKey {
	peer, scope := b.peer(i)
	return sessionKey{peer: peer, scope: scope, local: listen.LocalAddr(b.control(i)).Unmap()}
}

// take passes a datagram to its session, begun now if there is none. payload is
// only valid during the call.
func (u *udpPort) take(payload []byte, key sessionKey) {
	m := u.mapping()
	client, local := key.peer, netip.AddrPortFrom(key.local, u.number)
	if m != nil && m.ProxyProtocol.Accept && u.server.trusts(key.peer.Addr()) {
		var err error
		if payload, client, local, err = splitHeader(payload, client, local); err != nil {
			u.server.metrics.drop(dropHeader)
			return
		}
		key.client = client
	}
	u.mu.Lock()
	s := u.sessions[key]
	u.mu.Unlock()
	if s == nil || s.flow.isStopped() {
		var why dropReason
		if s, why = u.begin(key, client, local, m); s == nil {
			u.server.metrics.drop(why)
			return
		}
		s.start()
	}
	s.sendUp(payload)
}

// splitHeader takes the PROXY header off a datagram from a trusted proxy. Every
// datagram has one (PROXY protocol 2.2, section 2). A header that names nobody,
// as health checks send it, leaves the addresses as they are.
func splitHeader(p []byte, client, local netip.AddrPort) (payload []byte, src, dst netip.AddrPort, err error) {
	header, payload, err := proxyproto.ParseUDPDatagram(p)
	if err != nil {
		return nil, client, local, err
	}
	from, to, ok := header.UDPAddrs()
	if header.Command.IsLocal() || !ok {
		return payload, client, local, nil
	}
	return payload, addrPort(from), addrPort(to), nil
}

// begin makes a session if the mapping and the limits let it.
func (u *udpPort) begin(key sessionKey, client, local netip.AddrPort, m *router.Mapping) (*session, dropReason) {
	srv, now := u.server, time.Now()
	if m == nil || hasExpired(m, now) {
		return nil, dropUnmapped
	}
	if !router.Allowed(client.Addr(), m.Allow, m.Deny) { // before anything is made for it
		return nil, dropDenied
	}
	if !srv.udp.take(client.Addr()) {
		return nil, dropLimit
	}
	f := srv.newFlow(router.UDP, client, local, mappingLabels(m))
	why := srv.link(f, m)
	if why == live {
		if why = f.at.admit(f); why != live {
			f.discard()
		}
	}
	if why != live {
		f.cancel()
		srv.udp.release(client.Addr())
		return nil, dropsFor[why]
	}
	s := &session{port: u, key: key, flow: f}
	s.answerTo(key)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sessions[key] = s
	if u.restless != nil {
		u.restless.Stop()
	}
	return s, 0
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
func (u *udpPort) forget(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions[s.key] == s {
		delete(u.sessions, s.key)
	}
	if u.restless != nil && len(u.sessions) == 0 {
		u.restless.Reset(u.rest)
	}
}

// stopSessions ends all sessions, because the socket is no longer served.
func (u *udpPort) stopSessions() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.sessions {
		s.flow.stop(u.server.withdrawnOrDrained(s.flow.mapping), nil)
	}
}

func (s *Server) withdrawnOrDrained(m *router.Mapping) end {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.draining {
		return drained
	}
	return withdrawnEnd(m)
}

// sessionCaps bounds UDP sessions, all together and by client address.
type sessionCaps struct {
	total, perClient int // fixed

	mu       sync.Mutex // guards the following fields
	open     int
	byClient map[netip.Addr]int
}

// take counts a session of client, unless that is one too many.
func (c *sessionCaps) take(client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.total || c.byClient[client] >= c.perClient {
		return false
	}
	if c.byClient == nil {
		c.byClient = map[netip.Addr]int{}
	}
	c.open++
	c.byClient[client]++
	return true
}

// release takes back what take counted.
func (c *sessionCaps) release(client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.byClient[client]--; c.byClient[client] == 0 {
		delete(c.byClient, client)
	}
}
