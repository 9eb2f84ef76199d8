package l4

import (
	"cmp"
	"math/bits"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// Idle sessions are looked for in ticks of about 67 ms: one ends late by as
// much.
const (
	udpTickBits = 26 // a tick is 1<<udpTickBits nanoseconds
	wheelSize   = 1024
)

// sessionWheel calls sessions back at a tick, at most wheelSize-1 ahead: about a
// minute. Nobody touches it when datagrams move: a session that is seen looks
// for itself what is due. The zero value is empty.
type sessionWheel struct {
	now      uint32 // the last tick that was handled
	occupied [wheelSize / 64]uint64
	heads    [wheelSize]*session
}

// place is a session's in the wheel. The zero value is none.
type place struct {
	next, prev *session
	bucket     uint16 // number plus 1; 0: not in the wheel
}

// enter has s, which is not in the wheel, seen after the given number of ticks.
func (w *sessionWheel) enter(s *session, after uint32) {
	n := (w.now + min(max(after, 1), wheelSize-1)) % wheelSize
	head := w.heads[n]
	if head != nil {
		head.place.prev = s
	}
	s.place = place{next: head, bucket: uint16(n) + 1}
	w.heads[n] = s
	w.occupied[n/64] |= 1 << (n % 64)
}

// leave takes s out, if it is in.
func (w *sessionWheel) leave(s *session) {
	p := s.place
	if p.bucket == 0 {
		return
	}
	if p.prev != nil {
		p.prev.place.next = p.next
	} else if n := p.bucket - 1; p.next != nil {
		w.heads[n] = p.next
	} else {
		w.heads[n] = nil
		w.occupied[n/64] &^= 1 << (n % 64)
	}
	if p.next != nil {
		p.next.place.prev = p.prev
	}
	s.place = place{}
}

// advance calls see for every session whose time has come by tick to. see may
// enter the one it is given again, or end it.
func (w *sessionWheel) advance(to uint32, see func(*session)) {
	for turns := 0; w.now != to && turns < wheelSize; turns++ {
		w.now++
		n := w.now % wheelSize
		for s := w.heads[n]; s != nil; s = w.heads[n] {
			w.leave(s)
			see(s)
		}
	}
	w.now = to
}

// due returns the loop time when somebody is to be seen next, event.Never if nobody
// is.
func (w *sessionWheel) due() int64 {
	const words = uint32(len(w.occupied))
	first := (w.now + 1) % wheelSize
	for i := range words + 1 { // the first word twice: its upper and its lower half
		word := w.occupied[(first/64+i)%words]
		if i == 0 {
			word &= ^uint64(0) << (first % 64)
		}
		if word == 0 {
			continue
		}
		n := (first/64+i)*64 + uint32(bits.TrailingZeros64(word))
		ahead := (n - w.now%wheelSize) % wheelSize
		return (int64(w.now) + int64(cmp.Or(ahead, wheelSize))) << udpTickBits
	}
	return event.Never
}
