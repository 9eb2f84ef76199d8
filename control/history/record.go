package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/etcd"
)

// Change is one change of a key.
type Change struct {
	Rev    int64     `json:"rev"`
	Time   time.Time `json:"time"` // when it was recorded, which is within seconds
	Key    string    `json:"key"`
	Before *string   `json:"before,omitempty"` // nil: there was no such key
	After  *string   `json:"after,omitempty"`  // nil: it was deleted
	// By says who made it and how, where a command of the program did. What
	// comes from etcdctl is nobody's as far as etcd tells.
	By string `json:"by,omitempty"`
	// Omitted says that values were too large to be kept and stand empty, where
	// there were any.
	Omitted bool `json:"omitted,omitempty"`
}

const (
	batches = "history/changes/"
	status  = "history/recorded"
)

// recorded is the value of the key status.
type recorded struct {
	// From and To bound the revisions whose changes are all there: From < rev
	// <= To.
	From  int64 `json:"from"`
	To    int64 `json:"to"`
	Bytes int64 `json:"bytes"` // of all batches

	Last int64 `json:"last"` // revision of the last change that was recorded

	counted bool  // Bytes was seen to be right
	rev     int64 // of the key's last change, the leader's own or as it was read
	now     int64 // etcd's revision as it was read
}

// batchKey is the key of a batch whose last change is of revision rev, so that
// those after some revision are a range.
func batchKey(rev int64) string { return fmt.Sprintf("%s%016x", batches, rev) }

const (
	batchBytes = 128 << 10 // of a batch; a revision that is larger has one of its own
	maxBatch   = 1 << 20
	// recordEvery is the least time between two looks for changes: what happens
	// within it costs etcd one more transaction, however much it is.
	recordEvery = time.Second
	// lookEvery is how often the recorder looks without being told to.
	lookEvery = time.Minute
	// trimEvery is how often what is too old or too much is deleted.
	trimEvery = time.Minute
)

// Config is what a Recorder needs. All fields but Registerer are needed.
type Config struct {
	Client *etcd.Client
	Node   string
	// Keep is how long a change is kept, and Bytes how much of them in all.
	Keep       time.Duration
	Bytes      int64
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Recorder keeps the history of a cluster, while its node leads.
type Recorder struct {
	cfg     Config
	changed chan struct{}
	written prometheus.Counter
	lost    prometheus.Counter
}

// New returns a Recorder, which does nothing before Run.
func New(cfg Config) *Recorder {
	r := &Recorder{
		cfg: cfg, changed: make(chan struct{}, 1),
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_history_changes_total", Help: "Changes that this node wrote to the history."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_history_gaps_total", Help: "Times that etcd had forgotten changes before this node could write them to the history."}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(r.written, r.lost)
	}
	return r
}

// Poke says that keys have changed. It does not block.
func (r *Recorder) Poke() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run records, while the node leads, until ctx ends; it then returns nil.
func (r *Recorder) Run(ctx context.Context) error {
	return r.cfg.Client.Lead(ctx, "history", r.cfg.Node, r.lead)
}

func (r *Recorder) lead(ctx context.Context, t *etcd.Term) error {
	state, err := r.resume(ctx, t)
	if err != nil {
		return err
	}
	look, trim := time.NewTicker(lookEvery), time.NewTicker(trimEvery)
	defer look.Stop()
	defer trim.Stop()
	for {
		if err := r.record(ctx, t, state); err != nil {
			return err
		}
		rest := time.NewTimer(recordEvery)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-look.C:
		case <-trim.C:
			if err := r.trim(ctx, t, state); err != nil {
				return err
			}
		}
	}
}

// resume returns how far the history goes, or begins one.
func (r *Recorder) resume(ctx context.Context, t *etcd.Term) (*recorded, error) {
	state, err := readRecorded(ctx, r.cfg.Client)
	var garbled *garbledError
	switch {
	case errors.As(err, &garbled):
		r.lost.Inc()
		r.cfg.Logger.Warn("the history is complete only from now on", "err", err)
		return r.begin(ctx, t, 0)
	case err != nil:
		return nil, err
	case state == nil:
		return r.begin(ctx, t, 0)
	case state.To > state.now:
		// Of another etcd, whose keys were put into this one.
		r.lost.Inc()
		r.cfg.Logger.Warn("the history in etcd is of revisions that this etcd has not reached: it is complete only from now on", "to_rev", state.To, "now", state.now)
		return r.begin(ctx, t, state.Bytes)
	}
	return state, nil
}

