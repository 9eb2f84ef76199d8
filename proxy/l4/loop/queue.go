package loop

import "time"

// queue is what a side did not take at once: bytes in memory, or in a pipe.
type queue struct {
	bytes  []byte
	buffer *buffer // what bytes lie in; nil: memory that is not the loop's
	pipe   *pipe   // holds bytes if it is not nil

	// When a byte was last taken, and how many had been taken and not been
	// acknowledged when somebody last looked: a peer that takes a few bytes a
	// minute makes room in the socket once an hour.
	progress uint32 // tick
	unsent   int
}

// bufferSize is what one read takes at most.
const bufferSize = 64 << 10

type buffer [bufferSize]byte

// buffers are a loop's. There is always one to read into.
type buffers struct {
	pool[*buffer]
	current *buffer
}

// detach returns the current buffer, for its bytes to be kept, and puts another
// one in its place.
func (b *buffers) detach() *buffer {
	kept := b.current
	spare, ok := b.get()
	if !ok {
		spare = new(buffer)
	}
	b.current = spare
	return kept
}

// pool keeps what is not needed at the moment.
type pool[T any] struct {
	spare []T
	least int // fewest there were since the last trim
}

// rest is how long something stays in a pool unused.
const rest = 10 * time.Second

func (p *pool[T]) get() (item T, ok bool) {
	last := len(p.spare) - 1
	if last < 0 {
		return item, false
	}
	item = p.spare[last]
	clear(p.spare[last:])
	p.spare = p.spare[:last]
	p.least = min(p.least, last)
	return item, true
}

func (p *pool[T]) put(item T) { p.spare = append(p.spare, item) }

// trim takes out what nobody has needed since the last time, and gives it to
// drop. It reports whether something is left.
func (p *pool[T]) trim(drop func(T)) (more bool) {
	for _, item := range p.spare[:p.least] {
		drop(item)
	}
	n := copy(p.spare, p.spare[p.least:])
	clear(p.spare[n:])
	p.spare, p.least = p.spare[:n], n
	return n > 0
}
