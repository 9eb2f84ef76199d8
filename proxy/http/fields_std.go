package http

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

// addStd adds the fields of h to l, in the order of their names so that the same
// message always looks the same. What no line could hold is left out.
func addStd(l *field.List, h http.Header) {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range h[name] {
			if h1.ValidLine(name, value) {
				l.Add(name, value)
			}
		}
	}
}

// stdFields returns the fields of l as net/http has them, copied.
func stdFields(l *field.List) http.Header {
	h := make(http.Header, l.Len())
	copyStd(h, l)
	return h
}

// copyStd sets the fields of l in h.
func copyStd(h http.Header, l *field.List) {
	for _, line := range l.Lines() {
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(line.Name))
		h[name] = append(h[name], strings.Clone(line.Value))
	}
}

// joinNames returns the names of h as a list.
func joinNames(h http.Header) string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
