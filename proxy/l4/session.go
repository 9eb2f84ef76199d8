package l4

import (
	"context"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// What a client may send before its session is connected to the backend, which
// takes as long as looking up a name does.
const (
	maxWaiting      = 8
	maxWaitingBytes = 16 << 10
)

// session is one client's datagrams to and from the backend. Its goroutine
// reads from the backend; what the client sends comes from the goroutine that
// receives for the port.
type session struct {
	port *udpPort
	key  sessionKey
	flow *flow

	// Where answers go to and what they come from, fixed.
	name    unix.RawSockaddrInet6
	nameLen uint32
	source  []byte

	mu           sync.Mutex // guards the following fields
	backend      syscall.RawConn
	header       []byte // PROXY header of each datagram to the backend
	waiting      [][]byte
	waitingBytes int
	out          []byte // being sent to the backend
	outErr       error
	sendOut      func(fd uintptr)

	// Of the session's goroutine.
	fill, sendWait func(fd uintptr) bool
	sendNow        func(fd uintptr)
	got            *batch
	n, sent        int
	err            error
}

// answerTo has answers go to the peer of key, from the address that it used.
func (s *session) answerTo(key sessionKey) {
	s.nameLen = putName(&s.name, key.peer, key.scope, s.port.ipv4)
	if key.local.IsValid() {
		s.source = listen.AppendSource(nil, key.local)
	}
}

// start runs the session on a goroutine of its own.
func (s *session) start() {
	s.sendOut = s.writeOut
	s.fill, s.sendWait = s.fillBatch, s.sendBatch
	s.sendNow = func(fd uintptr) { s.sendBatch(fd) }
	s.port.running.Go(s.run)
}

func (s *session) run() {
	defer s.end()
	if !s.connect() {
		return
	}
	for {
		if err := s.receive(); err != nil {
			s.broken(err)
			return
		}
		s.sendDown()
		batches.Put(s.got)
		s.got = nil
	}
}

func (s *session) end() {
	s.port.forget(s)
	s.port.server.udp.release(s.flow.client.Addr())
	s.flow.finish()
}

// connect opens a socket to the first target that has an address, and sends on
// what has come in for it meanwhile.
func (s *session) connect() bool {
	m := s.flow.mapping
	conn, endpoint, err := s.dial(m)
	if err != nil {
		s.flow.stop(connectFailed, err)
		return false
	}
	s.flow.setBackend(endpoint.String())
	if !s.flow.attach(conn) {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		s.flow.stop(failed, err)
		return false
	}
	var header []byte
	if m.ProxyProtocol.Send != "" {
		if header, err = upstream.AppendUDPProxyHeader(nil, s.flow.client, s.flow.local); err != nil {
			s.flow.stop(failed, err)
			return false
		}
	}
	idleTimeout := m.IdleTimeout
	if idleTimeout <= 0 {
		idleTimeout = defaultUDPIdle
	}
	s.flow.stopWhenIdle(idleTimeout)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backend, s.header = raw, header
	for _, p := range s.waiting {
		s.sendOutLocked(p)
	}
	s.waiting = nil
	return true
}

func (s *session) dial(m *router.Mapping) (conn *net.UDPConn, endpoint upstream.Endpoint, err error) {
	dialer := s.port.server.cfg.Dialer
	endpoints, err := dialer.Targets(m.Backend, &router.Vars{})
	for _, endpoint = range endpoints {
		ctx, cancel := context.WithTimeout(s.flow.ctx, m.EffectiveConnectTimeout())
		conn, err = dialer.DialUDP(ctx, endpoint)
		cancel()
		if err == nil {
			break
		}
	}
	return conn, endpoint, err
}

// sendUp passes a datagram of the client on. p is only valid during the call.
func (s *session) sendUp(p []byte) {
	if !s.flow.at.up.allow(len(p)) {
		s.port.server.metrics.drop(dropRate)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend != nil {
		s.sendOutLocked(p)
		return
	}
	if len(s.waiting) == maxWaiting || s.waitingBytes+len(p) > maxWaitingBytes && len(s.waiting) > 0 {
		s.port.server.metrics.drop(dropQueue)
		return
	}
	s.waiting = append(s.waiting, append([]byte(nil), p...))
	s.waitingBytes += len(p)
}

// sendOutLocked sends p to the backend without waiting: the goroutine that
// receives has other sessions to serve. s.mu is held.
func (s *session) sendOutLocked(p []byte) {
	s.out = p
	err := s.backend.Control(s.sendOut)
	s.out = nil
	if err == nil {
		err = s.outErr
	}
	switch err {
	case nil:
		s.flow.up.Add(int64(len(p)))
		s.flow.datagrams.Add(1)
	case syscall.ECONNREFUSED:
		s.broken(err)
	default:
		s.port.server.metrics.drop(dropSend)
	}
}

func (s *session) writeOut(fd uintptr) {
	_, s.outErr = ignoringEINTR(func() (int, error) {
		if s.header != nil {
			return unix.SendmsgBuffers(int(fd), [][]byte{s.header, s.out}, nil, nil, unix.MSG_DONTWAIT)
		}
		return unix.Write(int(fd), s.out) // the socket does not block
	})
}

// receive waits for datagrams from the backend and leaves them in s.got.
func (s *session) receive() error {
	// It was this goroutine that set s.backend, once, so no lock is needed.
	if err := s.backend.Read(s.fill); err != nil {
		return err
	}
	return s.err
}

// fillBatch is called by the poller when the backend may have answered.
func (s *session) fillBatch(fd uintptr) bool {
	b := batches.Get().(*batch)
	n, err := b.receive(fd, false)
	if err != nil {
		batches.Put(b)
		s.err = err
		return err != syscall.EAGAIN
	}
	s.got, s.n, s.err = b, n, nil
	return true
}

// sendDown passes the datagrams in s.got on to the client.
func (s *session) sendDown() {
	kept, bytes := 0, 0
	for i := range s.n {
		size := len(s.got.payload(i))
		if !s.flow.at.down.allow(size) {
			s.port.server.metrics.drop(dropRate)
			continue
		}
		s.got.keep(i, kept)
		s.got.address(kept, size, &s.name, s.nameLen, s.source)
		kept++
		bytes += size
	}
	s.n, s.sent = kept, 0
	if kept == 0 {
		return
	}
	// Sending needs no turn among the sessions of the port unless the socket's
	// buffer is full, and then they wait in line.
	if s.port.raw.Control(s.sendNow); s.sent < s.n {
		s.port.raw.Write(s.sendWait)
	}
	s.flow.down.Add(int64(bytes))
	s.flow.datagrams.Add(int64(kept))
}

// sendBatch is called by the poller when the port's socket may take more. What
// it refuses for another reason is dropped, as a router would.
func (s *session) sendBatch(fd uintptr) bool {
	for s.sent < s.n {
		n, err := s.got.send(fd, s.sent, s.n)
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil || n == 0:
			s.port.server.metrics.drop(dropSend)
			s.sent++
		default:
			s.sent += n
		}
	}
	return true
}

// broken ends the session for an error of its socket to the backend.
func (s *session) broken(err error) {
	switch {
	case err == syscall.ECONNREFUSED && s.flow.down.Load() == 0: // an ICMP port unreachable
		s.flow.stop(connectFailed, err)
	case err == syscall.ECONNREFUSED:
		s.flow.stop(backendReset, nil)
	default:
		s.flow.stop(failed, err)
	}
}
