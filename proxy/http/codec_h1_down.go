package http

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
	"github.com/remotegpu/sluice/router"
)

// h1Down answers a request over HTTP/1.1.
type h1Down struct {
	c        *h1Conn
	fields   field.List // of the final head
	trailers field.List
	out      []byte // gathered and not sent

	headed   bool // the final head is in out, or sent
	chunked  bool
	endless  bool // only the connection's end marks the body's
	bodiless bool
	keep     bool // the connection goes on
	aborted  bool
	upgraded bool
	err      error // of sending

	mu    sync.Mutex // guards final, and sending until it is set
	final bool       // the final head is being made
}

func (d *h1Down) reset(c *h1Conn) {
	d.c = c
	d.fields.Reset()
	d.trailers.Reset()
	if d.out = d.out[:0]; cap(d.out) == 0 || cap(d.out) > 2*maxGathered {
		d.out = make([]byte, 0, responseBuffer)
	}
	d.headed, d.chunked, d.endless, d.bodiless, d.keep, d.aborted, d.upgraded = false, false, false, false, false, false, false
	d.err, d.final = nil, false
}

func (d *h1Down) inform(status int, h *field.List) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.final || d.c.work.req.Minor == 0 {
		return
	}
	b := h1.AppendStatusLine(make([]byte, 0, 512), status, http.StatusText(status))
	if h != nil {
		b = h1.AppendFields(b, h)
	}
	if _, err := d.c.io.Write(append(b, '\r', '\n')); err != nil {
		d.err = err
	}
}

func (d *h1Down) header() *field.List {
	if !d.final {
		d.mu.Lock()
		d.final = true
		d.mu.Unlock()
	}
	return &d.fields
}

