package router

import "strings"

// trie finds values by the beginnings of a text: a radix tree over bytes. It is
// immutable: with returns a changed copy that shares all but the nodes on one
// way down, so an edit costs by the length of its key. The zero value is empty.
type trie[V any] struct {
	root *trieNode[V]
}

type trieNode[V any] struct {
	label string // what comes between the node above and this one
	first string // of each kid, the first byte of its label
	kids  []*trieNode[V]
	value *V // nil: no key ends here
}

// get returns the value of key, or nil.
func (t trie[V]) get(key string) *V {
	for w := t.along(key); ; {
		v := w.next()
		if v == nil || w.rest == "" {
			return v
		}
	}
}

// with returns t with the value of key replaced; nil takes it out.
func (t trie[V]) with(key string, v *V) trie[V] { return trie[V]{t.root.with(key, v)} }

// along begins a walk over the values of all keys that text begins with, the
// shortest first.
func (t trie[V]) along(text string) trieWalk[V] { return trieWalk[V]{node: t.root, rest: text} }

// trieWalk is a walk that along began.
type trieWalk[V any] struct {
	node *trieNode[V]
	rest string // of the text, behind the key whose value came last
}

// next returns the value of the next longer key, or nil.
func (w *trieWalk[V]) next() *V {
	for n := w.node; n != nil; n = w.node {
		w.node = nil
		if !strings.HasPrefix(w.rest, n.label) {
			return nil
		}
		w.rest = w.rest[len(n.label):]
		if w.rest != "" {
			if i := strings.IndexByte(n.first, w.rest[0]); i >= 0 {
				w.node = n.kids[i]
			}
		}
		if n.value != nil {
			return n.value
		}
	}
	return nil
}

// each calls f for every value.
func (t trie[V]) each(f func(*V)) { t.root.each(f) }

func (n *trieNode[V]) each(f func(*V)) {
	if n == nil {
		return
	}
	if n.value != nil {
		f(n.value)
	}
	for _, kid := range n.kids {
		kid.each(f)
	}
}

func (n *trieNode[V]) with(key string, v *V) *trieNode[V] {
	if n == nil {
		if v == nil {
			return nil
		}
		return &trieNode[V]{label: key, value: v}
	}
	same := 0
	for same < len(key) && same < len(n.label) && key[same] == n.label[same] {
		same++
	}
	if same < len(n.label) {
		return n.split(same, key, v)
	}
	c := *n
	if key = key[same:]; key == "" {
		c.value = v
	} else {
		c.setKid(key, v)
	}
	return c.tidy()
}

// split returns n divided behind its label's first bytes, with v at key, which
// parts from the label there.
func (n *trieNode[V]) split(at int, key string, v *V) *trieNode[V] {
	if v == nil {
		return n
	}
	lower := *n
	lower.label = n.label[at:]
	upper := &trieNode[V]{label: n.label[:at], first: lower.label[:1], kids: []*trieNode[V]{&lower}}
	if key = key[at:]; key == "" {
		upper.value = v
	} else {
		upper.setKid(key, v)
	}
	return upper
}

// setKid has v at key below n, which is not shared yet; its kids are.
func (n *trieNode[V]) setKid(key string, v *V) {
	i := strings.IndexByte(n.first, key[0])
	if i < 0 {
		if v != nil {
			n.first += key[:1]
			n.kids = append(n.kids[:len(n.kids):len(n.kids)], &trieNode[V]{label: key, value: v})
		}
		return
	}
	kid := n.kids[i].with(key, v)
	kids := append(make([]*trieNode[V], 0, len(n.kids)), n.kids...)
	if kid != nil {
		kids[i] = kid
	} else {
		kids = append(kids[:i], kids[i+1:]...)
		n.first = n.first[:i] + n.first[i+1:]
	}
	n.kids = kids
}

// tidy returns what n should be, now that it may have lost its value or a kid.
func (n *trieNode[V]) tidy() *trieNode[V] {
	switch {
	case n.value != nil || len(n.kids) > 1:
		return n
	case len(n.kids) == 0:
		return nil
	}
	kid := *n.kids[0]
	kid.label = n.label + kid.label
	return &kid
}
