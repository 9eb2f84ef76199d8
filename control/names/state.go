package names

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
)

// The keys, below the prefix, that the leader writes and that commands use.
const (
	// ClusterKey has what markers call the cluster.
	ClusterKey = "dns/cluster"
	// StateFolder has a State for each name.
	StateFolder = "dns/state/"
	// RequestFolder has a Request for each name that somebody waits for.
	RequestFolder = "dns/requests/"
)

// State is how a name fares, as the leader writes it to etcd on change. It is
// also what the next leader goes by.
type State struct {
	Name     string `json:"name"`
	Provider string `json:"provider,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Leader   string `json:"leader"` // the node that wrote it
	Rev      int64  `json:"rev"`    // revision of the key's value that it is of
	Owned    bool   `json:"owned"`
	// Wanted are the addresses that the name is to have, and Published those that
	// it has, in their order.
	Wanted    []string `json:"wanted"`
	Published []string `json:"published"`
	// Add, Update and Remove are what has yet to be done, and Held says why it has
	// not been.
	Add    []string `json:"add,omitempty"`
	Update []string `json:"update,omitempty"`
	Remove []string `json:"remove,omitempty"`
	Held   string   `json:"held,omitempty"`
	// Trouble is why the name is not as wanted; "": it is. Out says of whom it is
	// not published, and why.
	Trouble string   `json:"trouble,omitempty"`
	Out     []string `json:"out,omitempty"`
	Changed string   `json:"changed,omitempty"` // when records were changed last, RFC 3339
	Change  string   `json:"change,omitempty"`  // what that was
	// Drift says when records were last found changed by other hands, and how.
	Drift  string `json:"drift,omitempty"`
	Budget Budget `json:"budget"`
	// Answered is the revision of the last Request that this is the answer to.
	Answered int64 `json:"answered,omitempty"`

	left []string // what the name was left with; nil: not known
}

// MarshalText is for etcd.
func (s State) text() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // of strings, numbers and times
	}
	return string(text)
}

// ParseState reads the value of a key below StateFolder.
func ParseState(value []byte) (State, error) {
	var s State
	err := json.Unmarshal(value, &s)
	return s, err
}

// Request asks the leader to look at a name now.
type Request struct {
	// Apply has changes made that are held back by dry_run or for their number.
	Apply bool `json:"apply,omitempty"`
	// Adopt has the name taken over with the records that it has.
	Adopt bool   `json:"adopt,omitempty"`
	By    string `json:"by,omitempty"`
}

// Text returns r as it stands in etcd.
func (r Request) Text() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // of two booleans and a string
	}
	return string(text)
}

// request is a Request as it stands in etcd.
type request struct {
	Request
	rev int64
}

func parseRequest(kv etcd.KV) (name string, r request) {
	r.rev = kv.ModRev
	// What cannot be read asks for a look, which does no harm.
	_ = json.Unmarshal(kv.Value, &r.Request)
	return strings.TrimPrefix(kv.Key, RequestFolder), r
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func stamp(t time.Time) string { return t.UTC().Truncate(time.Second).Format(time.RFC3339) }
