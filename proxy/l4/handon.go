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
// and WriteTo would move bytes past the counters; who asks for that by NetConn,
// to make system calls of its own, calls Chunk, Count and Pace as well.
type handedConn struct {
	net.Conn
	tcp           *net.TCPConn
	flow          *flow
	client, local net.Addr
	peeked        []byte // read first; belongs to the reading goroutine
	closing       sync.Once
}

// NetConn returns the connection beneath.
func (c *handedConn) NetConn() net.Conn { return c.tcp }

// TakeReplay returns the bytes that Read would give before those of the
// connection beneath, and has it give them no more.
func (c *handedConn) TakeReplay() []byte {
	peeked := c.peeked
	c.peeked = nil
	c.Count(true, len(peeked))
	return peeked
}

// Chunk returns how many bytes, of at most most, the mapping's bandwidth lets move
// at once.
func (c *handedConn) Chunk(up bool, most int) int { return c.flow.at.Load().rate(up).chunk(most) }

// Count is told that n bytes have moved.
func (c *handedConn) Count(up bool, n int) {
	if up {
		c.flow.up.Add(int64(n))
	} else {
		c.flow.down.Add(int64(n))
	}
}

// Pace waits for as long as the mapping's bandwidth has it, once n bytes have
// moved.
func (c *handedConn) Pace(up bool, n int) { c.flow.at.Load().rate(up).pace(c.flow.ctx, n) }

// Read reads what the client sent, beginning with what was read ahead of it.
func (c *handedConn) Read(p []byte) (n int, err error) {
	p = p[:c.Chunk(true, len(p))]
	if len(c.peeked) > 0 {
		n = copy(p, c.peeked)
		c.peeked = c.peeked[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	c.Count(true, n)
	c.Pace(true, n)
	return n, err
}

// Write sends p, in portions where the mapping's bandwidth is limited.
func (c *handedConn) Write(p []byte) (written int, err error) {
	for {
		portion := p[written:][:c.Chunk(false, len(p)-written)]
		n, err := c.Conn.Write(portion)
		written += n
		c.Count(false, n)
		c.Pace(false, n)
		if err != nil || written == len(p) {
			return written, err
		}
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

// Unserved is told that no exchange came of the connection, because of err where
// that is known. The flow has a record of its own then: there is no other.
func (c *handedConn) Unserved(err error) {
	c.flow.unserved.Store(true)
	if err != nil {
		c.flow.conclude(failed, err)
	}
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
