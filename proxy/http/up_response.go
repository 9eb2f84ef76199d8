package http

import (
	"bytes"
	"errors"
	"io"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

// readHead reads heads up to the final one, and passes informational ones on.
func (c *call) readHead() error {
	toHead := c.x.req.method == "HEAD"
	for {
		if c.w > 0 {
			complete, err := c.resp.Parse(c.in[:c.w], toHead)
			if err != nil {
				return err
			}
			if complete && (c.resp.Status >= 200 || c.resp.Status == 101) {
				c.r = c.resp.Size()
				return nil
			}
			if complete {
				if err := c.inform(); err != nil {
					return err
				}
				continue
			}
		}
		if err := c.more(); err != nil {
			return err
		}
	}
}

// more reads on behind what is in c.in, which grows up to the largest head.
func (c *call) more() error {
	if c.w == len(c.in) {
		if c.w >= maxResponseHead {
			return errLargeHead
		}
		grown := make([]byte, 2*len(c.in))
		copy(grown, c.in)
		c.in = grown
		c.resp.Reset(&c.fields) // its strings lie in the old buffer
	}
	n, err := c.u.Read(c.in[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == io.EOF && c.w > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

var errLargeHead = errors.New("the response head is too large")

// inform passes the informational head on that was just read. 100 (Continue) is
// the codec's: it sends one when the body is first read.
func (c *call) inform() error {
	if c.hints++; c.hints > maxInformed {
		return errTooManyHints
	}
	if status := c.resp.Status; status != 100 {
		dropFields(&c.fields, isAdvertising)
		c.fields.DelID(field.ContentLength)
		c.x.tries.informed = true
		c.x.down.inform(status, &c.fields)
	}
	c.w = copy(c.in, c.in[c.resp.Size():c.w])
	c.resp.Reset(&c.fields)
	return nil
}

// failure says why the backend's side failed by err. Where the client's body
// failed first, that was why.
func (c *call) failure(err error) *failure {
	if c.x.life.abandoned() == nil {
		if failed := c.x.bodyFailure(); failed != nil {
			return failed
		}
	}
	return c.x.failureOf(err)
}

// relay sends the response on.
func (c *call) relay() *failure {
	x := c.x
	promised := c.fields.GetID(field.Trailer)
	x.down.header().Take(&c.fields)
	x.relayHead(c.resp.Status, promised)
	c.left = c.resp.Length
	switch c.resp.Length {
	case 0:
		if x.req.method == "HEAD" && !x.down.header().Has(field.ContentLength) {
			// A codec that is asked for nothing more would say that there is no
			// content, which nobody knows.
			if err := x.down.flush(); err != nil {
				return x.clientGone(err)
			}
		}
		return nil
	case h1.Chunked:
		c.chunks.Reset()
		return c.relayChunks()
	default:
		return c.relayBytes()
	}
}

// relayBytes passes on a body that is the bytes themselves, as they come.
func (c *call) relayBytes() *failure {
	endless := c.left == h1.UntilEnd
	if endless && c.r == c.w {
		// Nothing says when the first byte will come, and the client may be
		// waiting for the head.
		if err := c.x.down.flush(); err != nil {
			return c.x.clientGone(err)
		}
	}
	for {
		if c.r == c.w {
			switch err := c.fill(); {
			case err == io.EOF && endless:
				return nil
			case err != nil:
				return c.failure(noEOF(err))
			}
		}
		part := c.in[c.r:c.w]
		if !endless && int64(len(part)) > c.left {
			part = part[:c.left]
		}
		c.r += len(part)
		if err := c.x.write(part); err != nil {
			return c.x.clientGone(err)
		}
		if !endless {
			if c.left -= int64(len(part)); c.left == 0 {
				return nil // the last part goes out with the exchange's end
			}
		}
		if err := c.x.down.flush(); err != nil {
			return c.x.clientGone(err)
		}
	}
}

// relayChunks passes on the content of a chunked body, as it comes.
func (c *call) relayChunks() *failure {
	for {
		content, used, err := c.chunks.Next(c.in[c.r:c.w])
		c.r += used
		if err != nil {
			return c.failure(err)
		}
		if len(content) > 0 {
			if err := c.x.write(content); err != nil {
				return c.x.clientGone(err)
			}
			continue
		}
		if c.chunks.Done() {
			c.relayTrailer()
			return nil
		}
		if err := c.x.down.flush(); err != nil {
			return c.x.clientGone(err)
		}
		if err := c.fill(); err != nil {
			return c.failure(noEOF(err))
		}
	}
}

func (c *call) relayTrailer() {
	for _, l := range c.chunks.Trailer.Lines() {
		if field.MayTrail(l.Name) {
			c.x.down.trailer(l.Name, l.Value)
		}
	}
}

// fill reads on behind what is left of the body. A body that fills the buffer
// gets a larger one.
func (c *call) fill() error {
	if c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	if c.bulk == nil && (c.full || c.w == len(c.in)) {
		c.bulk = bulkBuffers.Get().(*[]byte)
		copy(*c.bulk, c.in[:c.w])
		c.in = *c.bulk
	}
	n, err := c.u.Read(c.in[c.w:])
	c.w += n
	c.full = c.w == len(c.in)
	if n > 0 {
		return nil
	}
	return err
}

// noEOF makes an end that comes too early the error that it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// change joins the client's connection with the backend's after 101 (Switching
// Protocols).
func (c *call) change() *failure {
	x := c.x
	if x.req.upgrade == "" {
		err := errors.New("the backend changed protocols without being asked to")
		return &failure{class: endProtocol, status: 502, say: "the backend's answer is not well formed\n", err: err}
	}
	h := x.down.header()
	h.Take(&c.fields)
	protocol := h.GetID(field.Upgrade)
	dropFields(h, isAdvertising)
	x.editResponse(true)
	h.DelID(field.ContentLength)
	h.AddID(field.Connection, "Upgrade")
	h.AddID(field.Upgrade, protocol)
	x.noteHead(101)
	down, err := x.down.upgrade()
	if err != nil {
		return x.clientGone(err)
	}
	// From here on it is the tunnel that watches for the end of either side.
	x.life.detach()
	up := &changed{u: c.u, early: bytes.Clone(c.in[c.r:c.w])}
	if c.u.tls != nil {
		up.spare = make([]byte, tlsWait)
	}
	c.in, c.r, c.w, c.head = nil, 0, 0, nil // a tunnel may last
	c.fields = field.List{}
	c.resp.Reset(&c.fields)
	if client, ok := down.(*h1Upgraded); ok {
		if failed, taken := x.handOver(client, up); taken {
			return failed
		}
	}
	return x.tunnel(x.life.context(), down, up)
}

// changed is a backend's connection after the change of protocols. It may be
// closed once more when the exchange is over.
type changed struct {
	u     *upConn
	early []byte // what came right behind the head
	spare []byte // over TLS
}

// ReadLent is lentReader's.
func (t *changed) ReadLent(l lender) (int, error) {
	switch {
	case len(t.early) > 0:
		return t.Read(l.lend())
	case t.u.tls != nil:
		return readLentTLS(t.u.tls, t.u.raw, t.spare, l)
	}
	return t.u.raw.ReadLent(l)
}

func (t *changed) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		n := copy(p, t.early)
		t.early = t.early[n:]
		return n, nil
	}
	return t.u.Read(p)
}

func (t *changed) Write(p []byte) (int, error) { return t.u.Write(p) }
func (t *changed) CloseWrite() error           { return t.u.closeWrite() }
func (t *changed) Close() error                { return t.u.raw.tcp.Close() }
