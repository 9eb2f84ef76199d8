package portpool

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// State is what a port is to those who want one.
type State string

const (
	// Available: an environment may get it.
	Available State = "available"
	// Allocated: an environment holds it.
	Allocated State = "allocated"
	// Reserved: set aside; only somebody who asks for that very port gets it.
	Reserved State = "reserved"
	// Quarantined: released not long ago. Only the environment that had it, for
	// the same service, may have it again.
	Quarantined State = "quarantined"
	// Mapped: nobody holds it, but somebody has put a mapping there by hand.
	Mapped State = "mapped"
)

// Allocation is the value of the key allocations/<proto>/<port>: who holds the
// port, or who held it last and until when it rests, or why it is set aside.
type Allocation struct {
	// Env and Service say whose it is, or was.
	Env     string `json:"env"`
	Service string `json:"service"`
	// Since is when it was allocated or set aside.
	Since time.Time `json:"since"`
	// Released, unless zero, is when it was given back, and Until when the rest
	// ends that it needs. The key stays for a while after that, so that the same
	// environment may get the same port again.
	Released time.Time `json:"released"`
	Until    time.Time `json:"until"`
	// Reserved, unless empty, is what the port is set aside for.
	Reserved string `json:"reserved"`
}

// State returns what the port is at the time now.
func (a *Allocation) State(now time.Time) State {
	switch {
	case a.Reserved != "":
		return Reserved
	case a.Released.IsZero():
		return Allocated
	case now.Before(a.Until):
		return Quarantined
	}
	return Available
}

// Release returns the allocation as it is once given back at the time now, to
// rest for so long.
func (a *Allocation) Release(now time.Time, rest time.Duration) *Allocation {
	b := *a
	b.Released, b.Until = now, now.Add(rest)
	return &b
}

// ParseAllocation reads the value of a key below allocations/. The error is a
// *router.FieldError.
func ParseAllocation(value []byte) (*Allocation, error) {
	a := new(Allocation)
	if err := router.Decode(value, a); err != nil {
		return nil, err
	}
	switch {
	case a.Reserved == "" && (a.Env == "" || a.Service == ""):
		return nil, &router.FieldError{Msg: "names neither env and service, who hold it, nor what it is reserved for"}
	case a.Reserved != "" && (a.Env != "" || a.Service != "" || !a.Released.IsZero()):
		return nil, &router.FieldError{Path: "reserved", Msg: "goes with nothing but since: nobody holds what is set aside"}
	case a.Released.IsZero() != a.Until.IsZero():
		return nil, &router.FieldError{Path: "until", Msg: "goes with released, and released with until"}
	}
	return a, nil
}

// MarshalJSON writes what is set, as ParseAllocation reads it.
func (a *Allocation) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Env      string    `json:"env,omitempty"`
		Service  string    `json:"service,omitempty"`
		Since    time.Time `json:"since,omitzero"`
		Released time.Time `json:"released,omitzero"`
		Until    time.Time `json:"until,omitzero"`
		Reserved string    `json:"reserved,omitempty"`
	}{a.Env, a.Service, a.Since.UTC(), utc(a.Released), utc(a.Until), a.Reserved})
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

// folder is where allocations are, below the prefix.
const folder = "allocations/"

// Key returns the key of a port's allocation, below the prefix.
func Key(proto router.Proto, port int) string {
	return folder + proto.String() + "/" + strconv.Itoa(port)
}

// ParseKey reads a key as Key writes it.
func ParseKey(key string) (router.Proto, int, error) {
	rest, ok := strings.CutPrefix(key, folder)
	if ok {
		// Ports are written alike in both places.
		if k, err := router.ParseKey("ports/" + rest); err == nil {
			return k.Proto, k.Port, nil
		}
	}
	return 0, 0, fmt.Errorf("%q is not an allocation's key; they are allocations/tcp/<port> and allocations/udp/<port>", key)
}
