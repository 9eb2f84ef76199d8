package h2

import "strings"

// TableSize is the size of the dynamic table that a Decoder allows the peer, in
// bytes (RFC 7541 section 4): what is agreed where nobody says otherwise.
const TableSize = 4096

// Decoder decodes the field blocks of one direction of a connection. The zero
// value is ready. It is used by one goroutine, in the order of the wire.
type Decoder struct {
	table   table
	limited bool   // the peer has made its table smaller than TableSize: limit counts
	limit   int    // of the table, as the peer has set it
	scratch []byte // what is indexed is decoded here first
}

var (
	errHuffman = &ConnError{CompressionError, "a Huffman-coded string is not well formed"}
	errInteger = &ConnError{CompressionError, "an integer is too large"}
	errIndex   = &ConnError{CompressionError, "an index is beyond the tables"}
	errShort   = &ConnError{CompressionError, "a field block ends within a field"}
	errUpdate  = &ConnError{CompressionError, "a table size is beyond what was agreed, or does not come first"}
)

// Decode decodes a whole field block into h. Its errors are of compression, and
// end the connection; whether h is well formed is for h.Check to say. A field
// that does not fit into h any more is decoded and dropped, so that the tables
// stay in step.
func (d *Decoder) Decode(block []byte, h *Head) error {
	for first := true; len(block) > 0; {
		var err error
		switch c := block[0]; {
		case c&0x80 != 0:
			block, err = d.indexed(block, h)
		case c&0xc0 == 0x40:
			block, err = d.literal(block, h, 6, true)
		case c&0xe0 == 0x20:
			if !first {
				return errUpdate
			}
			block, err = d.resize(block)
			if err != nil {
				return err
			}
			continue // more of them may come first
		default: // without indexing, or never indexed
			block, err = d.literal(block, h, 4, false)
		}
		if err != nil {
			return err
		}
		first = false
	}
	if cap(d.scratch) > arenaRoom {
		d.scratch = nil
	}
	return nil
}

func (d *Decoder) indexed(block []byte, h *Head) ([]byte, error) {
	i, rest, err := integer(block, 7)
	if err != nil {
		return nil, err
	}
	l := d.at(i)
	if l == nil {
		return nil, errIndex
	}
	h.add(l)
	return rest, nil
}

// at returns the field with an index, or nil.
func (d *Decoder) at(i uint32) *line {
	if i-1 < uint32(len(staticLines)) {
		return &staticLines[i-1]
	}
	return d.table.at(int(i) - 1 - len(staticLines))
}

func (d *Decoder) resize(block []byte) ([]byte, error) {
	n, rest, err := integer(block, 5)
	if err != nil {
		return nil, err
	}
	if n > TableSize {
		return nil, errUpdate
	}
	d.limited, d.limit = true, int(n)
	d.table.shrink(d.limit)
	return rest, nil
}

// literal decodes a field that is spelled out. What goes into the table is
// copied once for all messages that will hold it; the rest lies in h.
func (d *Decoder) literal(block []byte, h *Head, bits uint8, keep bool) ([]byte, error) {
	i, rest, err := integer(block, bits)
	if err != nil {
		return nil, err
	}
	name := ""
	if i > 0 {
		known := d.at(i)
		if known == nil {
			return nil, errIndex
		}
		name = known.Name
	}
	into := h
	if keep || h.TooLarge {
		into = nil // into scratch
	}
	d.scratch = d.scratch[:0]
	if i == 0 {
		if name, rest, err = d.text(rest, into); err != nil {
			return nil, err
		}
	}
	value, rest, err := d.text(rest, into)
	if err != nil {
		return nil, err
	}
	if !keep {
		if into == nil {
			h.size += len(name) + len(value) + overhead
			return rest, nil
		}
		l := judge(name, value)
		h.add(&l)
		return rest, nil
	}
	if i == 0 {
		both := strings.Clone(str(d.scratch))
		name, value = both[:len(name)], both[len(name):]
	} else {
		value = strings.Clone(value)
	}
	l := judge(name, value)
	h.add(&l)
	limit := TableSize
	if d.limited {
		limit = d.limit
	}
	d.table.add(l, limit)
	return rest, nil
}