// begin has the history be complete from now on only.
func (r *Recorder) begin(ctx context.Context, t *etcd.Term, bytes int64) (*recorded, error) {
	_, rev, err := r.cfg.Client.ReadUnder(ctx, status, 0)
	if err != nil {
		return nil, err
	}
	state := &recorded{From: rev, To: rev, Bytes: bytes}
	return state, state.commit(ctx, t)
}

// commit writes s, and writes with it.
func (s *recorded) commit(ctx context.Context, t *etcd.Term, writes ...etcd.Write) error {
	rev, err := t.Commit(ctx, append(writes, s.write()))
	if err == nil {
		s.rev = rev
	}
	return err
}

func (s *recorded) write() etcd.Write {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // of three numbers
	}
	return etcd.Write{Key: status, Value: string(text), Since: s.rev}
}

// readRecorded returns nil if there is no history yet. What somebody else has put
// in its place is a *garbledError.
func readRecorded(ctx context.Context, c *etcd.Client) (*recorded, error) {
	kvs, now, err := c.ReadUnder(ctx, status, 0)
	if err != nil || len(kvs) == 0 || kvs[0].Key != status { // it comes first of those that begin so
		return nil, err
	}
	s := recorded{rev: kvs[0].ModRev, now: now}
	if err := json.Unmarshal(kvs[0].Value, &s); err != nil {
		return nil, &garbledError{err}
	}
	return &s, nil
}

// garbledError says that the key status has a value that no node wrote.
type garbledError struct{ err error }

func (e *garbledError) Error() string {
	return fmt.Sprintf("%s, which nodes write, cannot be read: %v", status, e.err)
}

func (e *garbledError) Unwrap() error { return e.err }

// record writes the changes that came since.
func (r *Recorder) record(ctx context.Context, t *etcd.Term, state *recorded) error {
	past, until, now, err := r.cfg.Client.ChangesSince(ctx, state.To)
	if errors.Is(err, etcd.ErrCompacted) {
		r.lost.Inc()
		r.cfg.Logger.Warn("etcd has forgotten changes that were not in the history yet: it is complete only from now on", "after_rev", state.To)
		fresh, err := r.begin(ctx, t, state.Bytes)
		if err == nil {
			*state = *fresh
		}
		return err
	}
	if err != nil {
		return err
	}
	if now < state.To {
		return fmt.Errorf("etcd is at revision %d, before %d, up to which changes were recorded: it was set back, or is another one", now, state.To)
	}
	changes := changesOf(past, time.Now())
	if len(changes) == 0 {
		return r.keepUp(ctx, t, state, until, now)
	}
	for len(changes) > 0 {
		n := firstBatch(changes)
		text := encode(state, changes[:n])
		next := *state
		if len(text) > maxBatch { // one transaction of huge values: etcd takes 1.5 MiB at once
			text = withoutLarge(state, changes[:n])
		}
		next.Last = changes[n-1].Rev
		next.To, next.Bytes = changes[n-1].Rev, state.Bytes+int64(len(text))
		if n == len(changes) {
			next.To = until
		}
		batch := etcd.Write{Key: batchKey(changes[n-1].Rev), Value: string(text)}
		if err := next.commit(ctx, t, batch); err != nil {
			return err
		}
		*state = next
		r.written.Add(float64(n))
		changes = changes[n:]
	}
	return nil
}

// keepUp notes that there was nothing to record up to revision until, before etcd
// forgets where that began: what nodes write for each other raises its revision
// as well. The recorder's own last word alone is no reason for another one. That
// etcd is further, at now, is: there are some that tell how far they are by what
// they bring alone, such as that word.
func (r *Recorder) keepUp(ctx context.Context, t *etcd.Term, state *recorded, until, now int64) error {
	if max(until, now) <= state.To+1 {
		return nil
	}
	next := *state
	next.To = until
	if err := next.commit(ctx, t); err != nil {
		return err
	}
	*state = next
	return nil
}

