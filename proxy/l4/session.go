package l4

import (
	"cmp"
	"iter"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// What a client may send before its session is connected to the backend, which
// takes as long as looking up a name does.
const (
	maxWaiting      = 8
	maxWaitingBytes = 16 << 10
)

// session is one client's datagrams to and from the backend. It belongs to its
// port's loop.
type session struct {
	port *udpPort
	flow *flow
	key  sessionKey

	// Where answers go to and what they come from, fixed.
	name    unix.RawSockaddrInet6
	nameLen uint32
	source  []byte

	fd       int32 // towards the backend; -1: not connected
	slot     uint32
	standing standing
	begun    bool // it is served, and not only thought of
	ended    bool
	header   []byte // PROXY header of each datagram to the backend

	attempt      *upstream.Attempt // nil once the backend has answered
	seeking      bool              // a name is being looked up; attempt is out of hand
	waiting      [][]byte
	waitingBytes int

	idle   uint32 // ticks without a datagram after which it ends
	active uint32 // tick of the last one
	place  place

	// Rounds in a row in which the backend had sent something, up to lastRound:
	// while nobody waits for an answer before sending more, there are some.
	streak, lastRound uint32
	joins             bool // datagrams may come joined

	member membership // guarded by sessionCaps.mu
}

// bulk is a streak from which on datagrams are read by the batch.
const bulk = 3

// start looks for the backend of s, a new session.
func (l *udpLoop) start(s *session) {
	l.prepare(s)
	attempt, err := l.server.cfg.Dialer.AttemptUDP(s.flow.mapping.Backend, nil, s.flow.client.Addr())
	if err != nil {
		s.flow.stop(connectFailed, err)
		return
	}
	attempt.Timeout = s.flow.mapping.EffectiveConnectTimeout()
	s.attempt = &attempt
	l.seek(s)
}

// prepare has s know its client and its time.
func (l *udpLoop) prepare(s *session) {
	s.begun = true
	s.nameLen = s.key.putName(&s.name, s.port.ipv4)
	if local := s.key.to(); local.IsValid() {
		s.source = listen.AppendSource(nil, local)
	}
	timeout := s.flow.mapping.IdleTimeout
	if timeout <= 0 {
		timeout = defaultUDPIdle
	}
	s.idle = max(uint32(min((timeout+1<<udpTickBits-1)>>udpTickBits, 1<<30)), 1)
	s.active = l.tick
	l.wheel.enter(s, s.idle+1)
}

// goOn serves s, which began in another process, by its socket.
func (l *udpLoop) goOn(s *session, from *UDPSession) {
	u := s.port
	u.running.Add(1)
	u.sessions[s.key] = s
	l.prepare(s)
	s.active -= min(uint32(from.Silent>>udpTickBits), s.idle)
	s.flow.up.Store(from.Up)
	s.flow.down.Store(from.Down)
	s.flow.datagrams.Store(from.Datagrams)
	s.flow.setBackend(from.Backend, from.Address)
	for _, have := range []struct {
		is bool
		standing
	}{{from.Answered, unconfirmed}, {from.Confirmed, confirmed}} {
		if have.is {
			s.standing = have.standing
			l.server.udpCaps.rise(s, have.standing)
		}
	}
	fd, err := listen.TakeFD(from.Socket)
	if err == nil {
		s.fd = int32(fd)
		s.slot, err = l.watch(s.fd, udpSlot{session: s})
	}
	if err != nil {
		if s.fd >= 0 {
			event.CloseFD(s.fd)
			s.fd = -1
		}
		s.flow.stop(failed, err)
	}
}

// seek connects s to the first address of its backend that can be. Names that
// are not known yet are looked up elsewhere, and seek is called again.
func (l *udpLoop) seek(s *session) {
	for {
		addr, target, state := s.attempt.Next()
		switch state {
		case upstream.Exhausted:
			s.flow.stop(connectFailed, s.attempt.Err())
			return
		case upstream.Unresolved:
			s.seeking = true
			s.port.running.Go(func() {
				_ = s.attempt.Resolve(s.flow.begin()) // Next and Err know
				l.post(udpCommand{kind: cmdSeek, session: s})
			})
			return
		}
		err := l.connect(s, addr)
		if err == nil {
			l.connected(s, target, addr)
			return
		}
		s.attempt.Failed(0, err)
	}
}

// seekOn is called when the name that s is seeking was looked up.
func (l *udpLoop) seekOn(s *session) {
	s.seeking = false
	if s.ended {
		s.attempt.Done()
		return
	}
	l.seek(s)
}

// connect opens a socket to the backend at addr.
func (l *udpLoop) connect(s *session, addr netip.AddrPort) error {
	fd, err := l.server.cfg.Dialer.OpenUDP(addr)
	if err != nil {
		return err
	}
	slot, err := l.watch(int32(fd), udpSlot{session: s})
	if err != nil {
		event.CloseFD(int32(fd))
		return err
	}
	s.fd, s.slot = int32(fd), slot
	return nil
}

// connected sends on what the client has sent while its backend was sought.
func (l *udpLoop) connected(s *session, target upstream.Endpoint, addr netip.AddrPort) {
	s.flow.setBackend(target.String(), addr)
	if s.flow.mapping.ProxyProtocol.Send != "" {
		var err error
		if s.header, err = s.flow.proxyHeader().AppendUDP(nil); err != nil {
			s.flow.stop(failed, err)
			return
		}
	}
	for _, p := range s.waiting {
		l.sendUp(s, p)
	}
	s.waiting = nil
}

// due is called when s may have been idle for too long.
func (l *udpLoop) due(s *session) {
	if silent := l.tick - s.active; silent <= s.idle {
		l.wheel.enter(s, s.idle-silent+1)
	} else {
		s.flow.stop(idle, nil)
	}
}

// stopped is called when the session's flow was stopped, from any goroutine.
func (s *session) stopped() { s.port.loop.post(udpCommand{kind: cmdEnd, session: s}) }

// end takes s, whose flow was stopped, out of everything.
func (l *udpLoop) end(s *session) {
	if s.ended || !s.begun {
		return
	}
	s.ended = true
	l.flush() // an answer of its own may wait there
	l.wheel.leave(s)
	if s.fd >= 0 {
		event.CloseFD(s.fd)
		l.unwatch(s.slot)
		s.fd = -1
	}
	if s.attempt != nil && !s.seeking {
		s.attempt.Done()
	}
	l.server.udpCaps.release(s)
	l.forget(s)
	if len(s.waiting) > 0 && !s.port.over {
		l.succeed(s)
	}
	s.flow.finish()
	s.port.running.Done()
}

// succeed has a new session send what s could not, because the mapping got
// another backend before the old one was even found.
func (l *udpLoop) succeed(s *session) {
	s.flow.mu.Lock()
	why := s.flow.end
	s.flow.mu.Unlock()
	m := s.port.mapping()
	if why != deleted || m == nil || s.port.sessions[s.key] != nil {
		return
	}
	if next, _ := l.begin(s.port, s.key, s.flow.proxyHeader(), m); next != nil {
		for _, p := range s.waiting {
			l.bringOneUp(next, p)
		}
	}
}

// bringUp passes on what the client has sent: datagrams of the given size, of
// which the last may be shorter. They are only valid during the call.
func (l *udpLoop) bringUp(s *session, iovs []unix.Iovec, segment int) {
	s.active = l.tick
	if s.standing == unconfirmed {
		s.standing = confirmed
		l.server.udpCaps.rise(s, confirmed)
	}
	if l.sendJoined(s, iovs, segment) {
		return
	}
	for i := range iovs {
		for p := range datagramsOf(&iovs[i], segment) {
			l.bringOneUp(s, p)
		}
	}
}

// datagramsOf gives the datagrams in iov, each of the given size but for the
// last.
func datagramsOf(iov *unix.Iovec, segment int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for p := unsafe.Slice(iov.Base, iov.Len); ; {
			one := p[:min(segment, len(p))]
			p = p[len(one):]
			if !yield(one) || len(p) == 0 {
				return
			}
		}
	}
}

