package wire

import (
	"encoding/json"
	"strings"
	"time"
)

// Verdict is what a node did with a key. The zero value is that of a key without
// one.
type Verdict struct {
	State string `json:"state" doc:"applied, refused, degraded, held (deleted, which is held back), removed, or empty for a text of another version."`
	Rev   int64  `json:"rev,omitempty" doc:"The revision of the value in force; absent: none is, or the text does not say."`
	Text  string `json:"text" doc:"The verdict as it stands in etcd."`
}

// IsPlain reports whether all that v says is that the value is in force.
func (v Verdict) IsPlain() bool { return v.State == "applied" && !strings.Contains(v.Text, ":") }

// Finding is what nodes would refuse of a change.
type Finding struct {
	Key string `json:"key"`
	Why string `json:"why"`
}

// Key is a key and what the live nodes make of it.
type Key struct {
	Key      string             `json:"key" example:"ports/tcp/20022"`
	Value    json.RawMessage    `json:"value" doc:"As it stands in etcd: JSON, or a string where it is none."`
	Revision int64              `json:"revision" doc:"The etcd revision of its last change."`
	Verdicts map[string]Verdict `json:"verdicts" doc:"By node."`
}

// Text returns the value as it stands in etcd, but for space between members.
func (k Key) Text() string { return TextOf(k.Value) }

// TextOf returns the text that a value sent as JSON stands for: what is in a
// string, else the JSON itself.
func TextOf(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	return string(value)
}

// ValueOf returns the JSON that stands for a text in etcd: itself where it is
// JSON, else a string.
func ValueOf(text string) json.RawMessage {
	if json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // of a string
	}
	return quoted
}

// Answer is what one node said of one key.
type Answer struct {
	Node    string  `json:"node"`
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"` // removed: the key is gone, and with it the verdict
}

// KeyChange is the answer to a change of one key.
type KeyChange struct {
	Revision int64    `json:"revision" doc:"The etcd revision of the change; where nothing was to be changed, of the last one."`
	Changed  bool     `json:"changed"`
	Answers  []Answer `json:"answers,omitempty" doc:"What the live nodes made of it, with wait=applied."`
}

// Change is how a key changes, or differs between two moments.
type Change struct {
	Key    string  `json:"key"`
	Before *string `json:"before,omitempty" doc:"Absent: there was no such key."`
	After  *string `json:"after,omitempty" doc:"Absent: it is deleted, or there is no such key."`
	Since  int64   `json:"since,omitempty" doc:"The revision of before."`
}

// KeyWish is how a key is to be.
type KeyWish struct {
	Key    string          `json:"key" minLength:"1" maxLength:"4096" example:"ports/tcp/20022" doc:"Below ports/, routes/, domains/, names/ or pools/."`
	Value  json.RawMessage `json:"value,omitempty" doc:"JSON, or a string, whose content stands in etcd as it is. Absent: delete says the rest."`
	Delete bool            `json:"delete,omitempty"`
	Since  *int64          `json:"since,omitempty" minimum:"0" doc:"The revision of the key that the wish is based on: if it has been changed since, nothing is done. 0: there is none."`
}

// KeyWishes are several keys that are to be changed at once, or not at all.
type KeyWishes struct {
	Keys   []KeyWish `json:"keys" minItems:"1" maxItems:"126"`
	Meant  bool      `json:"meant,omitempty" doc:"Nodes are not to hold deletions back, however many they are."`
	DryRun bool      `json:"dry_run,omitempty" doc:"Say what would change and what nodes would refuse, and write nothing."`
}

// KeyPlan is what wishes come to, judged by the keys as they were at one revision,
// and what became of it.
type KeyPlan struct {
	Revision int64     `json:"revision" doc:"The one that was looked at."`
	Changes  []Change  `json:"changes" doc:"What is as wanted already is left out."`
	Same     int       `json:"same" doc:"How many keys are as wanted already."`
	Findings []Finding `json:"findings,omitempty" doc:"What nodes would refuse. Without dry_run, the request is refused for it."`
	Missing  []string  `json:"missing,omitempty" doc:"Keys that were to be deleted and are not there. Without dry_run, the request is refused for it."`
	// Committed is the revision of the change.
	Committed int64    `json:"committed,omitempty" doc:"The etcd revision of the change; absent: none was made."`
	Answers   []Answer `json:"answers,omitempty" doc:"What the live nodes made of it, with wait=applied."`
}

// PastChange is a change that was made of a key.
type PastChange struct {
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time" doc:"When a node recorded it, which is within seconds."`
	By       string    `json:"by,omitempty" doc:"Who made it, as far as anybody said so."`
	Key      string    `json:"key"`
	Before   *string   `json:"before,omitempty" doc:"Absent: there was no such key."`
	After    *string   `json:"after,omitempty" doc:"Absent: it was deleted."`
	Omitted  bool      `json:"omitted,omitempty" doc:"The values were too large to be kept."`
}

// History is a part of the changes that were made.
type History struct {
	Items []PastChange `json:"items"`
	Next  int64        `json:"next,omitempty" doc:"What to give as after for more; absent: there is no more."`
	Gap   bool         `json:"gap,omitempty" doc:"etcd has forgotten changes that nobody had recorded."`
}

// Changes is how keys differ, or what was changed.
type Changes struct {
	Revision int64     `json:"revision,omitempty" doc:"The etcd revision of the change, where one was made."`
	Changes  []Change  `json:"changes"`
	LeftOut  []Finding `json:"left_out,omitempty" doc:"Keys that stay as they are, and why."`
	Unknown  []string  `json:"unknown,omitempty" doc:"Keys whose values were too large for the history."`
}

// Rollback is the body that makes keys again what they were.
type Rollback struct {
	To     int64  `json:"to" minimum:"1" doc:"The revision to go back to."`
	Under  string `json:"under,omitempty" maxLength:"4096" doc:"Only keys that begin so, such as routes/."`
	Remove bool   `json:"remove,omitempty" doc:"Remove keys that have come since; without it such a rollback is refused."`
	DryRun bool   `json:"dry_run,omitempty" doc:"Say what would change, and write nothing."`
}
