package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Window is how much a server may send on the connection before it is told
// that some of it was read.
const h2Window = 1 << 30

// askH2 is a connection of HTTP/2. Its requests are one HEADERS frame each, made
// beforehand.
type askH2 struct {
	*tls.Conn
	frames  *http2.Framer // reads only: write makes its own
	fields  *hpack.Decoder
	request []byte         // the frame, whose stream identifier is filled in
	next    uint32         // stream
	got     map[uint32]int // bytes of bodies so far, by stream
	unsaid  uint32         // bytes read that the server has not been told of
	status  string
}

func dialAskH2(ctx context.Context, e *edge, _ int) (asker, error) {
	c, err := dialTLS(ctx, e, "h2")
	if err != nil {
		return nil, err
	}
	a := &askH2{Conn: c, next: 1, got: make(map[uint32]int), request: h2Request(authority(c))}
	a.frames = http2.NewFramer(c, bufio.NewReaderSize(c, 64<<10))
	a.frames.SetReuseFrames()
	a.fields = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			a.status = f.Value
		}
	})
	var hello bytes.Buffer
	hello.WriteString(http2.ClientPreface)
	w := http2.NewFramer(&hello, nil)
	err = errors.Join(
		w.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}),
		w.WriteWindowUpdate(0, h2Window-1<<16))
	if err == nil {
		_, err = c.Write(hello.Bytes())
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return a, nil
}

// h2Request is a HEADERS frame of a whole request, on stream 0.
func h2Request(authority string) []byte {
	var block, frame bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSize(0) // each frame has to stand for itself
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: authority},
		{Name: ":path", Value: "/bench"}, {Name: "user-agent", Value: "bench"}, {Name: "accept", Value: "*/*"},
	} {
		enc.WriteField(f) // to memory: cannot fail
	}
	w := http2.NewFramer(&frame, nil)
	w.AllowIllegalWrites = true // of stream 0, for now
	w.WriteHeaders(http2.HeadersFrameParam{BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	return frame.Bytes()
}

func (a *askH2) write() (uint64, error) {
	id := a.next
	a.next += 2
	const streamAt = 5 // RFC 9113 section 4.1
	binary.BigEndian.PutUint32(a.request[streamAt:], id)
	_, err := a.Write(a.request)
	return uint64(id), err
}

func (a *askH2) read() (uint64, error) {
	for {
		f, err := a.frames.ReadFrame()
		if err != nil {
			return 0, err
		}
		if err := a.take(f); err != nil {
			return 0, err
		}
		if id, ended := endsStream(f); ended {
			if n := a.got[id]; n != bodySize {
				return 0, fmt.Errorf("an answer has %d bytes, want %d", n, bodySize)
			}
			delete(a.got, id)
			return uint64(id), nil
		}
	}
}

func endsStream(f http2.Frame) (id uint32, ended bool) {
	switch f := f.(type) {
	case *http2.DataFrame:
		return f.StreamID, f.StreamEnded()
	case *http2.HeadersFrame:
		return f.StreamID, f.StreamEnded()
	}
	return 0, false
}

// take does what a frame asks for.
func (a *askH2) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return a.takeHead(f)
	case *http2.DataFrame:
		a.got[f.StreamID] += len(f.Data())
		if a.unsaid += f.Length; a.unsaid > h2Window/2 {
			said := a.unsaid
			a.unsaid = 0
			return a.say(func(w *http2.Framer) error { return w.WriteWindowUpdate(0, said) })
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return a.say(func(w *http2.Framer) error { return w.WriteSettingsAck() })
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return a.say(func(w *http2.Framer) error { return w.WritePing(true, f.Data) })
		}
	case *http2.RSTStreamFrame, *http2.GoAwayFrame, *http2.ContinuationFrame, *http2.PushPromiseFrame:
		return fmt.Errorf("the server sent %v", f)
	}
	return nil
}

func (a *askH2) takeHead(f *http2.HeadersFrame) error {
	if !f.HeadersEnded() {
		return errors.New("an answer's head has several frames")
	}
	a.status = ""
	if _, err := a.fields.Write(f.HeaderBlockFragment()); err != nil {
		return err
	}
	if a.status != "200" {
		return fmt.Errorf("a request was answered with status %q", a.status)
	}
	return a.fields.Close()
}

// say writes a frame, which may be between those of write.
func (a *askH2) say(what func(*http2.Framer) error) error {
	var b bytes.Buffer
	if err := what(http2.NewFramer(&b, nil)); err != nil {
		return err
	}
	_, err := a.Write(b.Bytes())
	return err
}

func (a *askH2) state() tls.ConnectionState { return a.ConnectionState() }

func (a *askH2) close() { a.Close() }
