package loop

import (
	"sync"
	"sync/atomic"
)

const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
	// indexBits is how many bits of an event tell the slot.
	indexBits = 20
	maxChunks = 1 << (indexBits - chunkBits)
)

// slab holds the flows of a loop by index, so that an event can name one with a
// number and the garbage collector sees a few large objects. Slots are reused,
// never freed. Slot 0 stays unused: it is the nil of lists.
type slab struct {
	live atomic.Int64 // slots in use

	mu   sync.Mutex // guards the following fields
	free uint32     // first of the list of free slots, linked by flow.next
	used uint32     // slots that were ever in use

	// Written under mu. An index is read by whoever was handed it by get,
	// directly or through a lock.
	chunks [maxChunks]*[chunkSize]flow
}

// get returns a slot for a new flow of l, or nil if there are too many.
func (s *slab) get(l *loop) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.free
	if i != 0 {
		f := s.at(i)
		s.free, f.next = f.next, 0
		s.live.Add(1)
		return f
	}
	i = s.used + 1
	if i>>chunkBits >= maxChunks {
		return nil
	}
	s.used = i
	if s.chunks[i>>chunkBits] == nil {
		s.chunks[i>>chunkBits] = new([chunkSize]flow)
	}
	f := s.at(i)
	f.loop, f.index = l, i
	f.gen.Store(1)
	s.live.Add(1)
	return f
}

// put takes back the slot of a flow that has ended. Its generation is past from
// here on, and its counters begin anew.
func (s *slab) put(f *flow) {
	gen := f.gen.Load() + 1
	if gen == 0 { // 0 marks events that are not about a flow
		gen = 1
	}
	f.gen.Store(gen)
	for i := range f.side {
		f.side[i].moved.Store(0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.next, s.free = s.free, f.index
	s.live.Add(-1)
}

// at returns slot i, which get has given before.
func (s *slab) at(i uint32) *flow { return &s.chunks[i>>chunkBits][i&(chunkSize-1)] }

// each calls visit for every slot that was ever in use.
func (s *slab) each(visit func(*flow)) {
	s.mu.Lock()
	used := s.used
	s.mu.Unlock()
	for i := uint32(1); i <= used; i++ {
		visit(s.at(i))
	}
}
