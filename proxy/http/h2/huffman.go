package h2

// Huffman codes are read four bits at a time, by a machine whose states are the
// inner nodes of the code's tree: two steps for each octet, whatever it holds.

// huffmanStep is what four bits come to in a state.
type huffmanStep struct {
	next   uint8 // the state then
	emit   uint8 // the octet that has ended
	has    bool  // one has
	failed bool  // the bits belong to no code: EOS, or padding that is too long
}

// huffmanMachine is the machine; the first state is 0.
type huffmanMachine struct {
	steps [256][16]huffmanStep
	// ends has the states that a string may end in: all bits since the last code
	// were ones, and fewer than eight.
	ends [256]bool
}

var huffman = newHuffmanMachine()

// noLeaf marks what is not a leaf of the tree, while it is made.
const noLeaf = -1

type huffmanNode struct {
	child [2]int // of inner nodes
	leaf  int    // octet, or noLeaf
	state uint8
}

// eosOctet stands for EOS, which must not be decoded (RFC 7541 section 5.2).
const eosOctet = 256

func newHuffmanMachine() *huffmanMachine {
	m := new(huffmanMachine)
	nodes := []huffmanNode{{leaf: noLeaf}}
	add := func(code uint32, bits uint8, octet int) {
		at := 0
		for i := int(bits) - 1; i >= 0; i-- {
			bit := code >> i & 1
			if nodes[at].child[bit] == 0 {
				nodes = append(nodes, huffmanNode{leaf: noLeaf})
				nodes[at].child[bit] = len(nodes) - 1
			}
			at = nodes[at].child[bit]
		}
		nodes[at].leaf = octet
	}
	for octet, code := range huffmanCodes {
		add(code, huffmanLens[octet], octet)
	}
	add(0x3fffffff, 30, eosOctet)
	inner := []int{}
	for i := range nodes {
		if nodes[i].leaf == noLeaf {
			nodes[i].state = uint8(len(inner))
			inner = append(inner, i)
		}
	}
	for state, at := range inner {
		for nibble := range 16 {
			m.steps[state][nibble] = huffmanWalk(nodes, at, nibble)
		}
	}
	for at, depth := 0, 0; depth < 8; at, depth = nodes[at].child[1], depth+1 {
		m.ends[nodes[at].state] = true
	}
	return m
}

func huffmanWalk(nodes []huffmanNode, at, nibble int) (s huffmanStep) {
	for i := 3; i >= 0; i-- {
		at = nodes[at].child[nibble>>i&1]
		switch leaf := nodes[at].leaf; {
		case leaf == eosOctet:
			return huffmanStep{failed: true}
		case leaf != noLeaf:
			s.emit, s.has = uint8(leaf), true // the shortest code has five bits: there is one at most
			at = 0
		}
	}
	s.next = nodes[at].state
	return s
}

// AppendHuffman appends what src decodes to, at most eight fifths of its length;
// ok is false where it is no code. QPACK has the same (RFC 9204 section 4.1.2).
func AppendHuffman(b, src []byte) (decoded []byte, ok bool) {
	m, state := huffman, uint8(0)
	for _, c := range src {
		s := &m.steps[state][c>>4]
		if s.has {
			b = append(b, s.emit)
		}
		if s.failed {
			return b, false
		}
		s = &m.steps[s.next][c&0xf]
		if s.has {
			b = append(b, s.emit)
		}
		if s.failed {
			return b, false
		}
		state = s.next
	}
	return b, m.ends[state]
}