// bringOneUp passes a datagram on, or keeps it until the backend is found.
func (l *udpLoop) bringOneUp(s *session, p []byte) {
	switch {
	case !s.flow.at.Load().up.allow(len(p)):
		l.server.metrics.drop(dropRate)
	case s.fd >= 0:
		l.sendUp(s, p)
	case len(s.waiting) == maxWaiting || s.waitingBytes+len(p) > maxWaitingBytes && len(s.waiting) > 0:
		l.server.metrics.drop(dropQueue)
	default:
		s.waiting = append(s.waiting, append([]byte(nil), p...))
		s.waitingBytes += len(p)
	}
}

// sendJoined sends several datagrams to the backend by one call. It reports
// false where they have to be sent one by one.
func (l *udpLoop) sendJoined(s *session, iovs []unix.Iovec, segment int) bool {
	size := 0
	for i := range iovs {
		size += int(iovs[i].Len)
	}
	if size <= segment || s.fd < 0 || s.header != nil || s.flow.at.Load().up.limited() {
		return false
	}
	var control [segmentControl]byte
	hdr := unix.Msghdr{Iov: &iovs[0], Control: &control[0]}
	hdr.SetIovlen(len(iovs))
	hdr.SetControllen(len(appendSegment(control[:0], segment)))
	errno := sendmsg(s.fd, &hdr)
	if refusesJoined(errno) {
		return false
	}
	l.sentUp(s, size, segments(size, segment), errno)
	return true
}

