package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// Store is the keys of one cluster. It is safe for concurrent use.
type Store struct {
	Client *etcd.Client
	// By says who changes keys through the store and how, for the history.
	By string
	// Ports are those that the cluster's nodes open for mappings.
	Ports router.Ports
}

// Wish is how somebody wants a key to be.
type Wish struct {
	Key    string // below the prefix
	Value  string
	Delete bool
}

// Change is what a wish comes to.
type Change = wire.Change

// Plan is what wishes come to, judged by the keys as they were at one revision.
type Plan struct {
	Rev     int64    `json:"revision"` // the one that was looked at
	Changes []Change `json:"changes"`  // in the order of their keys; what is as wanted already is left out
	Same    int      `json:"same"`     // how many keys are as wanted already
	// Findings say what nodes would refuse. A plan with any is not to be made.
	Findings []control.Finding `json:"findings,omitempty"`
	// Missing are the keys that were to be deleted and are not there.
	Missing []string `json:"missing,omitempty"`
	// kept are the keys that were to be put and have their values already, the
	// last of them since revision keptRev.
	kept    []string
	keptRev int64
	acted   int64 // revision of the last transaction, made by Commit, with a key on which nodes act
	// Meant says that its deletions are meant, however many they are.
	Meant bool `json:"-"`
}

// Plan looks at the cluster's keys and says what wishes come to. Each wish is
// for another key.
func (s *Store) Plan(ctx context.Context, wishes []Wish) (*Plan, error) {
	kvs, rev, err := s.Client.Read(ctx)
	if err != nil {
		return nil, err
	}
	return planFor(s.Ports, kvs, rev, wishes), nil
}

// PlanAll is Plan for all keys that people want to be some way, those too on which
// nodes do not act: the records of environments and what goes with them. Whoever
// wishes for those answers for their values.
func (s *Store) PlanAll(ctx context.Context, wishes []Wish) (*Plan, error) {
	kvs, rev, err := s.Client.ReadRecorded(ctx, 0)
	if err != nil {
		return nil, err
	}
	p, edits := compare(kvs, rev, wishes)
	kvs = slices.DeleteFunc(kvs, func(kv etcd.KV) bool { return !etcd.IsWatched(kv.Key) })
	edits = slices.DeleteFunc(edits, func(e etcd.Change) bool { return !etcd.IsWatched(e.Key) })
	if len(edits) > 0 {
		p.Findings = control.Rehearse(s.Ports, kvs, edits)
	}
	return p, nil
}

// Check says what nodes would refuse of wishes in an otherwise empty cluster.
func Check(ports router.Ports, wishes []Wish) []control.Finding {
	return planFor(ports, nil, 0, wishes).Findings
}

func planFor(ports router.Ports, kvs []etcd.KV, rev int64, wishes []Wish) *Plan {
	p, edits := compare(kvs, rev, wishes)
	if len(edits) > 0 {
		p.Findings = control.Rehearse(ports, kvs, edits)
	}
	return p
}

// compare returns what wishes come to, but for what nodes would refuse of that, and
// the edits that make it so.
func compare(kvs []etcd.KV, rev int64, wishes []Wish) (p *Plan, edits []etcd.Change) {
	there := make(map[string]etcd.KV, len(kvs))
	for _, kv := range kvs {
		there[kv.Key] = kv
	}
	p = &Plan{Rev: rev, Changes: []Change{}}
	for _, w := range wishes {
		kv, exists := there[w.Key]
		if w.Delete && !exists || !w.Delete && exists && sameValue(string(kv.Value), w.Value) {
			p.Same++
			if w.Delete {
				p.Missing = append(p.Missing, w.Key)
			} else {
				p.kept, p.keptRev = append(p.kept, w.Key), max(p.keptRev, kv.ModRev)
			}
			continue
		}
		c := Change{Key: w.Key, Since: kv.ModRev}
		if exists {
			before := string(kv.Value)
			c.Before = &before
		}
		if !w.Delete {
			c.After = &w.Value
		}
		p.Changes = append(p.Changes, c)
		edits = append(edits, etcd.Change{Key: w.Key, Value: []byte(w.Value), Deleted: w.Delete})
	}
	slices.SortFunc(p.Changes, func(a, b Change) int { return router.CompareKeys(a.Key, b.Key) })
	return p, edits
}

