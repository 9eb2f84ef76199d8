package certs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// LimitError says that an issuer takes no order for a name now, and until when.
type LimitError struct {
	Issuer string    // as in Issuer.Name
	Until  time.Time // when the next attempt makes sense
	Why    string    // whose limit it is, in words
}

// Error says who takes no orders, why, and when it goes on.
func (e *LimitError) Error() string {
	return fmt.Sprintf("issuer %s takes no order for it before %s: %s", e.Issuer, e.Until.UTC().Format(time.RFC3339), e.Why)
}

// limits is what the nodes of a cluster know together of one authority: what it
// refused and until when, whether it works at all, and how many orders it got.
// The zero time of each field stands for never.
type limits struct {
	issuer string // for messages
	of     string // the issuer as Stored has it, by which the shared values are found
	orders Budget // 0: none
	names  Budget
	shared limitValues
	now    func() time.Time

	mu       sync.Mutex // guards the following; held while nobody is waited for
	known    limitState // as of read
	read     time.Time
	reading  chan struct{} // closed once the reading that is under way is over; nil: none is
	queued   time.Time     // when the order turned away last has its turn
	renewals time.Time     // the same of renewals
}

// limitValues is as much of Shared as limits needs.
type limitValues interface {
	Get(ctx context.Context, key string) (Value, error)
	Swap(ctx context.Context, key string, since int64, data []byte) (rev int64, err error)
}

// limitState is the shared value of an authority.
type limitState struct {
	// Orders is when the whole budget is there again, were no order made.
	Orders time.Time `json:"orders"`
	Stops  []stop    `json:"stops,omitempty"`
	// Failures in a row that were the authority's own: no answer, or one that
	// says it is out of order. Failed is when the last one was.
	Failures int       `json:"failures,omitempty"`
	Failed   time.Time `json:"failed"`
	Failure  string    `json:"failure,omitempty"`
}

// stop is something that the authority refuses for a time.
type stop struct {
	Scope string    `json:"scope"` // a domain with all below it; "": everything
	Until time.Time `json:"until"`
	Why   string    `json:"why"`
}

const (
	// knownFor is how long a node goes by what it read, where nothing is ordered yet.
	knownFor = 5 * time.Second
	// restOfFailing is how long an authority that fails is left alone while
	// there is another one.
	restOfFailing = 10 * time.Minute
	// stopsKept bounds what is remembered of one authority's refusals.
	stopsKept = 500
	// wordsKept bounds what is remembered of its words, in bytes.
	wordsKept = 300
	// longestStop bounds how long an authority can keep the cluster from asking.
	longestStop = 8 * 24 * time.Hour
	// clockSlack is how far the clocks of nodes may be apart before what one
	// wrote is none of another's concern. With less it is waited for.
	clockSlack = time.Hour
)

func newLimits(i Issuer, shared limitValues) *limits {
	return &limits{
		issuer: i.Name, of: i.key(),
		orders: i.Orders, names: i.Duplicates, shared: shared, now: time.Now,
	}
}

// stopped says why no order for name makes sense now, going by what this node
// knows; nil: it does. Where the state cannot be read, what is known counts.
func (l *limits) stopped(ctx context.Context, name string) *LimitError {
	state := l.look(ctx)
	return l.stopOf(state, name)
}

func (l *limits) stopOf(state limitState, name string) *LimitError {
	var last *LimitError
	now := l.now()
	for _, s := range state.Stops {
		if s.Until.After(now) && covers(s.Scope, name) && (last == nil || s.Until.After(last.Until)) {
			last = &LimitError{Issuer: l.issuer, Until: s.Until, Why: s.Why}
		}
	}
	return last
}

// covers reports whether a stop of scope is one for name.
func covers(scope, name string) bool {
	name = strings.TrimPrefix(name, "*.")
	return scope == "" || name == scope || strings.HasSuffix(name, "."+scope)
}

// failing says why the authority is better left alone now if there is another
// one: it failed most times in a row, and not long ago.
func (l *limits) failing(ctx context.Context, most int) *LimitError {
	state := l.look(ctx)
	until := state.Failed.Add(restOfFailing)
	if state.Failures < most || !until.After(l.now()) {
		return nil
	}
	return &LimitError{Issuer: l.issuer, Until: until,
		Why: fmt.Sprintf("it failed %d times in a row, last with: %s", state.Failures, state.Failure)}
}

// look returns the state as it was a few seconds ago at most or, where it cannot
// be read or ctx ends, as it is known. One reads for all that ask meanwhile.
func (l *limits) look(ctx context.Context) limitState {
	for {
		state, others, fresh := l.glance()
		switch {
		case fresh:
			return state
		case others == nil:
			return l.reread(ctx)
		}
		select {
		case <-others:
		case <-ctx.Done():
			return state
		}
	}
}

