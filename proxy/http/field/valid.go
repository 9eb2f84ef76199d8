package field

import (
	"encoding/binary"
	"unsafe"
)

// IsLowerName reports whether name is a field name as HTTP/2 and 3 have it: a
// token without upper-case letters (RFC 9114 section 4.2).
func IsLowerName(name string) bool {
	for i := 0; i < len(name); i++ {
		if !isLowerToken[name[i]] {
			return false
		}
	}
	return name != ""
}

// IsValue reports whether value may be a field value: no control characters but
// tab, and no white space around it (RFC 9110 section 5.5).
func IsValue(value string) bool {
	if n := len(value); n > 0 && (isBlank(value[0]) || isBlank(value[n-1])) {
		return false
	}
	const ones = 0x0101010101010101
	i, bytes := 0, unsafe.Slice(unsafe.StringData(value), len(value))
	for ; i+8 <= len(bytes); i += 8 {
		// Eight bytes at once: the high bit of each that is below 0x20 or is 0x7f.
		x := binary.LittleEndian.Uint64(bytes[i:])
		y := x ^ 0x7f*ones
		if ((x-0x20*ones)&^x|(y-ones)&^y)&(0x80*ones) != 0 && !isText(value[i:i+8]) {
			return false
		}
	}
	return isText(value[i:])
}

func isText(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// isLowerToken has the characters of tokens (RFC 9110 section 5.6.2) but for
// upper-case letters.
var isLowerToken = func() (is [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		is[c] = true
	}
	return is
}()
