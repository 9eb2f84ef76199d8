package upstream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	headerTimeout = 10 * time.Second // where none is given

	// Lengths of the PROXY protocol's headers
	// (haproxy.org/download/3.4/doc/proxy-protocol.txt, section 2).
	maxV1     = 107     // with its end of line
	fixedV2   = 16      // signature, version, family and length
	maxRestV2 = 4 << 10 // addresses and type-length-values; a client certificate fits in
)

// WriteProxyHeader writes, at once, the PROXY header that tells the backend
// behind w of a TCP connection from src to dst. version is "v1" or "v2". Where
// one address is IPv4 and the other IPv6, both are sent as IPv6.
func WriteProxyHeader(w io.Writer, version string, src, dst netip.AddrPort) error {
	number := byte(2)
	switch version {
	case "v1":
		number = 1
	case "v2":
	default:
		return fmt.Errorf("write PROXY header: the version is %q, and must be v1 or v2", version)
	}
	if !src.IsValid() || !dst.IsValid() {
		return fmt.Errorf("write PROXY header: from %v to %v is not a connection", src, dst)
	}
	h := proxyproto.HeaderProxyFromAddrs(number, net.TCPAddrFromAddrPort(unmap(src)), net.TCPAddrFromAddrPort(unmap(dst)))
	if _, err := h.WriteTo(w); err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	return nil
}

// AppendUDPProxyHeader appends to b the PROXY header, version 2, of a datagram
// from src to dst. The datagram's payload belongs right behind it, and every
// datagram needs one (section 2 of the protocol).
func AppendUDPProxyHeader(b []byte, src, dst netip.AddrPort) ([]byte, error) {
	if !src.IsValid() || !dst.IsValid() {
		return nil, fmt.Errorf("make PROXY header: from %v to %v is no datagram's way", src, dst)
	}
	h := proxyproto.HeaderProxyFromAddrs(2, net.UDPAddrFromAddrPort(unmap(src)), net.UDPAddrFromAddrPort(unmap(dst)))
	raw, err := h.Format()
	if err != nil {
		return nil, fmt.Errorf("make PROXY header: %w", err)
	}
	return append(b, raw...), nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// ReadProxyHeader reads the PROXY header, version 1 or 2, that c must open with
// within timeout (0 means ten seconds), and returns the true client and the
// address that it connected to. Where the proxy speaks for itself (LOCAL or
// UNKNOWN, as for a health check), they are those of c.
//
// Believe it only of connections from proxies that are trusted: anybody can
// write such a header. What is not exactly one is an error, after which c is of
// no use but to be closed, by the caller.
//
// conn is c itself if nothing beyond the header was read, which is the rule
// with version 2; else it is a *ReplayConn. c's read deadline is none on return.
func ReadProxyHeader(c net.Conn, timeout time.Duration) (conn net.Conn, src, dst netip.AddrPort, err error) {
	if timeout <= 0 {
		timeout = headerTimeout
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, src, dst, fmt.Errorf("read PROXY header: %w", err)
	}
	header, rest, err := readHeader(c)
	if err == nil {
		src, dst, err = parseHeader(header, c)
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, netip.AddrPort{}, netip.AddrPort{}, fmt.Errorf("read PROXY header: %w", err)
	}
	if len(rest) > 0 {
		return &ReplayConn{Conn: c, rest: rest}, src, dst, nil
	}
	return c, src, dst, nil
}

// readHeader reads up to the header's end, and further only where that is not
// known in advance. go-proxyproto could read it by itself, but takes a version 1
// header only from one segment.
func readHeader(r io.Reader) (header, rest []byte, err error) {
	buf := make([]byte, 0, maxV1)
	for {
		size, known, err := headerSize(buf)
		switch {
		case err != nil:
			return nil, nil, err
		case known && len(buf) >= size:
			return buf[:size], buf[size:], nil
		case size > cap(buf):
			buf = append(make([]byte, 0, size), buf...)
		}
		n, err := r.Read(buf[len(buf):size])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, nil, fmt.Errorf("after %d bytes: %w", len(buf), inWords(err))
		}
	}
}

var errNoProxyHeader = errors.New("the connection does not open with one")

// headerSize returns the size of the header that p begins with, or, as long as
// that is not known, how many bytes there may be before it is. It refuses at the
// first byte that is wrong.
func headerSize(p []byte) (size int, known bool, err error) {
	v1, v2 := []byte("PROXY "), proxyproto.SIGV2
	switch {
	case len(p) == 0:
		return fixedV2, false, nil // version 1 is not much shorter: 15 bytes at least
	case bytes.HasPrefix(p, v1) || bytes.HasPrefix(v1, p):
		if end := bytes.IndexByte(p, '\n'); end >= 0 {
			return end + 1, true, nil
		}
		if len(p) >= maxV1 {
			return 0, false, fmt.Errorf("version 1 of it ends within %d bytes, and this does not", maxV1)
		}
		return maxV1, false, nil
	case len(p) < len(v2) && bytes.HasPrefix(v2, p):
		return fixedV2, false, nil
	case !bytes.HasPrefix(p, v2):
		return 0, false, errNoProxyHeader
	case len(p) < fixedV2:
		return fixedV2, false, nil
	}
	rest := int(binary.BigEndian.Uint16(p[fixedV2-2:]))
	if rest > maxRestV2 {
		return 0, false, fmt.Errorf("version 2 of it with %d bytes is more than %d", rest, maxRestV2)
	}
	return fixedV2 + rest, true, nil
}

// parseHeader reads a whole header that came in by c.
func parseHeader(header []byte, c net.Conn) (src, dst netip.AddrPort, err error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), len(header)))
	if err != nil {
		return src, dst, err
	}
	if h.Command.IsLocal() {
		return addrPortOf(c.RemoteAddr()), addrPortOf(c.LocalAddr()), nil
	}
	from, to, ok := h.TCPAddrs()
	if !ok {
		return src, dst, fmt.Errorf("it tells of no TCP connection (family and protocol %#02x)", byte(h.TransportProtocol))
	}
	return unmap(from.AddrPort()), unmap(to.AddrPort()), nil
}

// addrPortOf returns a TCP address, or the zero value for another.
func addrPortOf(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return unmap(tcp.AddrPort())
	}
	return netip.AddrPort{}
}

// ReplayConn is a connection of which more was read than was wanted. Read gives
// that first; all else goes to the connection beneath. Like any connection it
// takes one reader at a time.
type ReplayConn struct {
	net.Conn
	rest []byte
}

// Replay returns c with the bytes rest, which were read from it, put back.
func Replay(c net.Conn, rest []byte) *ReplayConn { return &ReplayConn{Conn: c, rest: rest} }

// Read reads what was read ahead, then from the connection beneath.
func (c *ReplayConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	if len(c.rest) == 0 {
		c.rest = nil
	}
	return n, nil
}

// TakeReplay returns what was read ahead and is not given again yet, which then
// is the caller's to pass on: from now on NetConn may be read in place of c.
func (c *ReplayConn) TakeReplay() []byte {
	rest := c.rest
	c.rest = nil
	return rest
}

// NetConn returns the connection beneath, a *net.TCPConn mostly, for splicing
// and half-closing. It does not give what TakeReplay has.
func (c *ReplayConn) NetConn() net.Conn { return c.Conn }
