package field

import "strings"

// Line is one field line. A name that came over HTTP/2 or 3 is in lower case,
// one that came over HTTP/1.1 as its sender wrote it.
type Line struct {
	Name, Value string
	ID          ID
}

// List is a field section: its lines in order. The zero value is empty. Names
// are given in any case. A List is used by one goroutine at a time.
type List struct {
	lines []Line
	known uint32 // which IDs may be there, as bits; never lacks one that is
}

// MaxLines is how many field lines a head may have, whatever its version. Some
// backends set a cookie for everything, and nobody needs more than that.
const MaxLines = 1000

// keptLines is the room that Reset keeps; few heads have more lines.
const keptLines = 128

// Reset empties l and keeps its room, unless that is large.
func (l *List) Reset() {
	if l.known = 0; cap(l.lines) > keptLines {
		l.lines = nil
	}
	l.lines = l.lines[:0]
}

// Take has l have the lines of other, and other those of l: a message's fields
// change hands without being copied.
func (l *List) Take(other *List) { *l, *other = *other, *l }

// Lines returns the lines, which stay l's.
func (l *List) Lines() []Line { return l.lines }

// Len returns the number of lines.
func (l *List) Len() int { return len(l.lines) }

// Append adds a line whose ID is that of its name.
func (l *List) Append(line Line) {
	l.known |= 1 << line.ID
	l.lines = append(l.lines, line)
}

// Add adds a line.
func (l *List) Add(name, value string) {
	l.Append(Line{Name: name, Value: value, ID: Identify(name)})
}

// AddID adds a line with a known name.
func (l *List) AddID(id ID, value string) {
	l.Append(Line{Name: id.Name(), Value: value, ID: id})
}

// Has reports whether there is a line with a known name.
func (l *List) Has(id ID) bool { return l.find(id, "") >= 0 }

// Get returns the value of the first line with the name, or "".
func (l *List) Get(name string) string {
	if i := l.find(Identify(name), name); i >= 0 {
		return l.lines[i].Value
	}
	return ""
}

// GetID returns the value of the first line with a known name, or "".
func (l *List) GetID(id ID) string {
	if i := l.find(id, ""); i >= 0 {
		return l.lines[i].Value
	}
	return ""
}

// find returns where the first line with the name is, or -1. name matters only
// where id is Other.
func (l *List) find(id ID, name string) int {
	if l.known&(1<<id) == 0 {
		return -1
	}
	for i := range l.lines {
		if line := &l.lines[i]; line.ID == id && (id != Other || EqualFold(line.Name, name)) {
			return i
		}
	}
	return -1
}

// Set has the value be the only one with the name, in the place of the first.
func (l *List) Set(name, value string) { l.set(Identify(name), name, value) }

// SetID is Set for a known name.
func (l *List) SetID(id ID, value string) { l.set(id, id.Name(), value) }

func (l *List) set(id ID, name, value string) {
	i := l.find(id, name)
	if i < 0 {
		l.Append(Line{Name: name, Value: value, ID: id})
		return
	}
	l.lines[i].Value = value
	l.del(id, name, i+1)
}

// Del removes the lines with the name.
func (l *List) Del(name string) { l.del(Identify(name), name, 0) }

// DelID removes the lines with a known name.
func (l *List) DelID(id ID) { l.del(id, "", 0) }

func (l *List) del(id ID, name string, from int) {
	if l.known&(1<<id) == 0 {
		return
	}
	kept := l.lines[:from]
	for _, line := range l.lines[from:] {
		if line.ID != id || id == Other && !EqualFold(line.Name, name) {
			kept = append(kept, line)
		}
	}
	l.lines = kept
}

// DelFunc removes the lines that drop reports true for.
func (l *List) DelFunc(drop func(line *Line) bool) {
	n := 0
	for i := range l.lines {
		if drop(&l.lines[i]) {
			continue
		}
		if n != i {
			l.lines[n] = l.lines[i]
		}
		n++
	}
	l.lines = l.lines[:n]
}

// HasToken reports whether token is an element of the comma-separated lists that
// the lines with a known name hold, whatever its case and parameters.
func (l *List) HasToken(id ID, token string) bool {
	if l.known&(1<<id) == 0 {
		return false
	}
	for i := range l.lines {
		if l.lines[i].ID == id && ListHas(l.lines[i].Value, token) {
			return true
		}
	}
	return false
}

// ListHas reports whether token is an element of a comma-separated list,
// whatever its case and parameters.
func ListHas(list, token string) bool {
	for more := true; more; {
		var element string
		element, list, more = strings.Cut(list, ",")
		if i := strings.IndexByte(element, ';'); i >= 0 {
			element = element[:i]
		}
		if EqualFold(strings.Trim(element, " \t"), token) {
			return true
		}
	}
	return false
}

// MayTrail reports whether a field may stand in a trailer section: it neither
// frames nor routes a message, nor says who asks, nor how its content is to be
// read (RFC 9110 section 6.5.1).
func MayTrail(name string) bool {
	if Identify(name).IsHopByHop() {
		return false
	}
	for _, banned := range untrailed {
		if EqualFold(name, banned) {
			return false
		}
	}
	return len(name) < 3 || !EqualFold(name[:3], "if-")
}

var untrailed = []string{
	"Host", "Content-Length", "Content-Encoding", "Content-Range", "Content-Type", "Cache-Control", "Expect", "Max-Forwards",
	"Pragma", "Range", "Authorization", "WWW-Authenticate", "Set-Cookie", "Cookie", "Age", "Date", "Expires", "Location",
	"Retry-After", "Vary", "Warning",
}
