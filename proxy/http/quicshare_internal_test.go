package http

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// message is a packet as it came.
func message(payload []byte) ipv4.Message {
	m := ipv4.Message{Buffers: [][]byte{make([]byte, 1452)}, OOB: make([]byte, 128), Addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4433}}
	m.N = copy(m.Buffers[0], payload)
	m.NN = copy(m.OOB, "control of "+string(payload[len(payload)-1:]))
	return m
}

// shortHeader returns a packet to an id with a tag, marked by its last byte.
func shortHeader(tag uint32, mark byte) []byte {
	p := append([]byte{0x40}, make([]byte, quicIDBytes)...)
	binary.BigEndian.PutUint32(p[1:], tag)
	return append(p, 'x', mark)
}

// longHeader returns a packet to an id that a client chose.
func longHeader(id string, mark byte) []byte {
	p := append([]byte{0xc0, 0, 0, 0, 1, byte(len(id))}, id...)
	return append(append(p, 0), bytes.Repeat([]byte{mark}, 20)...)
}

// sharing returns a socket that passes packets on to an elder with a tag, and the
// end that this one reads.
func sharing(t *testing.T, elder QUICElder) (*sharedUDP, *net.UnixConn) {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	elder.Socket = os.NewFile(uintptr(fds[0]), "")
	c, err := shareUDP(pc, 0x01010101, []QUICElder{elder})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := datagrams(os.NewFile(uintptr(fds[1]), ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.closeElders(); theirs.Close(); pc.Close() })
	return c, theirs
}

// TestPacketsFindTheirProcess sorts packets of several processes, and reads those
// that were passed on where they were passed to.
func TestPacketsFindTheirProcess(t *testing.T) {
	c, theirs := sharing(t, QUICElder{Tag: 0x02020202, IDs: [][]byte{[]byte("handshake")}, Until: time.Now().Add(time.Hour)})
	ms := []ipv4.Message{
		message(shortHeader(0x02020202, 'a')),
		message(shortHeader(0x01010101, 'b')),
		message(longHeader("handshake", 'c')),
		message(longHeader("another id", 'd')),
		message(shortHeader(0x03030303, 'e')), // of nobody: answered by a reset
		message(append(shortHeader(0x02020202, 'f'), 'f')),
		message([]byte("short")),
	}
	var left []byte
	for _, m := range ms[:c.sort(ms)] {
		if last := m.Buffers[0][m.N-1]; string(m.OOB[:m.NN]) != "control of "+string(last) {
			t.Errorf("packet %c came with %q", last, m.OOB[:m.NN])
		}
		left = append(left, m.Buffers[0][m.N-1])
	}
	if string(left) != "bdet" {
		t.Errorf("of our own are %q, want bdet", left)
	}
	elder := &sharedUDP{relay: theirs}
	var passed []byte
	for range 3 {
		m := []ipv4.Message{message([]byte("nothing"))}
		if n, err := elder.readRelayed(m); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		last := m[0].Buffers[0][m[0].N-1]
		if got := m[0].Addr.String(); got != "192.0.2.7:4433" || string(m[0].OOB[:m[0].NN]) != "control of "+string(last) {
			t.Errorf("packet %c came from %s with %q", last, got, m[0].OOB[:m[0].NN])
		}
		passed = append(passed, last)
	}
	if string(passed) != "acf" {
		t.Errorf("passed on were %q, want acf", passed)
	}
	if ids := c.recent.all(); len(ids) != 1 || string(ids[0]) != "another id" {
		t.Errorf("remembered are %q, want the id of the handshake that begins here", ids)
	}
}

// TestHandshakesAreForgotten has ids that clients chose be anybody's after a while.
func TestHandshakesAreForgotten(t *testing.T) {
	c, _ := sharing(t, QUICElder{Tag: 0x02020202, IDs: [][]byte{[]byte("handshake")}, Until: time.Now().Add(-time.Second)})
	ms := []ipv4.Message{message(longHeader("handshake", 'a')), message(shortHeader(0x02020202, 'b'))}
	if n := c.sort(ms); n != 1 || ms[0].Buffers[0][ms[0].N-1] != 'a' {
		t.Errorf("%d packets are left, want that of the old handshake", n)
	}
}

// TestProcessesThatHaveEndedAreForgotten hands a socket on: those who are there get
// their packets from the next one, and those who are not take no file there.
func TestProcessesThatHaveEndedAreForgotten(t *testing.T) {
	for _, ended := range []bool{false, true} {
		t.Run(fmt.Sprint("ended ", ended), func(t *testing.T) {
			c, theirs := sharing(t, QUICElder{Tag: 0x02020202})
			want := 2 // this process and the elder
			if ended {
				theirs.Close()
				want = 1
			}
			reader := make(chan error, 1)
			go func() {
				_, err := c.ReadBatch([]ipv4.Message{message([]byte("nothing"))}, 0)
				reader <- err
			}()
			all, err := c.leave()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				e.Socket.Close()
			}
			c.relay.SetReadDeadline(time.Unix(1, 0))
			<-reader
			if len(all) != want {
				t.Errorf("the next process is told of %d, want %d", len(all), want)
			}
			if ended {
				return
			}
			m := message([]byte("after"))
			c.pass(c.elders[0], &m)
			elder, got := &sharedUDP{relay: theirs}, []ipv4.Message{message([]byte("nothing"))}
			if n, err := elder.readRelayed(got); n != 1 || err != nil || string(got[0].Buffers[0][:got[0].N]) != "after" {
				t.Errorf("the elder read %q, %v, behind the look for whether it is there", got[0].Buffers[0][:got[0].N], err)
			}
		})
	}
}

func TestRecentIDsAreBounded(t *testing.T) {
	var r recentIDs
	id := make([]byte, 12)
	for i := range 3 * maxRecent {
		binary.BigEndian.PutUint32(id, uint32(i))
		r.note(id)
		r.note(id)
	}
	ids := r.all()
	if len(ids) != maxRecent {
		t.Fatalf("%d ids are remembered, want %d", len(ids), maxRecent)
	}
	for _, id := range ids {
		if binary.BigEndian.Uint32(id) < 2*maxRecent {
			t.Fatalf("id %x is remembered in the place of a later one", id)
		}
	}
}

// FuzzUnpass has nothing that another process passes on do harm.
func FuzzUnpass(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 16), 0, 1, 255, 255))
	f.Add(append(make([]byte, 16), 0, 1, 1, 1, 'z', 'c', 'p'))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := message([]byte("before"))
		if unpass(b, &m) && (m.N > len(m.Buffers[0]) || m.NN > len(m.OOB) || m.Addr == nil) {
			t.Errorf("%x became %d and %d bytes from %v", b, m.N, m.NN, m.Addr)
		}
		destination(b)
	})
}
