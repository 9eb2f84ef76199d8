package http

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
)

const (
	pingComment = ": ping\n\n" // which readers of event streams pass over
	eventStream = "text/event-stream"
	// maxErrorEvent bounds what of an answer goes into an event.
	maxErrorEvent = 8 << 10
)

// pingDown is a downstream in front of a codec's own that sends comments into an
// event stream which has not begun. Its timer sends them, on a goroutine of its
// own, so that all calls of the codec's downstream are made under mu until the
// first byte of content; from then on the exchange goes past it.
type pingDown struct {
	x     *exchange
	every time.Duration

	mu    sync.Mutex // guards the following fields, and the use of inner
	inner downstream
	timer *time.Timer
	stage pingStage
	early *field.List // of the head that the node answers by itself
	late  field.List  // of the backend's, where that came after it
	error *errorEvent
}

type pingStage uint8

const (
	pingUnheaded pingStage = iota // there is no head yet
	pingHeading                   // the exchange makes one
	pingEarly                     // the node has sent one, and the exchange knows none
	pingHeaded                    // the stream has a head and no content
	pingFailed                    // the node has sent one, and the exchange has an answer that is no event stream
	pingOver
)

// pingSoon has comments sent into the stream that x asks for, before it has a
// head.
func (x *exchange) pingSoon() {
	early := new(field.List)
	early.SetID(field.ContentType, eventStream)
	early.SetID(field.CacheControl, "no-cache")
	x.editHead(early, true)
	x.pingBy(&pingDown{early: early})
}

// ping has comments sent into the stream that x is answered with, whose head is
// about to be sent with status.
func (x *exchange) ping(status int) {
	if x.pinger == nil && isEventStream(status, x.down.header()) && x.req.method != "HEAD" {
		x.pingBy(&pingDown{stage: pingHeading})
	}
}

func (x *exchange) pingBy(p *pingDown) {
	p.x, p.every, p.inner = x, x.hop.route.Events.Ping, x.down
	x.pinger, x.down = p, p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(p.every, p.tick)
}

func isEventStream(status int, h *field.List) bool {
	media, _, _ := strings.Cut(h.GetID(field.ContentType), ";")
	return status == 200 && field.EqualFold(strings.Trim(media, " \t"), eventStream) && !hasEncoding(h)
}

// wantsEvents reports whether a request asks for an event stream by name.
func wantsEvents(h *field.List) bool {
	for _, l := range h.Lines() {
		if l.ID == field.Other && field.EqualFold(l.Name, "Accept") && field.ListHas(l.Value, eventStream) {
			return true
		}
	}
	return false
}

// tick sends a comment.
func (p *pingDown) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.stage {
	case pingUnheaded:
		p.inner.header().Take(p.early)
		p.inner.writeHead(200)
		p.stage = pingEarly
	case pingEarly, pingHeaded:
	default:
		return
	}
	n, err := p.inner.write([]byte(pingComment))
	p.x.bytes.down.Add(int64(n))
	if err == nil {
		err = p.inner.flush()
	}
	if err == nil {
		p.timer.Reset(p.every)
	}
}

func (p *pingDown) inform(status int, h *field.List) { p.inner.inform(status, h) }

// header is called by the exchange once it has an answer: from then on the node
// gives none by itself.
func (p *pingDown) header() *field.List {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.stage {
	case pingUnheaded:
		p.stage = pingHeading
	case pingEarly, pingFailed:
		return &p.late
	}
	return p.inner.header()
}

// committed reports whether the client has the node's own head.
func (p *pingDown) committed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stage == pingEarly || p.stage == pingFailed
}

func (p *pingDown) writeHead(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.stage == pingHeading && isEventStream(status, p.inner.header()):
		p.stage = pingHeaded
		p.inner.writeHead(status)
	case p.stage == pingHeading:
		p.over()
		p.inner.writeHead(status)
	case isEventStream(status, &p.late):
		p.stage = pingHeaded
	default:
		p.stage, p.error = pingFailed, &errorEvent{Status: status}
	}
}

// over ends the comments. p.mu is held.
func (p *pingDown) over() {
	p.stage = pingOver
	p.timer.Stop()
	if p.x.down == p {
		p.x.down = p.inner
	}
}

func (p *pingDown) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage == pingFailed {
		p.error.add(b)
		return 0, nil
	}
	if p.stage != pingOver {
		p.over()
	}
	return p.inner.write(b)
}

func (p *pingDown) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage == pingFailed {
		return nil
	}
	return p.inner.flush()
}

func (p *pingDown) trailer(name, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage != pingFailed {
		p.inner.trailer(name, value)
	}
}

func (p *pingDown) upgrade() (io.ReadWriteCloser, error) {
	return nil, errors.New("an event stream cannot change protocols")
}

func (p *pingDown) abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over()
	p.inner.abort()
}

// complete ends the comments, and tells the client of an answer that was none of
// events. Nothing of p is used by anybody else from then on.
func (p *pingDown) complete() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	failed := p.stage == pingFailed
	p.over()
	if !failed {
		return nil
	}
	n, err := p.inner.write(p.error.event())
	p.x.bytes.down.Add(int64(n))
	return err
}

// errorEvent is an answer that came when the stream had begun.
type errorEvent struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
}

func (e *errorEvent) add(b []byte) { e.Body += string(b[:min(len(b), maxErrorEvent-len(e.Body))]) }

func (e *errorEvent) event() []byte {
	data, err := json.Marshal(e)
	if err != nil {
		panic(err) // a number and a string always encode
	}
	return append(append([]byte("event: error\ndata: "), data...), "\n\n"...)
}