// Kept returns the keys that were to be put and have their values already, and
// the revision of the youngest of them.
func (p *Plan) Kept() (keys []string, rev int64) { return p.kept, p.keptRev }

// sameValue reports whether two values say the same: the order of JSON members
// and the space between them say nothing.
func sameValue(a, b string) bool {
	if a == b {
		return true
	}
	ca, errA := canonical(a)
	cb, errB := canonical(b)
	return errA == nil && errB == nil && bytes.Equal(ca, cb)
}

// canonical writes JSON in one form. A name that occurs twice in an object is an
// error: nodes refuse it, whatever its values.
func canonical(text string) ([]byte, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	v, err := decodeOnce(dec)
	if err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, fmt.Errorf("more than one value")
	}
	return json.Marshal(v)
}

var errTwice = errors.New("a name occurs twice")

// decodeOnce reads one value.
func decodeOnce(dec *json.Decoder) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		object := map[string]any{}
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			key, _ := name.(string) // it is one in an object
			if _, twice := object[key]; twice {
				return nil, errTwice
			}
			if object[key], err = decodeOnce(dec); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return object, err
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := decodeOnce(dec)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = dec.Token()
		return list, err
	}
	return t, nil
}

// maxBatch leaves a place for saying that deletions are meant.
const maxBatch = etcd.MaxEdits - 1

// commitBytes bounds a transaction: etcd takes 1.5 MiB.
const commitBytes = 512 << 10

// Commit writes the plan: in one transaction if it has at most 126
// changes and 512 KB, else in several, one after the other in the order of the
// keys. It returns the revision of the last one, and how many changes have been
// made, which after an error may be fewer than there are. A key that somebody
// else has changed since the plan was made is a *etcd.ConflictError.
func (s *Store) Commit(ctx context.Context, p *Plan) (rev int64, done int, err error) {
	if len(p.Findings) > 0 {
		return 0, 0, fmt.Errorf("%s: %s", p.Findings[0].Key, p.Findings[0].Why)
	}
	rev = p.Rev
	for done < len(p.Changes) {
		batch := firstBatch(p.Changes[done:])
		edits := batch
		if p.Meant && slices.ContainsFunc(batch, func(e etcd.Edit) bool { return e.Delete }) {
			edits = append(edits, etcd.Edit{Key: control.MeantKey, Value: []byte(s.By), Blind: true})
		}
		at, err := s.Client.Commit(ctx, edits, s.By)
		if errors.Is(err, etcd.ErrFull) && len(edits) > len(batch) {
			// It takes deletions alone, and these make room. Of many at once nodes ask
			// for a confirmation then.
			at, err = s.Client.Commit(ctx, batch, s.By)
		}
		if err != nil {
			return rev, done, err
		}
		rev = at
		done += len(batch)
		if slices.ContainsFunc(batch, func(e etcd.Edit) bool { return etcd.IsWatched(e.Key) }) {
			p.acted = at
		}
	}
	return rev, done, nil
}

// firstBatch returns the edits of the first of changes that fit a transaction,
// at least one.
func firstBatch(changes []Change) (edits []etcd.Edit) {
	size := 0
	for _, c := range changes {
		e := etcd.Edit{Key: c.Key, Delete: c.After == nil, Since: c.Since}
		if c.After != nil {
			e.Value = []byte(*c.After)
		}
		size += len(e.Key) + len(e.Value)
		if len(edits) == maxBatch || len(edits) > 0 && size > commitBytes {
			break
		}
		edits = append(edits, e)
	}
	return edits
}
