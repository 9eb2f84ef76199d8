package h3

import (
	"unsafe"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// lineCost is what a field counts besides its bytes (RFC 9114 section 4.2.2).
const lineCost = 32

// Section reads a section of fields (RFC 9204 section 4.5). The zero value is
// ready for Begin. The strings that it gives lie in the bytes that it reads, or
// in its own buffer, and hold until Begin is called again.
type Section struct {
	p    []byte
	text []byte // decoded strings; those in use are never moved
	left int    // of the size that is allowed
}

// textRoom is what a Section has for decoded strings from the start.
const textRoom = 512

// Begin begins to read a section of at most limit bytes, counted as RFC 9114
// section 4.2.2 has it.
func (s *Section) Begin(b []byte, limit int) error {
	s.text, s.left = s.text[:0], limit
	required, rest, err := integer(b, 8)
	if err != nil {
		return err
	}
	if required != 0 {
		return errDynamic
	}
	// A sign, or any base, means nothing without the dynamic table, but a
	// negative one is not allowed (RFC 9204 section 4.5.1.2).
	if len(rest) == 0 || rest[0]&0x80 != 0 {
		return errPrefix
	}
	_, s.p, err = integer(rest, 7)
	return err
}

// more reports whether there is another line.
func (s *Section) more() bool { return len(s.p) > 0 }

// next reads a line. pseudo says which pseudo-header field it is, if it is one.
func (s *Section) next() (line field.Line, p pseudo, err error) {
	switch b := s.p[0]; {
	case b&0x80 != 0: // indexed (section 4.5.2)
		e, err := s.static(b&0x40 != 0, 6)
		if err != nil {
			return line, 0, err
		}
		line, p = field.Line{Name: e.name, Value: e.value, ID: e.id}, e.pseudo
	case b&0x40 != 0: // literal with a name reference (section 4.5.4)
		e, err := s.static(b&0x10 != 0, 4)
		if err != nil {
			return line, 0, err
		}
		line, p = field.Line{Name: e.name, ID: e.id}, e.pseudo
		if line.Value, err = s.string(7); err != nil {
			return line, 0, err
		}
	case b&0x20 != 0: // literal with a literal name (section 4.5.6)
		if line.Name, err = s.string(3); err != nil {
			return line, 0, err
		}
		if line.Value, err = s.string(7); err != nil {
			return line, 0, err
		}
		line.ID, p = field.Identify(line.Name), pseudoOf(line.Name)
	default: // both other kinds refer to the dynamic table
		return line, 0, errDynamic
	}
	if s.left -= len(line.Name) + len(line.Value) + lineCost; s.left < 0 {
		return line, 0, ErrTooLarge
	}
	return line, p, nil
}

func (s *Section) static(is bool, bits uint8) (*entry, error) {
	if !is {
		return nil, errDynamic
	}
	i, rest, err := integer(s.p, bits)
	if err != nil {
		return nil, err
	}
	if i >= uint64(len(staticTable)) {
		return nil, errStatic
	}
	s.p = rest
	return &staticTable[i], nil
}

// string reads a string whose length has a prefix of so many bits, behind a flag
// for Huffman coding.
func (s *Section) string(bits uint8) (string, error) {
	if len(s.p) == 0 {
		return "", errCutShort
	}
	huffman := s.p[0]&(1<<bits) != 0
	n, rest, err := integer(s.p, bits)
	if err != nil {
		return "", err
	}
	if n > uint64(len(rest)) {
		return "", errCutShort
	}
	raw := rest[:n]
	s.p = rest[n:]
	if !huffman {
		return unsafe.String(unsafe.SliceData(raw), len(raw)), nil
	}
	return s.decode(raw)
}

// decode undoes Huffman coding, whose shortest code has 5 bits.
func (s *Section) decode(raw []byte) (string, error) {
	if most := len(raw) * 8 / 5; cap(s.text)-len(s.text) < most {
		s.text = make([]byte, 0, max(textRoom, most, 2*cap(s.text)))
	}
	from, ok := len(s.text), false
	if s.text, ok = h2.AppendHuffman(s.text, raw); !ok {
		return "", errHuffman
	}
	text := s.text[from:]
	return unsafe.String(unsafe.SliceData(text), len(text)), nil
}

// join returns strings with sep between them, made in the section's buffer.
func (s *Section) join(parts []string, sep string) string {
	n := len(sep) * len(parts)
	for _, part := range parts {
		n += len(part)
	}
	if cap(s.text)-len(s.text) < n {
		s.text = make([]byte, 0, max(textRoom, n))
	}
	from := len(s.text)
	for i, part := range parts {
		if i > 0 {
			s.text = append(s.text, sep...)
		}
		s.text = append(s.text, part...)
	}
	text := s.text[from:]
	return unsafe.String(unsafe.SliceData(text), len(text))
}

// Text returns the buffer that decoded strings lie in.
func (s *Section) Text() []byte { return s.text }

// maxKeptText is the largest buffer that is kept from section to section.
const maxKeptText = 8 << 10

// Trim lets go of a buffer that has grown large.
func (s *Section) Trim() {
	if cap(s.text) > maxKeptText {
		s.text = nil
	}
	s.p = nil
}

// integer reads an integer with a prefix of so many bits (RFC 7541 section 5.1).
func integer(b []byte, bits uint8) (v uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, errCutShort
	}
	most := uint64(1)<<bits - 1
	if v = uint64(b[0]) & most; v < most {
		return v, b[1:], nil
	}
	for i, shift := 1, 0; i < len(b); i, shift = i+1, shift+7 {
		if shift > 28 {
			return 0, nil, errInteger // no length or index here is that large
		}
		v += uint64(b[i]&0x7f) << shift
		if b[i]&0x80 == 0 {
			return v, b[i+1:], nil
		}
	}
	return 0, nil, errCutShort
}

// appendInteger appends an integer with a prefix of so many bits behind flags.
func appendInteger(b []byte, flags byte, bits uint8, v uint64) []byte {
	most := uint64(1)<<bits - 1
	if v < most {
		return append(b, flags|byte(v))
	}
	b = append(b, flags|byte(most))
	for v -= most; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}
