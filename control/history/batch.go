package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/remotegpu/sluice/control/etcd"
)

// batch is the value of a key below batches.
type batch struct {
	// From is the revision since which the changes are all there, and Previous that
	// of the last change of the batch before, so that one that is gone is missed.
	From     int64    `json:"from"`
	Previous int64    `json:"previous"`
	Changes  []stored `json:"changes"`

	last int64 // revision of the last change
}

// stored is a change as it is kept: JSON has no place for what is not UTF-8.
type stored struct {
	Change
	BinaryKey    []byte `json:"binary_key,omitempty"`
	BinaryBefore []byte `json:"binary_before,omitempty"`
	BinaryAfter  []byte `json:"binary_after,omitempty"`
}

// encode returns the value of a batch of changes that follows on state.
func encode(state *recorded, changes []Change) []byte {
	b := batch{From: state.To, Previous: state.Last, Changes: make([]stored, len(changes))}
	for i, c := range changes {
		s := stored{Change: c}
		if !utf8.ValidString(c.Key) {
			s.Key, s.BinaryKey = "", []byte(c.Key)
		}
		s.Before, s.BinaryBefore = textOrBytes(c.Before)
		s.After, s.BinaryAfter = textOrBytes(c.After)
		b.Changes[i] = s
	}
	text, err := json.Marshal(b)
	if err != nil {
		panic(err) // of numbers, times, texts and bytes
	}
	return text
}

func textOrBytes(value *string) (*string, []byte) {
	if value == nil || utf8.ValidString(*value) {
		return value, nil
	}
	return nil, []byte(*value)
}

func readBatch(kv etcd.KV) (batch, []Change, error) {
	var b batch
	into := any(&b)
	if bytes.HasPrefix(kv.Value, []byte("[")) { // as it was kept before
		into = &b.Changes
	}
	name := strings.TrimPrefix(kv.Key, batches)
	if err := json.Unmarshal(kv.Value, into); err != nil {
		return b, nil, fmt.Errorf("read history %s: %w", name, err)
	}
	if len(b.Changes) == 0 {
		return b, nil, fmt.Errorf("read history %s: there are no changes", name)
	}
	changes := make([]Change, len(b.Changes))
	for i, s := range b.Changes {
		c := s.Change
		if s.BinaryKey != nil {
			c.Key = string(s.BinaryKey)
		}
		if s.BinaryBefore != nil {
			before := string(s.BinaryBefore)
			c.Before = &before
		}
		if s.BinaryAfter != nil {
			after := string(s.BinaryAfter)
			c.After = &after
		}
		changes[i] = c
	}
	b.last = changes[len(changes)-1].Rev
	return b, changes, nil
}

// joined returns since when all changes after rev are there, according to read,
// the batches after rev in their order, and what is said of the whole.
func joined(read []batch, rev int64, state *recorded) (from int64) {
	from = state.From
	known := max(rev, from)
	for _, b := range read {
		if b.Previous > known {
			from = max(from, b.From)
		}
		known = max(known, b.last)
	}
	if state.Last > known {
		from = max(from, state.To)
	}
	return from
}
