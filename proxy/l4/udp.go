package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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

// udpPort is one socket and the sessions of its clients.
type udpPort struct {
	server  *Server
	raw     syscall.RawConn
	number  uint16
	mapping func() *router.Mapping
	running sync.WaitGroup // sessions

	// Of the receiving goroutine.
	fill func(fd uintptr) bool
	got  *batch
	n    int
	err  error

	mu       sync.Mutex // guards the following field
	sessions map[sessionKey]*session
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
// It returns nil once ctx has ended, with pc closed and every session over:
// without the socket there is no way to answer. So what on_delete keeps of a
// deleted mapping lasts only as long as its socket is left open. Any other
// return is an error of the socket.
func (s *Server) ServeUDP(ctx context.Context, pc *net.UDPConn, mapping func() *router.Mapping) error {
	defer pc.Close()
	raw, err := pc.SyscallConn()
	if err != nil {
		return fmt.Errorf("serve UDP on %v: %w", pc.LocalAddr(), err)
	}
	u := &udpPort{server: s, raw: raw, mapping: mapping, sessions: map[sessionKey]*session{}}
	u.number = addrPort(pc.LocalAddr()).Port()
	u.fill = u.fillBatch
	defer context.AfterFunc(ctx, func() { pc.SetReadDeadline(time.Unix(1, 0)) })()
	err = u.receive(ctx)
	u.stopSessions()
	u.running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve UDP on %v: %w", pc.LocalAddr(), err)
}

// receive takes datagrams in until the socket fails, which it also does when
// ctx ends.
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
			u.take(u.got, i)
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

// take passes datagram i of b to its session, begun now if there is none.
func (u *udpPort) take(b *batch, i int) {
	peer, scope := b.peer(i)
	key := sessionKey{peer: peer, scope: scope, local: listen.LocalAddr(b.control(i)).Unmap()}
	payload := b.payload(i)
	m := u.mapping()
	client, local := peer, netip.AddrPortFrom(key.local, u.number)
	if m != nil && m.ProxyProtocol.Accept && u.server.trusts(peer.Addr()) {
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
		s.answerTo(b, i)
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
	u.mu.Lock()
	u.sessions[key] = s
	u.mu.Unlock()
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
