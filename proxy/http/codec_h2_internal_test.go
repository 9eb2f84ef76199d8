package http

import (
	"bytes"
	"io"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2Upload1 returns stream 1 of a connection that nothing is sent on, with a body
// of so many bytes to come; -1: nobody knows.
func h2Upload1(t *testing.T, declared int64) *h2DownStream {
	t.Helper()
	c := &h2DownConn{conn: &conn{server: &Server{}}}
	c.init()
	c.out.writing = true
	s := h2DownStreams.New().(*h2DownStream)
	s.c, s.id = c, 1
	s.cond.L = &c.mu
	s.recv = h2.NewRecvWindow(h2DownStreamWindow)
	s.head.Reset(h2.KindRequest, 1<<10)
	s.head.Length = declared
	s.body.reset(&s.head, false)
	c.streams[1], c.last = s, 1
	return s
}

// granted returns what a connection has given leave for since it was last asked,
// for a stream and all in all.
func (c *h2DownConn) granted(t *testing.T) (stream, all int) {
	t.Helper()
	var r h2.Reader
	r.Reset(bytes.NewReader(c.out.buffer()))
	for {
		f, err := r.Next()
		switch {
		case err == io.EOF:
			c.out.set(c.out.buffer()[:0])
			return stream, all
		case err != nil || f.Type != h2.TypeWindowUpdate:
			t.Fatalf("a frame of type %d, %v", f.Type, err)
		case f.Stream == 0:
			all += int(f.Increment())
		default:
			stream += int(f.Increment())
		}
	}
}

// padded is a DATA frame with so much content and padding.
func padded(content, padding int) *h2.Frame {
	p := make([]byte, 1+content+padding)
	p[0] = byte(padding)
	return &h2.Frame{Type: h2.TypeData, Flags: h2.FlagPadded, Stream: 1, Payload: p}
}

// TestH2PaddingIsGivenBack has a client pad what it sends. It knows of as much
// room as there is, whether or not anybody reads meanwhile.
func TestH2PaddingIsGivenBack(t *testing.T) {
	s := h2Upload1(t, -1)
	c := s.c
	stream, all := h2DownStreamWindow, h2DownConnWindow // as the client has it
	room := make([]byte, 64<<10)
	for sent := 0; sent < 8<<20; {
		for stream >= 512 && s.body.left < 200<<10 { // of content, what is read at once
			if err := c.data(padded(256, 255)); err != nil {
				t.Fatal(err)
			}
			stream, all, sent = stream-512, all-512, sent+512
			more, moreAll := c.granted(t)
			stream, all = stream+more, all+moreAll
		}
		for s.body.first != nil {
			if _, err := s.body.Read(room); err != nil {
				t.Fatal(err)
			}
		}
		more, moreAll := c.granted(t)
		stream, all = stream+more, all+moreAll
		if stream < h2DownStreamWindow/2 || all < h2DownConnWindow/2 {
			t.Fatalf("all is read, and there is leave for %d bytes, %d all in all", stream, all)
		}
	}
}

// TestH2BodyThatNobodyReads has a client send the rest of a body that nobody
// wants any more. It is as long as it should be, and no fault of the client's.
func TestH2BodyThatNobodyReads(t *testing.T) {
	s := h2Upload1(t, 1000)
	for i, flags := range []uint8{0, 0, 0, h2.FlagEndStream} {
		if i == 1 {
			s.body.stop()
		}
		if err := s.c.data(&h2.Frame{Type: h2.TypeData, Stream: 1, Flags: flags, Payload: make([]byte, 250)}); err != nil {
			t.Errorf("part %d: %v", i, err)
		}
	}
	if !s.body.ended {
		t.Error("the body goes on")
	}
}
