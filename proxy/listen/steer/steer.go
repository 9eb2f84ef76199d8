package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

// Proto is a transport protocol.
type Proto uint8

// The protocols whose ports can be steered.
const (
	TCP Proto = iota
	UDP
)

func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Config says how to open a Steerer. The zero value is one TCP listener.
type Config struct {
	// Listeners is how many TCP listeners share the connections, each of which
	// goes to one of them by its addresses; 0 means 1.
	Listeners int
	// Inherited are the files of another Steerer, which Files returned, in a
	// process before this one: the same sockets go on, and connections that
	// wait to be accepted are not lost. Open takes none of the ports over: Add
	// them, and they come by this Steerer. The files stay the caller's.
	Inherited []*os.File
}

// Steerer is a socket set and the ports that are steered to it. Its methods may
// be called from any goroutine.
type Steerer struct {
	tcp []*net.TCPListener
	udp *net.UDPConn
	own map[uint32]bool // the inodes of those sockets

	mu     sync.Mutex // guards the following fields
	kernel *kernel    // nil: closed
	// files are the same sockets once more, for Files: who serves a listener
	// may have taken it apart.
	files []*os.File
}

// ErrClosed is what methods of a closed Steerer return.
var ErrClosed = errors.New("steer: the steerer is closed")

// Open opens the sockets and attaches the program, with no port steered yet.
// The error says what is missing, as that of Supported does.
func Open(cfg Config) (*Steerer, error) {
	s := &Steerer{own: map[uint32]bool{}}
	if err := s.open(cfg); err != nil {
		return nil, errors.Join(explain(err), s.Close())
	}
	return s, nil
}

func (s *Steerer) open(cfg Config) error {
	if err := s.inherit(cfg.Inherited); err != nil {
		return err
	}
	for len(s.tcp) < max(1, cfg.Listeners) {
		port := 0
		if len(s.tcp) > 0 {
			port = s.tcp[0].Addr().(*net.TCPAddr).Port
		}
		ln, err := openTCP(port)
		if err != nil {
			return err
		}
		s.tcp = append(s.tcp, ln)
	}
	if s.udp == nil {
		pc, err := openUDP()
		if err != nil {
			return err
		}
		s.udp = pc
	}
	if err := s.register(s.udp); err != nil {
		return err
	}
	for _, ln := range s.tcp {
		if err := s.register(ln); err != nil {
			return err
		}
	}
	return listen.WithFD(s.tcp[0], func(tcp int) error {
		return listen.WithFD(s.udp, func(udp int) (err error) {
			s.kernel, err = attach([numProtos]int{TCP: tcp, UDP: udp})
			return err
		})
	})
}

// register notes one of the Steerer's sockets.
func (s *Steerer) register(c interface {
	File() (*os.File, error)
	syscall.Conn
}) error {
	inode, err := inodeOf(c)
	if err != nil {
		return err
	}
	s.own[inode] = true
	f, err := c.File()
	if err == nil {
		s.files = append(s.files, f)
	}
	return err
}

func (s *Steerer) inherit(files []*os.File) error {
	for _, f := range files {
		kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return fmt.Errorf("inherit %s: %w", f.Name(), os.NewSyscallError("getsockopt", err))
		}
		if kind == unix.SOCK_DGRAM {
			if s.udp != nil {
				return fmt.Errorf("inherit %s: there is a UDP socket already", f.Name())
			}
			s.udp, err = listen.UDPConn(f)
		} else {
			var ln *net.TCPListener
			if ln, err = tcpListener(f); err == nil {
				s.tcp = append(s.tcp, ln)
			}
		}
		if err != nil {
			return fmt.Errorf("inherit %s: %w", f.Name(), err)
		}
	}
	return nil
}

// TCP returns the listeners that connections to steered TCP ports come to. The
// local address of a connection is the one that the client used. Close closes
// them; whoever serves them may do so before.
func (s *Steerer) TCP() []*net.TCPListener { return s.tcp }

// UDP returns the socket that datagrams to steered UDP ports come to. What is
// read from it with control messages tells where it was sent, by Destination.
// It belongs to the Steerer, and is not to be answered through.
func (s *Steerer) UDP() *net.UDPConn { return s.udp }

