package l4

import (
	"bytes"
	"net/netip"
	"os"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// UDPPort is what a process leaves of a UDP port to the one that takes over. Its
// files and those of its sessions belong to whoever has it.
type UDPPort struct {
	Number   int
	Socket   *os.File // that clients come to; nil where the other process has it already
	Sessions []UDPSession
	First    []Datagram // which have come and are still to be served
}

// Close closes all files of p.
func (p *UDPPort) Close() {
	p.CloseSocket()
	for i := range p.Sessions {
		p.Sessions[i].Socket.Close()
	}
}

// CloseSocket closes the socket, if there is one.
func (p *UDPPort) CloseSocket() {
	if p.Socket != nil {
		p.Socket.Close()
		p.Socket = nil
	}
}

// UDPSession is a session that goes on in another process.
type UDPSession struct {
	Peer    netip.AddrPort // who sends the datagrams, IPv4 as IPv4
	Scope   uint32         // the interface that Peer belongs to if it is link-local; 0: none
	Local   netip.Addr     // the address of this node that they come to; invalid: not known
	Proxied bool           // each has a PROXY header, which names Client
	Client  netip.AddrPort // whose session it is
	To      netip.AddrPort // where the client came to
	TLVs    []byte         // of the PROXY header

	Backend                   string // the target's name
	Address                   netip.AddrPort
	Header                    []byte // PROXY header of each datagram to the backend; nil: none
	Since                     time.Time
	Silent                    time.Duration // since the last datagram
	Up, Down, Datagrams       int64
	Answered, Confirmed, Join bool // the backend has answered; the client has gone on then; datagrams come joined

	Socket *os.File `json:"-"` // towards the backend
}

// surrender ends u in this process and leaves its sessions to another one.
func (l *udpLoop) surrender(u *udpPort) {
	if u.over {
		return
	}
	if u == l.inHand { // first it gets what was received for it
		u.leaves = true
		return
	}
	l.flush()
	l.ignore(u)
	left := &UDPPort{Number: int(u.number)}
	for _, s := range u.sessions {
		l.handOver(s, left)
	}
	u.left = left
	l.finishPort(u, nil)
}

// handOver takes s out of this process, as if it had never been here.
func (l *udpLoop) handOver(s *session, to *UDPPort) {
	if s.fd < 0 { // it has got nowhere yet, and begins anew
		for _, p := range s.waiting {
			to.First = append(to.First, Datagram{Payload: p, From: s.key.from(), Scope: s.key.scope, Local: s.key.to()})
		}
		s.waiting = nil
	} else {
		l.poll.Remove(s.fd) // closing would leave it watched: the other process has it open
		l.unwatch(s.slot)
		to.Sessions = append(to.Sessions, s.describe(l.tick))
		s.fd = -1
	}
	s.flow.silent.Store(true)
	s.flow.stop(drained, nil)
}

// describe says all there is to know of s, whose socket goes with it.
func (s *session) describe(tick uint32) UDPSession {
	f := s.flow
	name, _ := f.backendAt()
	f.mu.Lock()
	at := f.address
	f.mu.Unlock()
	return UDPSession{
		Peer: s.key.from(), Scope: s.key.scope, Local: s.key.to(), Proxied: s.key.client != [16]byte{}, Client: f.client, To: f.local, TLVs: []byte(f.tlvs),
		Backend: name, Address: at, Header: s.header, Since: f.since, Silent: time.Duration(tick-s.active) << udpTickBits,
		Up: f.up.Load(), Down: f.down.Load(), Datagrams: f.datagrams.Load(),
		Answered: s.standing > unanswered, Confirmed: s.standing == confirmed, Join: s.joins,
		Socket: os.NewFile(uintptr(s.fd), "session of udp"),
	}
}

// leaveTo gives what is left of u to whoever ServeUDP was told of.
func (u *udpPort) leaveTo(left *UDPPort) {
	if !u.options.Shared {
		if len(left.Sessions) > 0 {
			left.Socket, _ = listen.DuplicateFD(int(u.fd), u.name) // without it the other process says so
		} else {
			left.First = append(left.First, u.drainSocket()...)
		}
	}
	if len(left.Sessions)+len(left.First) == 0 {
		return
	}
	u.options.Left(*left)
}

// drainSocket returns the datagrams that wait in the socket.
func (u *udpPort) drainSocket() (left []Datagram) {
	for b := newBatch(); ; {
		n, errno := b.receive(u.fd, 0, batchSize, true)
		if errno != 0 { // mostly EAGAIN, that is none; and what cannot be read cannot be saved
			return left
		}
		for i := range n {
			key := b.key(i)
			b.trim(i)
			for p := range datagramsOf(&b.iovs[i], b.segment(i)) {
				left = append(left, Datagram{Payload: bytes.Clone(p), From: key.from(), Scope: key.scope, Local: key.to()})
			}
		}
	}
}

// resume goes on with a session of another process. What cannot be is closed.
func (l *udpLoop) resume(u *udpPort, from *UDPSession) {
	m := u.mapping()
	if m == nil || !router.Allowed(from.Client.Addr(), m.Allow, m.Deny) || u.ipv4 && !from.Peer.Addr().Is4() {
		from.Socket.Close()
		return
	}
	key := sessionKey{peer: from.Peer.Addr().As16(), peerPort: from.Peer.Port(), scope: from.Scope}
	if from.Local.IsValid() {
		key.local = from.Local.As16()
	}
	if from.Proxied {
		key.client, key.clientPort = from.Client.Addr().As16(), from.Client.Port()
	}
	s := &session{port: u, key: key, fd: -1, header: from.Header, joins: from.Join}
	f := l.server.newFlow(router.UDP, from.Client, from.To, mappingLabels(m))
	f.since, f.tlvs, f.session = from.Since, upstream.TLVs(from.TLVs), s
	s.flow = f
	if l.server.link(f, m) != live {
		from.Socket.Close()
		return
	}
	f.readmit()
	if !l.makeRoom(s) {
		from.Socket.Close()
		f.discard()
		return
	}
	l.goOn(s, from)
}
