package l4

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// side is one of the two connections of a relay.
type side struct {
	conn net.Conn
	// raw is conn's socket where its bytes are the kernel's to move; nil where
	// they pass through code, such as TLS.
	raw syscall.RawConn
}

// unwrap takes a replaying wrapper off conn. The bytes that it still holds are
// appended to peeked.
func unwrap(conn net.Conn, peeked []byte) (net.Conn, []byte) {
	if replay, ok := conn.(*upstream.ReplayConn); ok {
		peeked = append(peeked[:len(peeked):len(peeked)], replay.TakeReplay()...)
		conn = replay.NetConn()
	}
	return conn, peeked
}

// newSide returns conn as a side of a relay.
func newSide(conn net.Conn) side {
	s := side{conn: conn}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	return s
}

// closeWrite sends a FIN, or what stands for one inside TLS. It reports whether
// the connection has such a thing.
func (s *side) closeWrite() bool {
	half, ok := s.conn.(interface{ CloseWrite() error })
	if ok {
		half.CloseWrite() // an error shows again where the connection is read
	}
	return ok
}

// unsent returns how many written bytes the peer has not yet acknowledged, 0
// where that cannot be known.
func (s *side) unsent() int {
	if s.raw == nil {
		return 0
	}
	n := 0
	s.raw.Control(func(fd uintptr) {
		if queued, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = queued
		}
	})
	return n
}

// reset closes c in such a way that its peer learns of an abort: with a TCP RST
// instead of a FIN. Layers above TCP are given no chance to say goodbye, which
// would be taken for an orderly end.
func reset(c net.Conn) {
	for {
		switch beneath := c.(type) {
		case *net.TCPConn:
			beneath.SetLinger(0)
			beneath.Close()
			return
		case interface{ NetConn() net.Conn }:
			c = beneath.NetConn()
		default:
			c.Close()
			return
		}
	}
}

// A reset overtakes what was written before it and not yet sent, so it waits
// for that as long as flushTime, looking every flushStep.
const (
	flushTime = time.Second
	flushStep = 5 * time.Millisecond
)

// flush waits until s has sent what was written to it, for a bounded time, or
// until done is closed.
func (s *side) flush(done <-chan struct{}) {
	if s.unsent() == 0 {
		return
	}
	deadline := time.NewTimer(flushTime)
	defer deadline.Stop()
	step := time.NewTicker(flushStep)
	defer step.Stop()
	for s.unsent() > 0 {
		select {
		case <-step.C:
		case <-deadline.C:
			return
		case <-done:
			return
		}
	}
}
