package http

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A UDP socket that several processes of a node have is read by the youngest of
// them alone, which passes on to the others what is theirs: packets with a
// connection id that one of them gave out, by its tag, and those of handshakes
// that it had begun, whose ids are the clients' choice, by these. A packet goes by
// a pair of datagram sockets, with who sent it and the control messages that came
// with it in front. Each process sends through the shared socket by itself.

// QUICElder is a process that has connections on a UDP socket which another one
// reads.
type QUICElder struct {
	Local string    // the address that the socket is bound to
	Tag   uint32    // of the connection ids that the process gave out
	IDs   [][]byte  // that clients chose in handshakes of late
	Until time.Time // when those are forgotten
	// Socket is where its packets are sent. It belongs to whoever has the
	// QUICElder.
	Socket *os.File `json:"-"`
}

// handshakeMemory is for how long an id that a client chose leads to the process
// that saw it first: longer than a handshake may take.
const handshakeMemory = 10 * time.Second

// maxRecent bounds the ids that are remembered.
const maxRecent = 4096

// sharedUDP is a UDP socket as quic-go has it, which may be other processes', too.
type sharedUDP struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	tag   uint32

	elders  []*elder      // fixed
	relay   *net.UnixConn // where packets come from once another process reads; set before relayed
	relayed atomic.Bool   // it does
	moved   chan struct{} // closed when this process reads the UDP socket no more
	over    atomic.Bool   // nothing is to be read any more
	dropped atomic.Int64  // packets that an elder did not take
	recent  recentIDs     // of handshakes
	scratch []byte        // of who reads
}

// elder is a QUICElder at work.
type elder struct {
	QUICElder
	conn *net.UnixConn
	ids  map[string]bool // nil: forgotten
}

// recentIDs are the ids that clients chose of late, in a ring.
type recentIDs struct {
	mu   sync.Mutex
	ring []recentID
	next int
}

type recentID struct {
	id   [20]byte
	size uint8
	at   time.Time
}

// shareUDP wraps pc, and owns the sockets of the elders.
func shareUDP(pc *net.UDPConn, tag uint32, elders []QUICElder) (*sharedUDP, error) {
	c := &sharedUDP{UDPConn: pc, batch: ipv4.NewPacketConn(pc), tag: tag, moved: make(chan struct{})}
	for _, of := range elders {
		conn, err := datagrams(of.Socket)
		if err != nil {
			c.closeElders()
			return nil, fmt.Errorf("pass on packets of an older process: %w", err)
		}
		e := &elder{QUICElder: of, conn: conn, ids: map[string]bool{}}
		for _, id := range of.IDs {
			e.ids[string(id)] = true
		}
		c.elders = append(c.elders, e)
	}
	return c, nil
}

func (c *sharedUDP) closeElders() {
	for _, e := range c.elders {
		e.conn.Close()
	}
	if c.relay != nil {
		c.relay.Close()
	}
}

// datagrams takes f, an end of a pair of datagram sockets, which it closes.
func datagrams(f *os.File) (*net.UnixConn, error) {
	if f == nil {
		return nil, errors.New("it came without its socket")
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("its socket is not one of unix(7)")
	}
	return u, nil
}

// ReadBatch is what quic-go reads by.
func (c *sharedUDP) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		if c.over.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		if c.relayed.Load() {
			select {
			case <-c.moved:
			default:
				close(c.moved)
			}
			return c.readRelayed(ms)
		}
		n, err := c.batch.ReadBatch(ms, flags)
		if err != nil {
			if c.relayed.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			return n, err
		}
		if n = c.sort(ms[:n]); n > 0 {
			return n, nil
		}
	}
}

// SetReadDeadline is how quic-go ends the reading.
func (c *sharedUDP) SetReadDeadline(t time.Time) error {
	c.over.Store(!t.IsZero())
	err := c.UDPConn.SetReadDeadline(t)
	if c.relayed.Load() {
		err = errors.Join(err, c.relay.SetReadDeadline(t))
	}
	return err
}

// sort passes on packets that are an elder's, and returns how many are left, which
// come first then.
func (c *sharedUDP) sort(ms []ipv4.Message) (left int) {
	for i := range ms {
		id, chosen := destination(ms[i].Buffers[0][:ms[i].N])
		if e := c.whose(id, chosen); e != nil {
			c.pass(e, &ms[i])
			continue
		}
		if chosen && !c.ours(id) {
			c.recent.note(id)
		}
		if left < i { // the buffers belong to their places
			to, from := &ms[left], &ms[i]
			to.N = copy(to.Buffers[0], from.Buffers[0][:from.N])
			to.NN = copy(to.OOB, from.OOB[:from.NN])
			to.Addr, to.Flags = from.Addr, from.Flags
		}
		left++
	}
	return left
}

func (c *sharedUDP) ours(id []byte) bool {
	return len(id) == quicIDBytes && binary.BigEndian.Uint32(id) == c.tag
}

// whose returns the elder that a packet is for, nil for nobody else.
func (c *sharedUDP) whose(id []byte, chosen bool) *elder {
	if len(c.elders) == 0 || len(id) < quicTagBytes {
		return nil
	}
	tag := binary.BigEndian.Uint32(id)
	for _, e := range c.elders {
		if len(id) == quicIDBytes && e.Tag == tag {
			return e
		}
		if chosen && e.ids != nil {
			if time.Now().After(e.Until) {
				e.ids = nil
			} else if e.ids[string(id)] {
				return e
			}
		}
	}
	return nil
}

