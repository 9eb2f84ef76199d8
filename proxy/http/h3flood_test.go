package http_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
)

// TestH3Floods has clients do without end what costs them little. Each is sent
// away for it, others are served meanwhile, and no memory is taken.
func TestH3Floods(t *testing.T) {
	get := h3Head("GET", "/flood")
	for name, tc := range map[string]struct {
		flood func(c *rawH3) error // once
		want  uint64
	}{
		"requests that are taken back": {func(c *rawH3) error {
			s, err := c.conn.OpenStreamSync(c.t.Context())
			if err != nil {
				return err
			}
			s.Write(get)
			s.CancelWrite(h3Cancelled)
			s.CancelRead(h3Cancelled)
			return nil
		}, h3ExcessiveLoad},
		"answers that are stopped": {func(c *rawH3) error {
			s, err := c.conn.OpenStreamSync(c.t.Context())
			if err != nil {
				return err
			}
			s.Write(get)
			s.Close()
			s.CancelRead(h3Cancelled)
			return nil
		}, h3ExcessiveLoad},
		"streams that say nothing": {func(c *rawH3) error {
			s, err := c.conn.OpenUniStreamSync(c.t.Context())
			if err != nil {
				return err
			}
			s.Write(varint(0x21))
			s.Close() // fails where the server has stopped it already
			return nil
		}, h3ExcessiveLoad},
		"frames on the control stream":   {sideFlood(h3Frame(0x21, nil)), h3ExcessiveLoad},
		"MAX_PUSH_ID":                    {sideFlood(h3Frame(0xd, varint(1))), h3ExcessiveLoad},
		"priorities":                     {sideFlood(h3Frame(0xf0700, []byte("\x00u=1"))), h3ExcessiveLoad},
		"capacities of the table":        {streamFlood(0x2, 0x20), h3ExcessiveLoad},
		"streams given up":               {streamFlood(0x3, 0x41), h3ExcessiveLoad},
		"empty DATA":                     {requestFlood(h3Head("POST", "/flood"), h3Data("")), h3ExcessiveLoad},
		"unknown frames before the head": {requestFlood(nil, h3Frame(0x21, nil)), h3ExcessiveLoad},
	} {
		t.Run(name, func(t *testing.T) {
			addr := backend(t, drain)
			r := toBackend(t, addr)(t)
			bystander := r.h3()
			watch := watchHeap()
			c := r.rawH3(t).settled()
			for i := 0; c.conn.Context().Err() == nil; i++ {
				if err := tc.flood(c); err != nil {
					break
				}
				if i%500 == 0 {
					if resp, _ := bystander.get(t, "app.x.test", "/"); resp.StatusCode != 200 {
						t.Errorf("another client got %d", resp.StatusCode)
					}
				}
			}
			if got := c.closedBy(); got != tc.want {
				t.Errorf("the connection ended by %#x, want %#x", got, tc.want)
			}
			if resp, _ := bystander.get(t, "app.x.test", "/"); resp.StatusCode != 200 {
				t.Errorf("another client got %d", resp.StatusCode)
			}
			if grown := watch(); grown > 32<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
		})
	}
}

const h3Cancelled = 0x10c

// sideFlood writes frame to the control stream.
func sideFlood(frame []byte) func(c *rawH3) error {
	many := bytes.Repeat(frame, 100)
	return func(c *rawH3) error {
		_, err := c.control.Write(many)
		return err
	}
}

// streamFlood writes b to a unidirectional stream of a kind.
func streamFlood(kind uint64, b byte) func(c *rawH3) error {
	var s *quic.SendStream
	many := bytes.Repeat([]byte{b}, 100)
	return func(c *rawH3) error {
		if s == nil {
			s = c.uni(kind)
		}
		_, err := s.Write(many)
		return err
	}
}

// requestFlood writes frame to a request's stream, behind head.
func requestFlood(head, frame []byte) func(c *rawH3) error {
	var s *quic.Stream
	many := bytes.Repeat(frame, 10)
	return func(c *rawH3) error {
		if s == nil {
			s = c.begin(head)
		}
		_, err := s.Write(many)
		return err
	}
}

// TestH3BombsTakeNoMemory sends as many heads at once as the connection takes, each
// as large as it may be, or larger once unpacked.
func TestH3BombsTakeNoMemory(t *testing.T) {
	addr := backend(t, drain)
	r := toBackend(t, addr)(t)
	bystander := r.h3()
	c := r.rawH3(t).settled()
	for name, tc := range map[string]struct {
		head   []byte
		status string
	}{
		"long names of the static table": {h3Frame(0x1, append(h3Head("GET", "/")[2:], bytes.Repeat([]byte{0xc0 | 58}, 60000)...)), "431"},
		"cookies of nothing":             {h3Head("GET", "/", strings.Split(strings.Repeat("cookie: |", 5000)+"cookie: ", "|")...), "431"},
		"a Huffman code":                 {h3Head("GET", "/", "x: "+strings.Repeat("a", 60000)), "200"},
	} {
		watch := watchHeap()
		answers := make(chan error, 100)
		for range cap(answers) {
			s := c.request(tc.head)
			go func() {
				a, err := readH3Answer(s)
				if err == nil && a.status() != tc.status {
					err = fmt.Errorf("status %s", a.status())
				}
				answers <- err
			}()
		}
		if resp, _ := bystander.get(t, "app.x.test", "/"); resp.StatusCode != http.StatusOK {
			t.Errorf("another client got %d", resp.StatusCode)
		}
		for range cap(answers) {
			if err := soon(t, "an answer", answers); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if grown := watch(); grown > 64<<20 {
			t.Errorf("%s: the heap grew by %d MiB", name, grown>>20)
		}
	}
}
