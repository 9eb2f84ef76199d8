package dns

import (
	"fmt"
	"strings"

	"github.com/libdns/libdns"
)

// Error is a failed operation on one record. Its text carries the provider's
// own words.
type Error struct {
	Provider string // key under `dns:` in sluice.yaml
	Kind     string // a key of Kinds
	Attempts int    // calls made
	Hint     string // what the user could change; may be empty
	Left     bool   // the record may be there all the same: delete it when that works again
	Err      error  // what the provider's library said

	op    op
	zone  string
	rec   libdns.RR
	doubt bool // the record may have been added all the same
	// passing: the provider as such failed, and may work again in a moment.
	passing bool
}

// Error returns one line, for example: dns provider knot (rfc2136): add TXT
// record _acme-challenge to zone x.test.: dns: bad authentication (...).
func (e *Error) Error() string {
	var b strings.Builder
	verb, prep := "add", "to"
	switch e.op {
	case opDelete:
		verb, prep = "delete", "from"
	case opCheck:
		verb, prep = "look for", "in"
	case opRead:
		verb, prep = "read", "in"
	case opUpdate, opSwap:
		verb, prep = "change", "in"
	}
	fmt.Fprintf(&b, "dns provider %s (%s): %s %s record %s %s zone %s: %v",
		e.Provider, e.Kind, verb, e.rec.Type, e.rec.Name, prep, e.zone, e.Err)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, ", %d attempts", e.Attempts)
	}
	return b.String()
}

// Unwrap returns what the provider's library said.
func (e *Error) Unwrap() error { return e.Err }