// glance returns what is known, and whether that was read just now. Where it was
// not, either others are reading it, or the caller has to.
func (l *limits) glance() (state limitState, others <-chan struct{}, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := l.now().Sub(l.read); age >= 0 && age < knownFor {
		return l.known, nil, true
	}
	if l.reading != nil {
		return l.known, l.reading, false
	}
	l.reading = make(chan struct{})
	return l.known, nil, false
}

// reread reads for all that wait for l.reading. That it failed is known for as
// long as what it would have found, from its end on: with storage away, attempts
// that begin one by one would each wait for it.
func (l *limits) reread(ctx context.Context) limitState {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		close(l.reading)
		l.reading = nil
	}()
	state, _, err := l.load(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.known = state
	}
	if err == nil || ctx.Err() == nil { // else the caller was called off, and another one reads
		l.read = l.now()
	}
	return l.known
}

// survey returns how many orders are left, and until when the authority takes
// none at all, zero where it does. It asks nobody.
func (l *limits) survey() (left int, until time.Time) {
	l.mu.Lock()
	state := l.known
	l.mu.Unlock()
	now := l.now()
	if l.orders.Count > 0 {
		left = l.orders.left(state.Orders, now)
	}
	for _, s := range state.Stops {
		if s.Scope == "" && s.Until.After(now) && s.Until.After(until) {
			until = s.Until
		}
	}
	return left, until
}

// load reads the shared value. One that makes no sense counts as none: it is
// worth less than certificates.
func (l *limits) load(ctx context.Context) (limitState, int64, error) {
	v, err := l.shared.Get(ctx, l.key())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return limitState{}, 0, fmt.Errorf("read what issuer %s has refused: %w", l.issuer, err)
	}
	var state limitState
	if len(v.Data) > 0 && json.Unmarshal(v.Data, &state) != nil {
		state = limitState{}
	}
	l.doubt(&state)
	return state, v.Rev, nil
}

// doubt drops from a state what no node has written whose clock was right: it
// would hold for as long as that clock was ahead, a year perhaps. The authority
// still refuses what is too much for it.
func (l *limits) doubt(s *limitState) {
	now := l.now()
	if tooFar(s.Orders, now, l.orders.Window) {
		s.Orders = time.Time{}
	}
	s.Stops = slices.DeleteFunc(s.Stops, func(s stop) bool { return tooFar(s.Until, now, longestStop) })
	if tooFar(s.Failed, now, 0) {
		s.Failures, s.Failed, s.Failure = 0, time.Time{}, ""
	}
}

// tooFar reports whether t is none that a node with a clock like this one's gives
// to something that lasts no longer than most.
func tooFar(t, now time.Time, most time.Duration) bool { return t.After(now.Add(most + clockSlack)) }

// change has decide change the shared state; where it returns an error nothing
// is written.
func (l *limits) change(ctx context.Context, decide func(*limitState) error) error {
	for {
		state, rev, err := l.load(ctx)
		if err != nil {
			return err
		}
		if err := decide(&state); err != nil {
			return err
		}
		state.trim(l.now())
		data, err := json.Marshal(state)
		if err != nil {
			return err
		}
		_, err = l.shared.Swap(ctx, l.key(), rev, data)
		if errors.Is(err, ErrSwapped) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return fmt.Errorf("note an order with issuer %s: %w", l.issuer, err)
		}
		l.mu.Lock()
		l.known, l.read = state, l.now()
		l.mu.Unlock()
		return nil
	}
}

// trim forgets what is over.
func (s *limitState) trim(now time.Time) {
	s.Stops = slices.DeleteFunc(s.Stops, func(s stop) bool { return !s.Until.After(now) })
	if over := len(s.Stops) - stopsKept; over > 0 {
		s.Stops = slices.Delete(s.Stops, 0, over)
	}
}

// take counts an order for name, or says why there may be none now. The last
// tenth of the budget is for renewals, which a crowd of new names must not delay.
func (l *limits) take(ctx context.Context, name string, renewal bool) error {
	if err := l.again(ctx, name); err != nil {
		return err
	}
	return l.change(ctx, func(s *limitState) error {
		if err := l.stopOf(*s, name); err != nil {
			return err
		}
		if l.orders.Count == 0 {
			return nil
		}
		spare := 0
		if !renewal {
			spare = l.orders.Count / 10
		}
		next, free := l.orders.spend(s.Orders, l.now(), spare)
		if !free.IsZero() {
			return &LimitError{Issuer: l.issuer, Until: l.queue(free, renewal),
				Why: fmt.Sprintf("the cluster's own limit of %d orders in %v is used up", l.orders.Count, l.orders.Window)}
		}
		s.Orders = next
		return nil
	})
}

// queue gives each order that is turned away a turn of its own, so that not all
// of them come back for the one that is next.
func (l *limits) queue(free time.Time, renewal bool) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := &l.queued // behind which no renewal waits
	if renewal {
		last = &l.renewals
	}
	next := last.Add(l.orders.each())
	if most := l.now().Add(l.orders.Window); next.After(most) {
		return most
	}
	if next.After(free) {
		free = next
	}
	*last = free
	return free
}

