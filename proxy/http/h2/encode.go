package h2

import (
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
)

const (
	// maxEncoderTable bounds the table that an Encoder makes use of, in bytes.
	maxEncoderTable = 4096
	// maxIndexed bounds what a field may have to be put into the table, name and
	// value.
	maxIndexed = 256
	// seenSlots is how many fields that are not in the table an Encoder
	// remembers to have met.
	seenSlots = 64
)

// Encoder encodes the field blocks of one direction of a connection. The zero
// value is ready, for a peer with the default table. It is used by one goroutine
// at a time, in the order of the wire.
//
// A field that was met before goes into the dynamic table, so that those which
// are the same in each message take one octet, and those which never are the
// same push nothing out. Strings are not Huffman-coded: what repeats is in the
// table, and the rest is not worth the time.
type Encoder struct {
	table   table
	hashes  []uint32 // of the table's ring, by place
	limited bool     // the peer's table is smaller than maxEncoderTable: limit counts
	limit   int
	tell    bool     // the peer is to be told of the limit
	least   int      // the smallest limit that was set since it was told
	seen    []uint32 // hashes of fields met lately
}

// SetLimit says how large a table the peer allows, in bytes.
func (e *Encoder) SetLimit(n uint32) {
	limit := int(min(n, maxEncoderTable))
	if limit == e.max() {
		return
	}
	if !e.tell || limit < e.least {
		e.least = limit
	}
	e.limited, e.limit, e.tell = true, limit, true
	e.table.shrink(limit)
}

func (e *Encoder) max() int {
	if e.limited {
		return e.limit
	}
	return maxEncoderTable
}

// Begin appends what a field block has to begin with.
func (e *Encoder) Begin(b []byte) []byte {
	if !e.tell {
		return b
	}
	e.tell = false
	if e.least < e.limit {
		// Both are to be told. x/net's decoder takes the second only where the
		// first has left nothing in the table.
		e.table.shrink(0)
		b = append(b, 0x20)
	}
	return appendInteger(b, 0x20, 5, e.limit)
}

// Status appends the field :status.
func (e *Encoder) Status(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x80|8)
	case 204:
		return append(b, 0x80|9)
	case 206:
		return append(b, 0x80|10)
	case 304:
		return append(b, 0x80|11)
	case 400:
		return append(b, 0x80|12)
	case 404:
		return append(b, 0x80|13)
	case 500:
		return append(b, 0x80|14)
	}
	return strconv.AppendInt(append(b, 8, 3), int64(status), 10) // a literal with the name of entry 8
}

// Pseudo is a pseudo-header field of requests.
type Pseudo uint8

// The pseudo-header fields of requests, as indexes of the static table.
const (
	Authority Pseudo = 1
	Method    Pseudo = 2
	Path      Pseudo = 4
	Scheme    Pseudo = 6
)

// Pseudo appends a pseudo-header field of a request.
func (e *Encoder) Pseudo(b []byte, p Pseudo, value string) []byte {
	for i := int(p); i < len(staticTable) && staticTable[i-1].name == staticTable[p-1].name; i++ {
		if staticTable[i-1].value == value {
			return append(b, 0x80|byte(i))
		}
	}
	if p == Path {
		return appendString(append(b, byte(p)), value) // mostly another each time
	}
	return e.append(b, staticTable[p-1].name, value, int(p))
}

// Protocol appends the field :protocol (RFC 8441).
func (e *Encoder) Protocol(b []byte, value string) []byte { return e.append(b, ":protocol", value, 0) }

// Fields appends the lines of l, without those that belong to connections of
// HTTP/1.1.
func (e *Encoder) Fields(b []byte, l *field.List) []byte {
	for i := range l.Lines() {
		b = e.Line(b, &l.Lines()[i])
	}
	return b
}

// Line appends a field, its name in lower case, unless it belongs to connections
// of HTTP/1.1. It keeps no hold on it.
func (e *Encoder) Line(b []byte, l *field.Line) []byte {
	switch l.ID {
	case field.Connection, field.KeepAlive, field.ProxyConnection, field.TransferEncoding, field.Upgrade:
		return b
	case field.ContentLength:
		return appendString(append(b, 0x0f, 28-15), l.Value) // another each time
	case field.Other:
	default:
		return e.append(b, l.ID.Lower(), l.Value, int(staticNames[l.ID]))
	}
	var room [64]byte
	name := appendLower(room[:0], l.Name)
	return e.append(b, str(name), l.Value, staticName(str(name)))
}