// segments returns how many datagrams of a size n bytes are.
func segments(n, size int) int {
	if n <= size {
		return 1
	}
	return (n + size - 1) / size
}

// sendUp sends p to the backend.
func (l *udpLoop) sendUp(s *session, p []byte) {
	var errno syscall.Errno
	if s.header == nil {
		_, errno = event.Send(s.fd, p)
	} else {
		errno = sendBoth(s.fd, s.header, p)
	}
	l.sentUp(s, len(p), 1, errno)
}

func (l *udpLoop) sentUp(s *session, bytes, datagrams int, errno syscall.Errno) {
	switch errno {
	case 0:
		s.flow.up.Add(int64(bytes))
		s.flow.datagrams.Add(int64(datagrams))
	case unix.ECONNREFUSED:
		s.broken(errno)
	default:
		l.server.metrics.dropped[dropSend].Add(float64(datagrams))
	}
}

// sendBoth sends a and b as one datagram.
func sendBoth(fd int32, a, b []byte) syscall.Errno {
	iovs := [2]unix.Iovec{{Base: unsafe.SliceData(a)}, {Base: unsafe.SliceData(b)}}
	iovs[0].SetLen(len(a))
	iovs[1].SetLen(len(b))
	hdr := unix.Msghdr{Iov: &iovs[0]}
	hdr.SetIovlen(2)
	return sendmsg(fd, &hdr)
}

// bringDown takes what the backend has sent and has it sent to the client: one
// datagram, or, where there have been some each time, as many as there are.
func (l *udpLoop) bringDown(s *session) {
	if s.lastRound+1 == l.round {
		s.streak++
	} else {
		s.streak = 0
	}
	s.lastRound = l.round
	if l.waiting == batchSize || l.outPort != s.port {
		l.flush()
	}
	first, n := l.waiting, 1
	var errno syscall.Errno
	if s.streak >= bulk && !s.joins {
		// From here on what the kernel can join comes joined.
		s.joins = joinDatagrams(s.fd)
		listen.GrowBuffers(int(s.fd))
	}
	switch {
	case s.streak >= bulk:
		n, errno = l.out.receive(s.fd, first, batchSize-first, false)
	case s.joins:
		n, errno = l.out.receive(s.fd, first, 1, false)
	default:
		errno = l.out.receiveOne(s.fd, first)
	}
	switch errno {
	case 0:
	case unix.EAGAIN:
		return
	default:
		s.broken(errno)
		return
	}
	s.active = l.tick
	if s.standing == unanswered {
		s.standing = unconfirmed
		l.server.udpCaps.rise(s, unconfirmed)
		if s.attempt != nil { // else another process has made it
			s.attempt.Connected(0)
			s.flow.lease, s.attempt = s.attempt.Lease(), nil
		}
	}
	l.outPort = s.port
	for i := first; i < first+n; i++ {
		l.answer(s, i)
	}
}

// joinDatagrams has datagrams come joined, as batch.segment knows. It reports
// whether the kernel can.
func joinDatagrams(fd int32) bool {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
}

// answer has what place i of l.out has received sent to the client of s.
func (l *udpLoop) answer(s *session, i int) {
	size, segment := len(l.out.payload(i)), l.out.segment(i)
	if !s.flow.at.Load().down.allow(size) {
		l.server.metrics.dropped[dropRate].Add(float64(segments(size, segment)))
		return
	}
	l.out.keep(i, l.waiting)
	l.out.iovs[l.waiting].SetLen(size)
	l.outOf[l.waiting] = reply{s, size, segment}
	l.waiting++
}

// broken ends the session for an error of its socket to the backend.
func (s *session) broken(err error) {
	switch {
	case s.attempt != nil: // most likely an ICMP port unreachable
		s.attempt.Failed(0, err)
		s.flow.stop(connectFailed, cmp.Or(s.attempt.Err(), err))
	case err == unix.ECONNREFUSED:
		s.flow.stop(backendReset, nil)
	default:
		s.flow.stop(failed, err)
	}
}