// Files returns duplicates of the sockets, for Config.Inherited of a process
// that takes over. The caller closes them.
func (s *Steerer) Files() ([]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel == nil {
		return nil, ErrClosed
	}
	var files []*os.File
	for _, of := range s.files {
		f, err := listen.Duplicate(of, of.Name())
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Steered reports whether a port is steered.
func (s *Steerer) Steered(proto Proto, port int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kernel != nil && s.steered(proto, port)
}

// steered needs s.mu and a kernel.
func (s *Steerer) steered(proto Proto, port int) bool {
	word, bit := s.kernel.word(proto, port)
	return atomic.LoadUint32(word)&bit != 0
}

// set steers the port, or ceases to. s.mu is held, and there is a kernel.
func (s *Steerer) set(proto Proto, port int, on bool) {
	word, bit := s.kernel.word(proto, port)
	if on {
		atomic.OrUint32(word, bit)
	} else {
		atomic.AndUint32(word, ^bit)
	}
}

// Remove ceases to steer ports: from here on they refuse, unless another
// program listens there. Connections that have come already are still to be
// accepted. Ports that are not steered are left as they are.
func (s *Steerer) Remove(proto Proto, ports ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel == nil {
		return
	}
	for _, port := range ports {
		s.set(proto, port, false)
	}
}

// Bind gives a steered UDP port a socket of its own, which is the caller's:
// from here on its datagrams come there, and those that were under way can
// still come to the common socket. Unbind takes it back, or Release ends it.
//
// The socket is one of listen.UDP. Where another program has the port at some
// address, be it to listen or to speak from it, the socket is one that merely
// works like that; its own address is nobody's. What comes from the peer that a
// socket of another program is connected to goes to that as ever. Where another
// program has the port at all addresses, the error is a *listen.BusyError.
func (s *Steerer) Bind(ctx context.Context, port int) (*net.UDPConn, error) {
	addr := ":" + strconv.Itoa(port)
	open := listen.UDP
	if port == s.udp.LocalAddr().(*net.UDPAddr).Port {
		open = listen.SharedUDP // the common socket has that number
	}
	pc, err := open(ctx, addr)
	isAside := false
	if errors.Is(err, syscall.EADDRINUSE) {
		if other, asideErr := openAside(port); asideErr == nil {
			pc, err, isAside = other, nil, true
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel == nil {
		return nil, errors.Join(ErrClosed, pc.Close())
	}
	if isAside {
		if err := s.putAside(port, pc); err != nil {
			return nil, errors.Join(err, pc.Close())
		}
	}
	s.set(UDP, port, false)
	return pc, nil
}

// Unbind has the datagrams of a port that Bind gave a socket come to the common
// socket again. Nobody asks who else listens there: hardly anybody can, while
// that socket is open. So call it first, and then close the socket.
func (s *Steerer) Unbind(port int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel != nil {
		s.set(UDP, port, true)
		s.release(port)
	}
}

// Release forgets the socket that Bind gave a port, which is closed or about to
// be, and does not steer the port again.
func (s *Steerer) Release(port int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel != nil {
		s.release(port)
	}
}

// release needs s.mu and a kernel.
func (s *Steerer) release(port int) {
	if s.steered(aside, port) {
		s.set(aside, port, false)
		_ = s.kernel.asides.Delete(uint32(port)) // a closed socket has left by itself
	}
}

// Adopt is Bind for a socket that Bind gave the port in a process before this one,
// and that goes on. It owns f.
func (s *Steerer) Adopt(port int, f *os.File) (*net.UDPConn, error) {
	pc, err := listen.AdoptUDP(f)
	if err != nil {
		return nil, fmt.Errorf("take over the socket of udp :%d: %w", port, err)
	}
	inode, err := inodeOf(pc)
	if err != nil {
		return nil, errors.Join(err, pc.Close())
	}
	bound := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel == nil {
		return nil, errors.Join(ErrClosed, pc.Close())
	}
	if bound.Addr().Unmap() == netip.AddrFrom4(asideOf) {
		if err := s.putAside(port, pc); err != nil {
			return nil, errors.Join(err, pc.Close())
		}
	}
	s.own[inode] = true
	s.set(UDP, port, false)
	return pc, nil
}

// putAside has the program send what comes to a UDP port to pc. s.mu is held, and
// there is a kernel.
func (s *Steerer) putAside(port int, pc *net.UDPConn) error {
	if err := listen.WithFD(pc, func(fd int) error { return s.kernel.asides.Put(uint32(port), uint64(fd)) }); err != nil {
		return fmt.Errorf("steer udp :%d to a socket of its own: %w", port, err)
	}
	s.set(aside, port, true)
	return nil
}

// Close takes the program away and closes the sockets. Connections that were
// accepted go on, and the sockets as far as another process has them.
func (s *Steerer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.kernel != nil {
		errs = append(errs, s.kernel.detach())
		s.kernel = nil
	}
	for _, ln := range s.tcp {
		errs = append(errs, ignoreClosed(ln.Close()))
	}
	if s.udp != nil {
		errs = append(errs, ignoreClosed(s.udp.Close()))
	}
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