// writeHead puts the head into out.
func (d *h1Down) writeHead(status int) {
	w := d.c.work
	minor := w.req.Minor
	b := h1.AppendStatusLine(d.out, status, http.StatusText(status))
	b = h1.AppendFields(b, &d.fields)
	if !d.fields.Has(field.Date) {
		b = h1.AppendField(b, "Date", httpDate(w.x.began.Add(w.x.out.head)))
	}
	d.bodiless = w.req.Method == "HEAD" || status == 204 || status == 304
	switch {
	case d.bodiless || d.fields.Has(field.ContentLength):
	case minor == 1:
		d.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	default:
		d.endless = true
	}
	d.keep = w.req.KeepAlive && !d.endless && w.req.Method != "CONNECT" && !d.c.conn.server.registry.leavesOrDrains() &&
		status != 421 && // the client has to come by another connection
		// The rest of the request may never come, or be long: what follows on
		// the connection could not be told from it.
		(w.body.complete.Load() || w.body.drainable())
	switch {
	case !d.keep:
		b = append(b, "Connection: close\r\n"...)
	case minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	d.out, d.headed = append(b, '\r', '\n'), true
}

// write gathers small parts and sends large ones with what was gathered.
func (d *h1Down) write(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if d.bodiless {
		return len(p), nil
	}
	if d.chunked {
		d.out = h1.AppendChunkSize(d.out, len(p))
	}
	if len(d.out)+len(p) <= maxGathered {
		d.out = append(d.out, p...)
	} else if err := d.sendWith(p); err != nil {
		return 0, err
	}
	if d.chunked {
		d.out = append(d.out, '\r', '\n')
	}
	return len(p), nil
}

// sendWith sends what was gathered, and p behind it.
func (d *h1Down) sendWith(p []byte) error {
	if d.c.secured == nil && d.c.conn.socket.raw != nil {
		_, d.err = d.c.conn.socket.raw.Write2(d.out, p)
		d.out = d.out[:0]
		return d.err
	}
	n := min(len(p), maxGathered-min(len(d.out), maxGathered)) // fills a TLS record
	d.out = append(d.out, p[:n]...)
	if err := d.flush(); err != nil || n == len(p) {
		return err
	}
	_, d.err = d.c.io.Write(p[n:])
	return d.err
}

func (d *h1Down) flush() error {
	if len(d.out) > 0 && d.err == nil {
		_, d.err = d.c.io.Write(d.out)
		d.out = d.out[:0]
	}
	return d.err
}

func (d *h1Down) trailer(name, value string) {
	d.trailers.Add(name, value)
}

func (d *h1Down) abort() { d.aborted = true }

// conclude ends the exchange towards the client. keep is whether the connection
// goes on; whole, whether the client has, or should get, all that was sent.
func (d *h1Down) conclude() (keep, whole bool) {
	socket, body := d.c.conn.socket, &d.c.work.body
	if d.upgraded {
		return false, false
	}
	if d.aborted {
		if d.endless {
			socket.reset()
		} else if d.headed {
			d.flush() // as much as there is
		}
		return false, false
	}
	if d.chunked {
		d.out = h1.AppendLastChunk(d.out, &d.trailers)
	}
	if d.err != nil {
		return false, false
	}
	if d.keep && body.complete.Load() && body.stopped.Load() {
		socket.SetReadDeadline(time.Time{}) // its end came just as it was stopped
	}
	if d.keep && body.complete.Load() && len(d.out) > 0 && d.c.mayDefer() {
		return true, true
	}
	if d.flush() != nil {
		return false, false
	}
	if d.keep && !body.complete.Load() && !body.drain() {
		d.keep = false
	}
	// What the client is still sending, or may yet send, must not come upon a
	// closed socket: the reset could overtake the answer.
	if !d.keep && (!body.complete.Load() || d.c.work.req.KeepAlive) {
		socket.linger.Store(lingerBody)
	}
	return d.keep, true
}

// upgrade sends the head with status 101 and hands the connection over.
func (d *h1Down) upgrade() (io.ReadWriteCloser, error) {
	c := d.c
	c.watch.handOver()
	d.upgraded = true
	b := h1.AppendStatusLine(d.out, 101, "Switching Protocols")
	b = h1.AppendFields(b, &d.fields)
	d.out = append(b, '\r', '\n')
	if err := d.flush(); err != nil {
		return nil, err
	}
	if c.conn.severed.Load() {
		return nil, errors.New("the server is shutting down")
	}
	return c.upgraded(), nil
}

// h1Upgraded is a client's connection after the change of protocols.
type h1Upgraded struct {
	c     *h1Conn
	early []byte // what the client sent right behind its request
	spare []byte // over TLS
}

// upgraded returns the connection for its new protocol. It may last, so what an
// exchange needs is let go of but for what the log will tell.
func (c *h1Conn) upgraded() *h1Upgraded {
	w := c.work
	u := &h1Upgraded{c: c, early: append(bytes.Clone(w.in[w.r:w.w]), c.early...)}
	c.early, w.down.out = nil, nil
	if c.secured != nil {
		u.spare = make([]byte, tlsWait)
		c.spare = nil
	}
	x := &w.x
	c.watch.mu.Lock() // who lists exchanges may be reading them
	defer c.watch.mu.Unlock()
	kept := keep(x.req.method, x.req.host, x.req.target.path, x.out.env)
	x.req.method, x.req.host, x.req.target.path, x.out.env = kept[0], kept[1], kept[2], kept[3]
	x.req.authority, x.req.upgrade, x.req.target.query, x.req.target.whole = "", "", "", ""
	x.hop.hostName, x.hop.origin, x.hop.vars = "", "", router.Vars{}
	w.req.Reset()
	w.req.Fields, w.down.fields = field.List{}, field.List{}
	w.in, w.r, w.w = nil, 0, 0 // who holds a string of it yet keeps it from the collector
	return u
}

func (u *h1Upgraded) Read(p []byte) (int, error) {
	if len(u.early) > 0 {
		n := copy(p, u.early)
		u.early = u.early[n:]
		return n, nil
	}
	return u.c.io.Read(p)
}

// ReadLent is lentReader's.
func (u *h1Upgraded) ReadLent(l lender) (int, error) {
	switch socket := u.c.conn.socket; {
	case len(u.early) > 0:
	case u.c.secured != nil:
		return readLentTLS(u.c.secured, socket.raw, u.spare, l)
	case socket.canWaitBare():
		return socket.raw.ReadLent(l)
	}
	return u.Read(l.lend())
}

func (u *h1Upgraded) Write(p []byte) (int, error) { return u.c.io.Write(p) }

// CloseWrite ends the sending direction.
func (u *h1Upgraded) CloseWrite() error {
	if u.c.secured != nil {
		return u.c.secured.CloseWrite()
	}
	return u.c.conn.socket.CloseWrite()
}

func (u *h1Upgraded) Close() error {
	u.c.conn.hangUp()
	return nil
}

// httpDate returns a time as Date has it (RFC 9110 section 5.6.7), which is made
// once a second.
func httpDate(now time.Time) string {
	second := now.Unix()
	if d := lastDate.Load(); d != nil && d.second == second {
		return d.text
	}
	d := &datedSecond{second, now.UTC().Format(http.TimeFormat)}
	lastDate.Store(d)
	return d.text
}

type datedSecond struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[datedSecond]