// withoutLarge returns changes with as many of their values as can be kept: none
// that is larger than 32 KB, or if that is not enough, than 1 KB.
func withoutLarge(state *recorded, changes []Change) []byte {
	var text []byte
	for _, most := range []int{32 << 10, 1 << 10} {
		bare := slices.Clone(changes)
		for i := range bare {
			c := &bare[i]
			for _, value := range []**string{&c.Before, &c.After} {
				if *value != nil && len(**value) > most {
					*value, c.Omitted = new(string), true
				}
			}
		}
		if text = encode(state, bare); len(text) <= maxBatch {
			break
		}
	}
	return text
}

// changesOf turns what etcd tells into changes. A note belongs to the changes
// of its revision.
func changesOf(past []etcd.Past, now time.Time) []Change {
	now = now.UTC().Truncate(time.Millisecond)
	notes := map[int64]string{}
	for _, p := range past {
		if p.Key == etcd.NoteKey && !p.Deleted {
			notes[p.ModRev] = string(p.Value)
		}
	}
	changes := make([]Change, 0, len(past))
	for _, p := range past {
		if p.Key == etcd.NoteKey {
			continue
		}
		c := Change{Rev: p.ModRev, Time: now, Key: cut(p.Key, maxKey), By: cut(notes[p.ModRev], maxBy)}
		if p.Existed {
			before := string(p.Before)
			c.Before = &before
		}
		if !p.Deleted {
			after := string(p.Value)
			c.After = &after
		}
		changes = append(changes, c)
	}
	return changes
}

// A key that is longer is none of ours, and a note none of a command's: with any
// of them a transaction has to fit one batch.
const (
	maxKey = 1 << 10
	maxBy  = 256
)

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// firstBatch returns how many of changes go into a batch: whole revisions, and
// at least one.
func firstBatch(changes []Change) int {
	size, whole := 0, 0
	for i, c := range changes {
		if i > 0 && c.Rev != changes[i-1].Rev {
			whole = i
		}
		size += len(c.Key) + 100
		for _, v := range []*string{c.Before, c.After} {
			if v != nil {
				size += len(*v)
			}
		}
		if size > batchBytes && whole > 0 {
			return whole
		}
	}
	return len(changes)
}

// trimmedByAge is how many batches are deleted at once because they are old: a
// clock that is wrong is not to cost all of the history before somebody sees it.
const trimmedByAge = 64

// trim deletes the batches that are too old, by the clock and by the newest change
// that there is, and the oldest while there is too much.
func (r *Recorder) trim(ctx context.Context, t *etcd.Term, state *recorded) error {
	if state.Bytes > r.cfg.Bytes && !state.counted {
		if err := r.count(ctx, state); err != nil {
			return err
		}
	}
	newest := time.Now()
	if last, err := r.cfg.Client.ReadLast(ctx, batches); err != nil {
		return err
	} else if last != nil {
		if _, changes, err := readBatch(*last); err == nil && changes[len(changes)-1].Time.Before(newest) {
			newest = changes[len(changes)-1].Time
		}
	}
	for aged := 0; ctx.Err() == nil; {
		oldest, err := r.cfg.Client.ReadRange(ctx, batches, "", 1)
		if err != nil || len(oldest) == 0 {
			return err
		}
		b, changes, err := readBatch(oldest[0])
		if err != nil {
			r.cfg.Logger.Warn("a part of the history cannot be read and is deleted", "key", oldest[0].Key, "err", err)
		} else if state.Bytes <= r.cfg.Bytes {
			if aged++; newest.Sub(changes[len(changes)-1].Time) <= r.cfg.Keep || aged > trimmedByAge {
				return nil
			}
		}
		next := *state
		next.Bytes = max(0, state.Bytes-int64(len(oldest[0].Value)))
		next.From = max(state.From, b.last)
		if err := next.commit(ctx, t, etcd.Write{Key: oldest[0].Key, Delete: true}); err != nil {
			return err
		}
		*state = next
	}
	return nil
}

// count sees how much history there really is: parts may have been deleted by
// somebody else, and what is counted of them would cost what comes later.
func (r *Recorder) count(ctx context.Context, state *recorded) error {
	state.Bytes, state.counted = 0, true
	for after := ""; ; {
		page, err := r.cfg.Client.ReadRange(ctx, batches, after, readPage)
		if err != nil {
			return err
		}
		for _, kv := range page {
			state.Bytes += int64(len(kv.Value))
			after = strings.TrimPrefix(kv.Key, batches)
		}
		if len(page) < readPage {
			return nil
		}
	}
}