// text decodes a string into h's room, or where h is nil behind what is in
// scratch.
func (d *Decoder) text(block []byte, h *Head) (s string, rest []byte, err error) {
	if len(block) == 0 {
		return "", nil, errShort
	}
	coded := block[0]&0x80 != 0
	n, rest, err := integer(block, 7)
	if err != nil {
		return "", nil, err
	}
	if int(n) > len(rest) {
		return "", nil, errShort
	}
	raw, rest := rest[:n], rest[n:]
	most := len(raw)
	if coded {
		most = 2 * len(raw) // the shortest code has five bits
	}
	var b []byte
	if h != nil {
		b = h.room(most)
	} else {
		if cap(d.scratch)-len(d.scratch) < most {
			d.scratch = append(make([]byte, 0, 2*(len(d.scratch)+most)), d.scratch...)
		}
		b = d.scratch[len(d.scratch):]
	}
	if coded {
		var ok bool
		if b, ok = AppendHuffman(b, raw); !ok {
			return "", nil, errHuffman
		}
	} else {
		b = append(b, raw...)
	}
	if h != nil {
		h.giveBack(most - len(b))
	} else {
		d.scratch = d.scratch[:len(d.scratch)+len(b)]
	}
	return str(b), rest, nil
}

// giveBack returns the last n bytes of what room handed out.
func (h *Head) giveBack(n int) { h.arena = h.arena[:len(h.arena)-n] }

// integer decodes an integer whose first octet has so many bits of it (RFC 7541
// section 5.1). Nothing needs more than 31 bits.
func integer(b []byte, bits uint8) (n uint32, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, errShort
	}
	most := uint32(1)<<bits - 1
	n = uint32(b[0]) & most
	if n < most {
		return n, b[1:], nil
	}
	for i, shift := 1, 0; ; i, shift = i+1, shift+7 {
		if i == len(b) {
			return 0, nil, errShort
		}
		c := b[i]
		if shift > 21 {
			return 0, nil, errInteger
		}
		n += uint32(c&0x7f) << shift
		if c&0x80 == 0 {
			return n, b[i+1:], nil
		}
	}
}

// table is a dynamic table: a ring, the newest entry last.
type table struct {
	ring  []line
	first int
	count int
	size  int // as RFC 7541 section 4.1 counts
}

// at returns the i-th newest entry, or nil.
func (t *table) at(i int) *line {
	if i < 0 || i >= t.count {
		return nil
	}
	return &t.ring[(t.first+t.count-1-i)&(len(t.ring)-1)]
}

// shrink drops the oldest entries until the table is within limit.
func (t *table) shrink(limit int) {
	for t.size > limit {
		oldest := &t.ring[t.first]
		t.size -= oldest.size()
		*oldest = line{}
		t.first = (t.first + 1) & (len(t.ring) - 1)
		t.count--
	}
}

// add takes l in and drops what has no more room. What is larger than the table
// empties it.
func (t *table) add(l line, limit int) {
	size := l.size()
	if size > limit {
		t.shrink(0)
		return
	}
	t.shrink(limit - size)
	if t.count == len(t.ring) {
		grown := make([]line, max(8, 2*len(t.ring)))
		for i := range t.count {
			grown[i] = t.ring[(t.first+i)&(len(t.ring)-1)]
		}
		t.ring, t.first = grown, 0
	}
	t.ring[(t.first+t.count)&(len(t.ring)-1)] = l
	t.count++
	t.size += size
}

// staticLines are the entries of the static table, judged.
var staticLines = func() (lines [len(staticTable)]line) {
	for i, s := range staticTable {
		lines[i] = judge(s.name, s.value)
	}
	return lines
}()
