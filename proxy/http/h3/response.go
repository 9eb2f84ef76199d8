package h3

import "github.com/remotegpu/sluice/proxy/http/field"

// AppendHead appends a HEADERS frame with the head of a response. A status has
// three digits. Names are written in lower case; Huffman coding is not used, since
// it costs more than the bytes that it saves.
func AppendHead(b []byte, status int, fields *field.List) []byte {
	b, from := openHeaders(b)
	b = append(b, 0, 0) // no dynamic table
	if i := statusIndex(status); i >= 0 {
		b = appendInteger(b, 0xc0, 6, uint64(i))
	} else {
		b = appendInteger(b, 0x50, 4, anyStatus)
		b = append(b, 3, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10))
	}
	if fields != nil {
		for i := range fields.Lines() {
			l := &fields.Lines()[i]
			b = appendLine(b, l.Name, l.Value)
		}
	}
	return closeHeaders(b, from)
}

// AppendFields appends a HEADERS frame with a trailer section.
func AppendFields(b []byte, fields *field.List) []byte {
	b, from := openHeaders(b)
	b = append(b, 0, 0)
	for i := range fields.Lines() {
		l := &fields.Lines()[i]
		b = appendLine(b, l.Name, l.Value)
	}
	return closeHeaders(b, from)
}

func appendLine(b []byte, name, value string) []byte {
	i := nameIndex(name)
	if i < 0 {
		b = appendInteger(b, 0x20, 3, uint64(len(name)))
		for k := 0; k < len(name); k++ {
			c := name[k]
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			b = append(b, c)
		}
	} else if whole := lineIndex(i, value); whole >= 0 {
		return appendInteger(b, 0xc0, 6, uint64(whole))
	} else {
		b = appendInteger(b, 0x50, 4, uint64(i))
	}
	b = appendInteger(b, 0, 7, uint64(len(value)))
	return append(b, value...)
}
