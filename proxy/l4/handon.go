package l4

import (
	"net"
	"sync"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// handOn gives the connection to Config.HTTP and returns when that does. The
// flow stays in the list of its port, where the mapping's limits count it and
// Withdraw finds it, until the connection is closed.
func (f *flow) handOn(c *net.TCPConn, peeked []byte, tls bool) {
	f.handed.Store(true)
	f.server.running.Done() // its new owner waits for it
	f.server.cfg.HTTP(&handedConn{
		Conn: c, tcp: c, flow: f, peeked: peeked,
		client: net.TCPAddrFromAddrPort(f.client), local: net.TCPAddrFromAddrPort(f.local),
	}, f.mapping, tls)
}

// handedConn is a connection handed to Config.HTTP. It counts what passes,
// keeps to the mapping's bandwidth and reports the addresses that a PROXY
// header named. It does not show that a *net.TCPConn is beneath, whose ReadFrom
// and WriteTo would move bytes past the counters.
type handedConn struct {
	net.Conn
	tcp           *net.TCPConn
	flow          *flow
	client, local net.Addr
	peeked        []byte // read first; belongs to the reading goroutine
	closing       sync.Once
}

// Read reads what the client sent, beginning with what was read ahead of it.
func (c *handedConn) Read(p []byte) (n int, err error) {
	rate := &c.flow.at.Load().up
	p = p[:rate.chunk(len(p))]
	if len(c.peeked) > 0 {
		n = copy(p, c.peeked)
		c.peeked = c.peeked[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	c.flow.up.Add(int64(n))
	rate.pace(c.flow.ctx, n)
	return n, err
}

// Write sends p, in portions where the mapping's bandwidth is limited.
func (c *handedConn) Write(p []byte) (written int, err error) {
	rate := &c.flow.at.Load().down
	for {
		portion := p[written:][:rate.chunk(len(p)-written)]
		n, err := c.Conn.Write(portion)
		written += n
		c.flow.down.Add(int64(n))
		if err != nil || written == len(p) {
			rate.pace(c.flow.ctx, n)
			return written, err
		}
		rate.pace(c.flow.ctx, n)
	}
}

// CloseWrite sends a FIN and leaves the reading side open.
func (c *handedConn) CloseWrite() error { return c.tcp.CloseWrite() }

// Close closes the connection and takes it out of its mapping's list. More than
// one call is harmless.
func (c *handedConn) Close() error {
	err := c.Conn.Close()
	c.closing.Do(func() {
		c.flow.close(clientClosed) // nobody asks why: its requests were logged
		c.flow.finish()
	})
	return err
}

// ProxyTLVs returns what the PROXY header that named the client says besides.
func (c *handedConn) ProxyTLVs() upstream.TLVs { return c.flow.tlvs }

// CutBy says why the node ended the connection, as the access log has it; ""
// where it did not.
func (c *handedConn) CutBy() string {
	c.flow.mu.Lock()
	defer c.flow.mu.Unlock()
	if !c.flow.stopped || c.flow.end == clientClosed {
		return ""
	}
	return c.flow.end.String()
}

// RemoteAddr returns the client's address.
func (c *handedConn) RemoteAddr() net.Addr { return c.client }

// LocalAddr returns the address that the client came to.
func (c *handedConn) LocalAddr() net.Addr { return c.local }
