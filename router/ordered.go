package router

import (
	"iter"
	"slices"
)

// ordered is an immutable list in the order of a comparison, without doubles.
// It is cut into chunks, so that an edit copies few of its elements. nil is
// empty. Every call must be given the same comparison.
type ordered[T any] struct {
	chunks [][]T // none is empty
	n      int
}

const maxChunk = 64

func (o *ordered[T]) len() int {
	if o == nil {
		return 0
	}
	return o.n
}

// all goes through the list.
func (o *ordered[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		if o == nil {
			return
		}
		for _, chunk := range o.chunks {
			for _, v := range chunk {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// find returns the place of v, or that where it belongs, in the last chunk that
// could have it.
func (o *ordered[T]) find(v T, compare func(a, b T) int) (chunk, at int, found bool) {
	chunk, found = slices.BinarySearchFunc(o.chunks, v, func(c []T, v T) int { return compare(c[0], v) })
	if found {
		return chunk, 0, true
	}
	chunk = max(chunk-1, 0)
	at, found = slices.BinarySearchFunc(o.chunks[chunk], v, compare)
	return chunk, at, found
}

// with returns the list with v, which takes the place of its equal.
func (o *ordered[T]) with(v T, compare func(a, b T) int) *ordered[T] {
	if o == nil {
		return &ordered[T]{chunks: [][]T{{v}}, n: 1}
	}
	i, at, found := o.find(v, compare)
	c := &ordered[T]{chunks: slices.Clone(o.chunks), n: o.n}
	chunk := slices.Clone(c.chunks[i])
	if found {
		chunk[at] = v
	} else {
		chunk = slices.Insert(chunk, at, v)
		c.n++
	}
	c.chunks[i] = chunk
	if half := len(chunk) / 2; len(chunk) > maxChunk {
		c.chunks[i] = chunk[:half:half]
		c.chunks = slices.Insert(c.chunks, i+1, chunk[half:])
	}
	return c
}

// without returns the list without what equals v, nil where nothing is left.
func (o *ordered[T]) without(v T, compare func(a, b T) int) *ordered[T] {
	if o == nil {
		return nil
	}
	i, at, found := o.find(v, compare)
	switch {
	case !found:
		return o
	case o.n == 1:
		return nil
	}
	c := &ordered[T]{chunks: slices.Clone(o.chunks), n: o.n - 1}
	if len(c.chunks[i]) == 1 {
		c.chunks = slices.Delete(c.chunks, i, i+1)
	} else {
		c.chunks[i] = slices.Delete(slices.Clone(c.chunks[i]), at, at+1)
	}
	return c
}
