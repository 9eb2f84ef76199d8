package api

import (
	"net"
	"net/netip"
	"sync"
)

// The bounds of an address that strangers can connect to: connections in all, and
// those of one client, who is an IPv4 address or a /64 of IPv6 addresses.
const (
	mostConns = 2000
	eachConns = 200
)

// Bounded returns ln with bounds on its connections: what comes beyond them is
// closed at once, so that whoever opens more and more of them neither takes the
// node's files away nor keeps others out. Closing it closes ln.
func Bounded(ln net.Listener) net.Listener {
	return &bounded{Listener: ln, most: mostConns, each: eachConns, by: map[netip.Prefix]int{}}
}

type bounded struct {
	net.Listener
	most, each int

	mu  sync.Mutex
	all int
	by  map[netip.Prefix]int // of each client
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := Client(c.RemoteAddr().String())
		if b.take(client) {
			return &boundedConn{Conn: c, release: sync.OnceFunc(func() { b.release(client) })}, nil
		}
		_ = c.Close() // it is nobody's any more
	}
}

func (b *bounded) take(client netip.Prefix) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= b.most || b.by[client] >= b.each {
		return false
	}
	b.all++
	b.by[client]++
	return true
}

func (b *bounded) release(client netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.by[client]--; b.by[client] == 0 {
		delete(b.by, client)
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// Client returns whose connections and requests are counted together: an IPv4
// address, or a /64 of IPv6 addresses, which is what one client has. addr is a
// remote address; of one that is none, such as a socket's, it is the zero value.
func Client(addr string) netip.Prefix {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Prefix{}
	}
	a := at.Addr().Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(a, bits).Masked()
}