// again says why there may be no other certificate for name yet.
func (l *limits) again(ctx context.Context, name string) error {
	if l.names.Count == 0 {
		return nil
	}
	full, _, err := l.issued(ctx, name)
	if err != nil {
		return err
	}
	if _, free := l.names.spend(full, l.now(), 0); !free.IsZero() {
		return &LimitError{Issuer: l.issuer, Until: free,
			Why: fmt.Sprintf("the cluster's own limit of %d certificates for the same name in %v is used up", l.names.Count, l.names.Window)}
	}
	return nil
}

// nameLimit is again for who only wants to know.
func (l *limits) nameLimit(ctx context.Context, name string) *LimitError {
	limit, _ := errors.AsType[*LimitError](l.again(ctx, name))
	return limit
}

// issued reads when the whole budget of name is there again.
func (l *limits) issued(ctx context.Context, name string) (full time.Time, rev int64, err error) {
	v, err := l.shared.Get(ctx, limitsOf(l.of, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, 0, fmt.Errorf("read how often issuer %s has issued it: %w", l.issuer, err)
	}
	if len(v.Data) > 0 && full.UnmarshalText(v.Data) != nil {
		full = time.Time{}
	}
	if tooFar(full, l.now(), l.names.Window) {
		full = time.Time{}
	}
	return full, v.Rev, nil
}

// key is that of the shared value; one for each name lies below it.
func (l *limits) key() string { return limitsFolder + l.of }

// limitsFolder is where Shared has what counts for limits.
const limitsFolder = "limits/"

// limitsOf is the key of Shared for how often an issuer, named as in Stored, has
// issued a name.
func limitsOf(issuer, name string) string {
	return limitsFolder + issuer + "/" + certmagic.StorageKeys.Safe(name)
}

// done notes that a certificate was issued for name: whatever the authority
// refused, or how often it failed, is over.
func (l *limits) done(ctx context.Context, name string) error {
	if state := l.look(ctx); state.Failures > 0 {
		if err := l.works(ctx); err != nil {
			return err
		}
	}
	if l.names.Count == 0 {
		return nil
	}
	for {
		full, rev, err := l.issued(ctx, name)
		if err != nil {
			return err
		}
		next, free := l.names.spend(full, l.now(), 0)
		if !free.IsZero() { // another node's, meanwhile
			next = full.Add(l.names.each())
		}
		data, err := next.UTC().MarshalText()
		if err != nil {
			return err
		}
		if _, err = l.shared.Swap(ctx, limitsOf(l.of, name), rev, data); !errors.Is(err, ErrSwapped) || ctx.Err() != nil {
			return err
		}
	}
}

// works notes that the authority answers.
func (l *limits) works(ctx context.Context) error {
	return l.change(ctx, func(s *limitState) error {
		s.Failures, s.Failed, s.Failure = 0, time.Time{}, ""
		return nil
	})
}

// fails notes that the authority does not work, and returns how often in a row.
func (l *limits) fails(ctx context.Context, why string) (int, error) {
	var times int
	err := l.change(ctx, func(s *limitState) error {
		s.Failures++
		s.Failed, s.Failure = l.now(), cut(why)
		times = s.Failures
		return nil
	})
	return times, err
}

// refused notes that the authority takes no orders for a scope until then, and
// returns that.
func (l *limits) refused(ctx context.Context, s stop) (*LimitError, error) {
	if longest := l.now().Add(longestStop); s.Until.After(longest) {
		s.Until = longest
	}
	s.Why = "it says: " + cut(s.Why)
	err := l.change(ctx, func(state *limitState) error {
		state.Stops = slices.DeleteFunc(state.Stops, func(old stop) bool { return old.Scope == s.Scope && old.Until.Before(s.Until) })
		state.Stops = append(state.Stops, s)
		return nil
	})
	return &LimitError{Issuer: l.issuer, Until: s.Until, Why: s.Why}, err
}

// cut bounds an authority's words.
func cut(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	if len(s) > wordsKept {
		s = strings.ToValidUTF8(s[:wordsKept], "") + "..."
	}
	return s
}

// each is the time in which one more is there to be spent.
func (b Budget) each() time.Duration { return b.Window / time.Duration(b.Count) }

// spend takes one out of a budget of which all is there again at full, leaving
// at least spare. It returns when all would be there then or, if too little is
// left, when enough will be.
func (b Budget) spend(full, now time.Time, spare int) (next, free time.Time) {
	if full.Before(now) {
		full = now
	}
	next = full.Add(b.each())
	if most := now.Add(b.each() * time.Duration(b.Count-spare)); next.After(most) {
		return full, now.Add(next.Sub(most))
	}
	return next, time.Time{}
}

// left returns how many are there to be spent.
func (b Budget) left(full, now time.Time) int {
	if !full.After(now) {
		return b.Count
	}
	spent := (full.Sub(now) + b.each() - 1) / b.each()
	return max(0, b.Count-int(spent))
}
