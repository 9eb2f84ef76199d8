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

// V1 lines of TCP6 may have plain IPv4 addresses. The protocol has no such lines
// and HAProxy takes none, but nginx writes them where the client came by IPv4 and
// the address it came to is IPv6, and there is only one way to read them.
func init() { proxyproto.V1AcceptIPv4InTCP6 = true }

// ProxyHeader is what a PROXY header says of a connection or a datagram.
type ProxyHeader struct {
	// Src is the client and Dst what it connected to, IPv4 as IPv4. Both are
	// invalid where the sender speaks for itself (LOCAL or UNKNOWN, as for a
	// health check).
	Src, Dst netip.AddrPort
	// TLVs is what version 2 says besides; "" for nothing.
	TLVs TLVs
}

// WriteProxyHeader writes, at once, h as the PROXY header of a TCP connection.
// version is "v1", which has no room for TLVs, or "v2". Where one address is IPv4
// and the other IPv6, both are sent as IPv6.
func WriteProxyHeader(w io.Writer, version string, h ProxyHeader) error {
	raw, err := h.Append(nil, version)
	if err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	if _, err := w.Write(raw); err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	return nil
}

// Append appends to b what WriteProxyHeader writes.
func (h ProxyHeader) Append(b []byte, version string) ([]byte, error) {
	number := byte(2)
	switch version {
	case "v1":
		number = 1
	case "v2":
	default:
		return b, fmt.Errorf("the version is %q, and must be v1 or v2", version)
	}
	if !h.Src.IsValid() || !h.Dst.IsValid() {
		return b, fmt.Errorf("from %v to %v is not a connection", h.Src, h.Dst)
	}
	return h.format(b, proxyproto.HeaderProxyFromAddrs(number, net.TCPAddrFromAddrPort(unmap(h.Src)), net.TCPAddrFromAddrPort(unmap(h.Dst))))
}

// AppendUDP appends to b the PROXY header, version 2, of a datagram. The
// datagram's payload belongs right behind it, and every datagram needs one
// (section 2 of the protocol).
func (h ProxyHeader) AppendUDP(b []byte) ([]byte, error) {
	if !h.Src.IsValid() || !h.Dst.IsValid() {
		return b, fmt.Errorf("make PROXY header: from %v to %v is no datagram's way", h.Src, h.Dst)
	}
	return h.format(b, proxyproto.HeaderProxyFromAddrs(2, net.UDPAddrFromAddrPort(unmap(h.Src)), net.UDPAddrFromAddrPort(unmap(h.Dst))))
}

func (h ProxyHeader) format(b []byte, header *proxyproto.Header) ([]byte, error) {
	raw, err := header.Format()
	if err != nil {
		return b, err
	}
	start := len(b)
	b = append(b, raw...)
	if header.Version == 2 && len(h.TLVs) > 0 {
		b = append(b, h.TLVs...)
		length := b[start+fixedV2-2 : start+fixedV2]
		binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+uint16(len(h.TLVs)))
	}
	return b, nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// ReadProxyHeader reads the PROXY header, version 1 or 2, that c must open with
// within timeout (0 means ten seconds). Where the proxy speaks for itself, the
// addresses in h are those of c.
//
// Believe it only of connections from proxies that are trusted: anybody can
// write such a header. What is not exactly one is an error, after which c is of
// no use but to be closed, by the caller.
//
// conn is c itself if nothing beyond the header was read, which is the rule
// with version 2; else it is a *ReplayConn. c's read deadline is none on return.
func ReadProxyHeader(c net.Conn, timeout time.Duration) (conn net.Conn, h ProxyHeader, err error) {
	if timeout <= 0 {
		timeout = headerTimeout
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, h, fmt.Errorf("read PROXY header: %w", err)
	}
	header, rest, err := readHeader(c)
	if err == nil {
		h, err = parseHeader(header)
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, ProxyHeader{}, fmt.Errorf("read PROXY header: %w", err)
	}
	if !h.Src.IsValid() {
		h.Src, h.Dst = addrPortOf(c.RemoteAddr()), addrPortOf(c.LocalAddr())
	}
	if len(rest) > 0 {
		return &ReplayConn{Conn: c, rest: rest}, h, nil
	}
	return c, h, nil
}

// ParseProxyHeader is ReadProxyHeader for who reads by himself: p is what has
// come so far. With a size of at most len(p) the header is whole, and the rest of
// p is the client's own. Otherwise more is needed, and reading up to size bytes
// in all reads nothing beyond the header, as far as it can tell.
func ParseProxyHeader(p []byte) (h ProxyHeader, size int, err error) {
	size, known, err := headerSize(p)
	switch {
	case err != nil:
		return h, 0, fmt.Errorf("read PROXY header: %w", err)
	case !known || size > len(p):
		return h, max(size, len(p)+1), nil
	}
	if h, err = parseHeader(p[:size]); err != nil {
		return ProxyHeader{}, 0, fmt.Errorf("read PROXY header: %w", err)
	}
	return h, size, nil
}

// SplitUDPProxyHeader takes the PROXY header off a datagram. The payload is a
// part of p, the header is not.
func SplitUDPProxyHeader(p []byte) (h ProxyHeader, payload []byte, err error) {
	header, payload, err := proxyproto.ParseUDPDatagram(p)
	if err != nil {
		return h, nil, fmt.Errorf("read PROXY header of a datagram: %w", err)
	}
	if header.Version != 2 {
		return h, nil, errors.New("read PROXY header of a datagram: version 1 cannot describe UDP")
	}
	if h.TLVs, err = parseTLVs(p[:len(p)-len(payload)], header); err != nil {
		return ProxyHeader{}, nil, fmt.Errorf("read PROXY header of a datagram: %w", err)
	}
	if header.Command.IsLocal() {
		return h, payload, nil
	}
	from, to, ok := header.UDPAddrs()
	if !ok {
		return ProxyHeader{}, nil, fmt.Errorf("read PROXY header of a datagram: it tells of no UDP (family and protocol %#02x)", byte(header.TransportProtocol))
	}
	h.Src, h.Dst = unmap(from.AddrPort()), unmap(to.AddrPort())
	return h, payload, nil
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

// parseHeader reads a whole header of a TCP connection.
func parseHeader(raw []byte) (h ProxyHeader, err error) {
	header, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)))
	if err != nil {
		return h, err
	}
	if header.Version == 2 {
		if h.TLVs, err = parseTLVs(raw, header); err != nil {
			return ProxyHeader{}, err
		}
	}
	if header.Command.IsLocal() {
		return h, nil
	}
	from, to, ok := header.TCPAddrs()
	if !ok {
		return ProxyHeader{}, fmt.Errorf("it tells of no TCP connection (family and protocol %#02x)", byte(header.TransportProtocol))
	}
	h.Src, h.Dst = unmap(from.AddrPort()), unmap(to.AddrPort())
	return h, nil
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