// append appends a field whose name is in lower case; static is the index of an
// entry with that name, or 0.
func (e *Encoder) append(b []byte, name, value string, static int) []byte {
	if neverIndexed(name) {
		return appendLiteral(b, 0x10, 4, static, name, value)
	}
	if len(name)+len(value) > maxIndexed {
		return appendLiteral(b, 0, 4, static, name, value)
	}
	hash := hashOf(name, value)
	if i := e.find(hash, name, value); i >= 0 {
		return appendInteger(b, 0x80, 7, 1+len(staticTable)+i)
	}
	if !e.meets(hash) || len(name)+len(value)+overhead > e.max() {
		return appendLiteral(b, 0, 4, static, name, value)
	}
	both := strings.Clone(name) + value
	e.table.add(line{Line: field.Line{Name: both[:len(name)], Value: both[len(name):]}}, e.max())
	if len(e.hashes) != len(e.table.ring) {
		e.rehash()
	}
	e.hashes[(e.table.first+e.table.count-1)&(len(e.hashes)-1)] = hash
	return appendLiteral(b, 0x40, 6, static, name, value)
}

// find returns the place of a field in the table, from the newest, or -1.
func (e *Encoder) find(hash uint32, name, value string) int {
	t := &e.table
	for i := range t.count {
		at := (t.first + t.count - 1 - i) & (len(t.ring) - 1)
		if e.hashes[at] == hash && t.ring[at].Name == name && t.ring[at].Value == value {
			return i
		}
	}
	return -1
}

func (e *Encoder) rehash() {
	e.hashes = make([]uint32, len(e.table.ring))
	for i := range e.table.count {
		at := (e.table.first + i) & (len(e.hashes) - 1)
		e.hashes[at] = hashOf(e.table.ring[at].Name, e.table.ring[at].Value)
	}
}

// meets reports whether a field was met before, lately.
func (e *Encoder) meets(hash uint32) bool {
	if e.seen == nil {
		e.seen = make([]uint32, seenSlots)
	}
	slot := &e.seen[hash%seenSlots]
	before := *slot == hash
	*slot = hash
	return before
}

// neverIndexed reports whether a field may hold a secret that others on the
// connection must not be able to guess at (RFC 7541 section 7.1).
func neverIndexed(name string) bool {
	switch len(name) {
	case 6:
		return name == "cookie"
	case 10:
		return name == "set-cookie"
	case 13:
		return name == "authorization"
	case 19:
		return name == "proxy-authorization"
	}
	return false
}

func hashOf(name, value string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	h = (h ^ ':') * 16777619
	for i := range len(value) {
		h = (h ^ uint32(value[i])) * 16777619
	}
	return h
}

// appendLiteral appends a field that is spelled out, with the name of an entry
// where static is one.
func appendLiteral(b []byte, pattern byte, bits uint8, static int, name, value string) []byte {
	b = appendInteger(b, pattern, bits, static)
	if static == 0 {
		b = appendString(b, name)
	}
	return appendString(b, value)
}

func appendString(b []byte, s string) []byte {
	return append(appendInteger(b, 0, 7, len(s)), s...)
}

func appendInteger(b []byte, pattern byte, bits uint8, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(b, pattern|byte(n))
	}
	b = append(b, pattern|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendLower(b []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// staticNames has, by ID, the index of a static entry with the name, or 0.
var staticNames = func() (static [field.NumIDs]uint8) {
	for id := range static {
		static[id] = uint8(staticName(field.ID(id).Lower()))
	}
	return static
}()

// staticName returns the index of a static entry with a name, or 0.
func staticName(name string) int { return staticIndex[name] }

var staticIndex = func() map[string]int {
	m := map[string]int{}
	for i := len(staticTable) - 1; i >= 0; i-- {
		if staticTable[i].name[0] != ':' {
			m[staticTable[i].name] = i + 1
		}
	}
	return m
}()
