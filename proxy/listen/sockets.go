package listen

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a socket in the network namespace of this process, its own or
// another's.
type Socket struct {
	Local netip.AddrPort // IPv4 as IPv4; an unspecified address takes them all
	Inode uint32         // tells sockets apart
}

// Receivers returns the sockets that take what is addressed to nobody else: the
// listeners for "tcp", for "udp" those that are not connected. It costs little
// however many connections there are.
func Receivers(network string) ([]Socket, error) {
	states := uint32(1 << stateListen)
	if network == "udp" {
		states = 1 << stateClose
	}
	return sockets(network, states)
}

// The states of sockets that are of interest here, as in Linux's net/tcp_states.h.
const (
	stateClose  = 7
	stateListen = 10
	anyState    = ^uint32(0)
)

// sockets lists the sockets in the given states, a mask of bits.
func sockets(network string, states uint32) ([]Socket, error) {
	var all []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		some, err := diagnose(network, family, states)
		if err != nil {
			// The kernel module for it is not there, or not for this process.
			return listed(network, states)
		}
		all = append(all, some...)
	}
	return all, nil
}

// Messages of sock_diag(7), struct inet_diag_sockid, inet_diag_req_v2 and
// inet_diag_msg.
type (
	diagSocket struct {
		localPort, peerPort [2]byte
		local, peer         [16]byte
		device              uint32
		cookie              [2]uint32
	}
	diagRequest struct {
		family, protocol, extensions, _ uint8
		states                          uint32
		socket                          diagSocket
	}
	diagAnswer struct {
		family, state, timer, retransmits        uint8
		socket                                   diagSocket
		expires, receiveQueue, sendQueue, _, ino uint32
	}
)

// sockDiagByFamily is SOCK_DIAG_BY_FAMILY.
const sockDiagByFamily = 20

// diagnose asks the kernel for the sockets of one family.
func diagnose(network string, family uint8, states uint32) ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	type message struct {
		header  unix.NlMsghdr
		request diagRequest
	}
	m := message{
		header:  unix.NlMsghdr{Type: sockDiagByFamily, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP},
		request: diagRequest{family: family, protocol: unix.IPPROTO_TCP, states: states},
	}
	if network == "udp" {
		m.request.protocol = unix.IPPROTO_UDP
	}
	m.header.Len = uint32(unsafe.Sizeof(m))
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m))
	if err := unix.Sendto(fd, bytes, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	var found []Socket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		}
		more, done, err := parseDiag(buf[:n])
		found = append(found, more...)
		if done || err != nil {
			return found, err
		}
	}
}

var errDiag = errors.New("an answer of sock_diag cannot be read")

// parseDiag reads one packet of an answer; done says that it was the last.
func parseDiag(b []byte) (found []Socket, done bool, err error) {
	const headerSize = unix.SizeofNlMsghdr
	for len(b) >= headerSize {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if size < headerSize || size > len(b) {
			return nil, false, errDiag
		}
		body := b[headerSize:size]
		b = b[min(len(b), (size+3)&^3):]
		switch {
		case kind == unix.NLMSG_DONE:
			return found, true, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			return nil, false, os.NewSyscallError("sock_diag", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case kind != sockDiagByFamily || len(body) < int(unsafe.Sizeof(diagAnswer{})):
			return nil, false, errDiag
		}
		var a diagAnswer
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)), body)
		addr := netip.AddrFrom16(a.socket.local).Unmap()
		if a.family == unix.AF_INET {
			addr = netip.AddrFrom4([4]byte(a.socket.local[:4]))
		}
		found = append(found, Socket{netip.AddrPortFrom(addr, binary.BigEndian.Uint16(a.socket.localPort[:])), a.ino})
	}
	return found, false, nil
}

// listed reads the sockets from /proc/net, where each is a line of text.
func listed(network string, states uint32) ([]Socket, error) {
	var all []Socket
	for _, family := range []string{"", "6"} {
		some, err := listedIn("/proc/net/"+network+family, states)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // without IPv6 there is no such table
			return nil, fmt.Errorf("list the %s sockets: %w", network, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func listedIn(table string, states uint32) ([]Socket, error) {
	f, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []Socket
	lines := bufio.NewScanner(f)
	lines.Scan() // headings
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		local, ok := parseLocal(fields[1])
		state, err := strconv.ParseUint(fields[3], 16, 5)
		inode, ierr := strconv.ParseUint(fields[9], 10, 32)
		if ok && err == nil && ierr == nil && states&(1<<state) != 0 {
			found = append(found, Socket{local, uint32(inode)})
		}
	}
	return found, lines.Err()
}

// parseLocal reads 0100007F:0016, the words of the address in the byte order of
// the machine.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, text, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	port, err := strconv.ParseUint(text, 16, 16)
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok && err == nil
}