// destination returns the connection id that a packet is sent to, nil where it has
// none that could be ours, and whether it may be one that the client chose (RFC
// 8999): in packets with a long header.
func destination(p []byte) (id []byte, chosen bool) {
	switch {
	case len(p) < 1+quicIDBytes:
		return nil, false
	case p[0]&0x80 == 0:
		return p[1 : 1+quicIDBytes], false
	}
	size := int(p[5])
	if size > 20 || len(p) < 6+size {
		return nil, false
	}
	return p[6 : 6+size], true
}

// note remembers an id.
func (r *recentIDs) note(id []byte) {
	if len(id) < 8 || len(id) > 20 { // RFC 9000 section 7.2
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if len(r.ring) > 0 {
		last := &r.ring[(r.next+len(r.ring)-1)%len(r.ring)]
		if string(last.id[:last.size]) == string(id) {
			return
		}
	}
	is := recentID{size: uint8(len(id)), at: now}
	copy(is.id[:], id)
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, is)
		return
	}
	r.ring[r.next] = is
	r.next = (r.next + 1) % maxRecent
}

// all returns the ids that are not too old.
func (r *recentIDs) all() (ids [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.ring {
		if time.Since(r.ring[i].at) < handshakeMemory {
			ids = append(ids, append([]byte(nil), r.ring[i].id[:r.ring[i].size]...))
		}
	}
	return ids
}

// The head of a packet that is passed on: address, port, and the sizes of zone and
// control messages, which follow.
const passedHead = 16 + 2 + 1 + 1

// pass sends a packet to an elder. One that takes none loses it, as on the wire.
func (c *sharedUDP) pass(e *elder, m *ipv4.Message) {
	from, ok := m.Addr.(*net.UDPAddr)
	if !ok {
		return
	}
	b := c.scratch[:0]
	at := from.AddrPort().Addr().As16()
	b = append(b, at[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(from.Port))
	b = append(b, uint8(len(from.Zone)), uint8(m.NN))
	b = append(b, from.Zone...)
	b = append(b, m.OOB[:m.NN]...)
	b = append(b, m.Buffers[0][:m.N]...)
	c.scratch = b
	if sendNow(e.conn, b) != nil {
		c.dropped.Add(1)
	}
}

// sendNow sends without waiting.
func sendNow(to *net.UnixConn, b []byte) error {
	raw, err := to.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	}); cerr != nil {
		return cerr
	}
	return err
}

// readRelayed reads a packet that another process has passed on.
func (c *sharedUDP) readRelayed(ms []ipv4.Message) (int, error) {
	if c.scratch == nil || cap(c.scratch) < 4096 {
		c.scratch = make([]byte, 4096)
	}
	b := c.scratch[:cap(c.scratch)]
	for {
		n, err := c.relay.Read(b)
		if errors.Is(err, io.EOF) {
			continue // an empty packet, by which somebody saw that this process is there
		}
		if err != nil {
			return 0, err
		}
		if unpass(b[:n], &ms[0]) {
			return 1, nil
		}
	}
}

// unpass fills m with a packet that was passed on.
func unpass(b []byte, m *ipv4.Message) bool {
	if len(b) < passedHead {
		return false
	}
	at := netip.AddrFrom16([16]byte(b)).Unmap()
	port, zone, control := binary.BigEndian.Uint16(b[16:]), int(b[18]), int(b[19])
	b = b[passedHead:]
	if len(b) < zone+control || control > len(m.OOB) || len(b)-zone-control > len(m.Buffers[0]) {
		return false
	}
	if zone > 0 {
		at = at.WithZone(string(b[:zone]))
	}
	m.Addr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port))
	m.NN = copy(m.OOB, b[zone:zone+control])
	m.N = copy(m.Buffers[0], b[zone+control:])
	m.Flags = 0
	return true
}

// relayBuffer is what may wait for this process where another one passes packets
// on, in bytes: as much as its own socket would hold.
const relayBuffer = 7 << 20

// leave has another process read the socket. It returns what that has to know of
// this process, and of those before it.
func (c *sharedUDP) leave() (all []QUICElder, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "packets of an older process")
	// It is the sender's buffer that bounds what waits.
	if unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, relayBuffer) != nil {
		_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, relayBuffer)
	}
	if c.relay, err = datagrams(os.NewFile(uintptr(fds[0]), "packets from a younger process")); err != nil {
		theirs.Close()
		return nil, err
	}
	c.relayed.Store(true)
	c.UDPConn.SetReadDeadline(time.Unix(1, 0))
	if !c.over.Load() {
		<-c.moved
	}
	all = append(all, QUICElder{
		Local: c.LocalAddr().String(), Tag: c.tag, IDs: c.recent.all(), Until: time.Now().Add(handshakeMemory), Socket: theirs,
	})
	for _, e := range c.elders {
		if errors.Is(sendNow(e.conn, nil), unix.ECONNREFUSED) {
			continue // it has ended; one that has not passes an empty packet over
		}
		f, err := e.conn.File()
		if err != nil {
			continue // its packets are lost, and its connections with them
		}
		of := e.QUICElder
		of.Socket = f
		all = append(all, of)
	}
	return all, nil
}
