package loop

import "math/bits"

// The wheel counts in ticks of about 17 ms: a timeout ends late by as much.
const (
	tickBits    = 24 // a tick is 1<<tickBits nanoseconds
	wheelBits   = 6
	wheelSize   = 1 << wheelBits
	wheelLevels = 4
	// wheelSpan is how many ticks ahead a flow can be entered: 3 days. One that
	// is due later is seen once more on the way.
	wheelSpan = 1<<(wheelBits*wheelLevels) - 1
	// neverTicks is longer than any timeout, and short enough that comparing
	// ticks survives their wrapping around.
	neverTicks = 1 << 30
)

// wheel calls flows back at a time. Each level's buckets are 64 times as wide as
// those of the one below; a flow in a wide bucket is seen at the beginning of
// its span and entered again, finer. So entering costs the same for whatever
// time and however many flows, and nobody touches the wheel when bytes move: a
// flow that is seen looks for itself what is due.
type wheel struct {
	now      int64 // the last tick that was handled
	occupied [wheelLevels]uint64
	heads    [wheelLevels][wheelSize]uint32 // first flow of each bucket; 0: none
}

// node is a flow's place in the wheel. The zero value is none.
type node struct {
	next, prev uint32 // indexes of flows; 0: none
	bucket     uint16 // level and number, plus 1; 0: not in the wheel
}

// enter has f seen after the given number of ticks, 1 at least. If it was to be
// seen already it is moved.
func (w *wheel) enter(s *slab, f *flow, after uint32) {
	w.leave(s, f)
	delta := min(max(int64(after), 1), wheelSpan)
	level := 0
	for delta >= 1<<(wheelBits*(level+1)) {
		level++
	}
	number := (w.now + delta) >> (wheelBits * level) & (wheelSize - 1)
	head := &w.heads[level][number]
	if *head != 0 {
		s.at(*head).timer.prev = f.index
	}
	f.timer = node{next: *head, bucket: uint16(level<<wheelBits|int(number)) + 1}
	*head = f.index
	w.occupied[level] |= 1 << number
}

// leave takes f out of the wheel, if it is in.
func (w *wheel) leave(s *slab, f *flow) {
	n := f.timer
	if n.bucket == 0 {
		return
	}
	level, number := int(n.bucket-1)>>wheelBits, (n.bucket-1)&(wheelSize-1)
	if n.prev != 0 {
		s.at(n.prev).timer.next = n.next
	} else {
		w.heads[level][number] = n.next
		if n.next == 0 {
			w.occupied[level] &^= 1 << number
		}
	}
	if n.next != 0 {
		s.at(n.next).timer.prev = n.prev
	}
	f.timer = node{}
}

// advance calls see for every flow whose bucket has come by tick to. see enters
// it again where it is to be seen again.
func (w *wheel) advance(s *slab, to int64, see func(*flow)) {
	from := w.now
	if to <= from {
		return
	}
	w.now = to
	for level := range wheelLevels {
		shift := wheelBits * level
		first, last := from>>shift+1, to>>shift
		for n := first; n <= last && n < first+wheelSize; n++ {
			number := n & (wheelSize - 1)
			if w.occupied[level]&(1<<number) == 0 {
				continue
			}
			// see may enter flows into this very bucket, for its next turn.
			head := w.heads[level][number]
			w.heads[level][number] = 0
			w.occupied[level] &^= 1 << number
			w.see(s, head, see)
		}
	}
}

// see calls see for the flows of a bucket that was taken off the wheel. see may
// enter the flow it is given again, or end it, and touches no other.
func (w *wheel) see(s *slab, head uint32, see func(*flow)) {
	for head != 0 {
		f := s.at(head)
		head = f.timer.next
		f.timer = node{}
		see(f)
	}
}

// next returns how many ticks after now the next bucket comes that has a flow,
// or false if there is none.
func (w *wheel) next() (ticks int64, ok bool) {
	for level := range wheelLevels {
		if w.occupied[level] == 0 {
			continue
		}
		shift := wheelBits * level
		turn := w.now >> shift
		ahead := bits.TrailingZeros64(bits.RotateLeft64(w.occupied[level], -int((turn+1)&(wheelSize-1))))
		at := (turn + 1 + int64(ahead)) << shift
		if !ok || at-w.now < ticks {
			ticks, ok = at-w.now, true
		}
	}
	return ticks, ok
}
