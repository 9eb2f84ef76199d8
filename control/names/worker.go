package names

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

const (
	// checkEvery is how often records are read and compared without a reason, and
	// checkEach how much longer that takes with each name of a provider, so that
	// its API is asked at most twice a second.
	checkEvery = 30 * time.Second
	checkEach  = 500 * time.Millisecond
	// checkSoon is when records are read again after a change of them.
	checkSoon = 5 * time.Second
	// A failure is followed by a pause, of firstPause to lastPause.
	firstPause = time.Second
	lastPause  = time.Minute
	// ttlEvery is how often a zone's shortest TTL is asked for.
	ttlEvery = time.Hour
	// batch is how many names of a zone are looked at and changed together.
	batch = 20
)

// worker keeps the names of one provider. Its fields are its goroutine's own,
// but for awake.
type worker struct {
	t     *term
	name  string
	to    Provider // nil: of names that have none
	awake chan struct{}

	tasks  map[string]*task
	least  map[string]leastTTL // by zone
	failed int                 // times in a row that the provider as such failed
	rest   time.Time           // until then it is left alone
}

// leastTTL is the shortest TTL that a zone takes, until it is asked for again.
type leastTTL struct {
	seconds int
	until   time.Time
}

// task is what a worker knows of one name.
type task struct {
	name     string
	spec     *router.PublishedName
	zone     string
	wanted   Wanted
	look     time.Time // when the records are to be read again
	failed   int       // times in a row
	retry    time.Time // not before, unless something else is wanted
	answered int64     // revision of the last request that was answered
	said     string    // the last trouble that was logged
	state    State

	// Of the look under way.
	q    Question
	p    Plan
	have []Record
	err  error
	req  request
}

func newWorker(t *term, name string, to Provider) *worker {
	return &worker{t: t, name: name, to: to, awake: make(chan struct{}, 1), tasks: map[string]*task{}, least: map[string]leastTTL{}}
}

func (w *worker) poke() {
	select {
	case w.awake <- struct{}{}:
	default:
	}
}

// run works until ctx ends, or etcd does not take its word any more.
func (w *worker) run(ctx context.Context) error {
	for {
		next, err := w.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		timer := time.NewTimer(max(next.Sub(w.t.k.cfg.Now()), 10*time.Millisecond))
		select {
		case <-ctx.Done():
		case <-w.awake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round looks at the names that are due, and returns when the next one is.
func (w *worker) round(ctx context.Context) (next time.Time, err error) {
	now := w.t.k.cfg.Now()
	specs, homes, wrong := w.t.mine(w.name)
	if w.to == nil {
		return now.Add(checkEvery), errors.Join(w.complain(ctx, specs, wrong), w.t.forget(ctx))
	}
	maps.DeleteFunc(w.tasks, func(name string, _ *task) bool { return specs[name] == nil })
	zones := map[string][]*task{}
	for _, name := range sortedKeys(specs) {
		if t := w.task(name, specs[name], homes[name].zone); w.due(t, now) {
			zones[t.zone] = append(zones[t.zone], t)
		}
	}
	for _, zone := range w.inOrder(zones) {
		for tasks := range slices.Chunk(zones[zone], batch) {
			if w.rest.After(now) || ctx.Err() != nil {
				break
			}
			if err := w.keep(ctx, zone, tasks); err != nil {
				return now, err
			}
		}
	}
	w.count()
	next = now.Add(checkEvery)
	for _, t := range w.tasks {
		if at := w.when(t); at.Before(next) {
			next = at
		}
	}
	return next, nil
}

// inOrder returns zones, those first in which something else is wanted than
// before: what is dead does not wait for what is only looked at.
func (w *worker) inOrder(zones map[string][]*task) []string {
	names := sortedKeys(zones)
	urgent := func(t *task) bool { return !t.wanted.equal(t.q.Wanted) }
	for _, zone := range names {
		slices.SortStableFunc(zones[zone], func(a, b *task) int { return cmp.Compare(rank(urgent(a)), rank(urgent(b))) })
	}
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Compare(rank(slices.ContainsFunc(zones[a], urgent)), rank(slices.ContainsFunc(zones[b], urgent)))
	})
	return names
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// complain says of names without a provider what they lack.
func (w *worker) complain(ctx context.Context, specs map[string]*router.PublishedName, wrong map[string]error) error {
	var states []State
	for _, name := range sortedKeys(specs) {
		s, _ := w.t.state(name)
		s = State{Name: name, Leader: w.t.k.cfg.Node, Rev: specs[name].Rev, Trouble: wrong[name].Error(), Wanted: []string{}, Published: []string{}, Budget: s.Budget, Answered: s.Answered}
		if r, ok := w.t.request(name); ok {
			s.Answered = r.rev
		}
		states = append(states, s)
		w.t.k.cfg.Verdict(Key(name), true, s.Trouble)
	}
	return w.t.commit(ctx, states, false)
}

// task returns what is known of a name, brought up to date with what is wanted.
func (w *worker) task(name string, spec *router.PublishedName, zone string) *task {
	t := w.tasks[name]
	if t == nil || t.zone != zone {
		t = &task{name: name, zone: zone}
		if s, ok := w.t.state(name); ok && s.Provider == w.name && s.Zone == zone {
			t.state = s
		}
		w.tasks[name] = t
	}
	if t.spec == nil || t.spec.Rev != spec.Rev {
		t.look, t.retry = time.Time{}, time.Time{}
	}
	t.spec, t.wanted = spec, w.t.wanted(spec)
	return t
}

// due reports whether a name is to be looked at.
func (w *worker) due(t *task, now time.Time) bool {
	if w.rest.After(now) {
		return false
	}
	if r, ok := w.t.request(t.name); ok && r.rev != t.answered {
		return true
	}
	return !t.wanted.equal(t.q.Wanted) || !now.Before(w.when(t))
}

// when returns when a name is due without anything new.
func (w *worker) when(t *task) time.Time {
	at := t.look
	for _, not := range []time.Time{t.retry, w.rest} {
		if not.After(at) {
			at = not
		}
	}
	return at
}

// keep looks at some names of one zone, and makes them true. The error is that
// the term is over; what goes wrong with the provider is in the verdicts.
func (w *worker) keep(ctx context.Context, zone string, tasks []*task) error {
	w.read(ctx, zone, tasks)
	var due []*task
	var states []State
	for _, t := range tasks {
		if t.err == nil && t.p.Due() {
			due = append(due, t)
			states = append(states, w.before(t))
		}
	}
	if len(due) > 0 {
		if err := w.t.commit(ctx, states, true); err != nil {
			return err
		}
		w.change(ctx, zone, due)
	}
	if ctx.Err() != nil {
		return nil
	}
	states = states[:0]
	for _, t := range tasks {
		w.conclude(t)
		states = append(states, t.state)
	}
	return w.t.commit(ctx, states, false)
}

// read reads the records of names and decides what is to become of them.
func (w *worker) read(ctx context.Context, zone string, tasks []*task) {
	now := w.t.k.cfg.Now()
	asked := make([]string, 0, 2*len(tasks))
	for _, t := range tasks {
		asked = append(asked, t.name, Marker(t.name, zone))
	}
	least, err := w.leastTTL(ctx, zone, now)
	var records []Record
	if err == nil {
		records, err = w.to.Read(ctx, zone, asked)
	}
	failed := func(string) error { return err }
	if p, ok := errors.AsType[partial](err); ok {
		failed = p.Of
	}
	read := 0
	for _, t := range tasks {
		t.err, t.have, t.p = cmp.Or(failed(t.name), failed(Marker(t.name, zone))), nil, Plan{}
		t.q.Wanted = t.wanted
		t.req, _ = w.t.request(t.name)
		if t.err != nil {
			continue
		}
		read++
		for i := range records {
			if records[i].IsAddress() {
				records[i].Data = canonical(records[i].Data)
			}
		}
		t.q = Question{
			Spec: t.spec, Zone: zone, Cluster: w.t.cluster, Wanted: t.wanted, View: viewOf(t.name, zone, records),
			TTL: max(t.spec.TTL, least), Weighted: w.to.Weighted(), Last: t.state.left, Budget: t.state.Budget,
			Adopt: t.req.Adopt, Force: t.req.Apply || t.req.Adopt, Now: now,
		}
		t.p = Decide(t.q)
		t.have = t.q.View.addresses()
		if t.p.Drift {
			w.t.k.metrics.drift.WithLabelValues(w.name).Inc()
			t.state.Drift = fmt.Sprintf("%s: found %s instead of %s", stamp(now), cmp.Or(list(dataOf(t.have)), "nothing"), cmp.Or(list(t.q.Last), "nothing"))
			w.t.k.cfg.Logger.Warn("records were changed by other hands", "name", t.name, "are", list(dataOf(t.have)), "were", list(t.q.Last))
		}
	}
	w.readOutcome(err, read)
}

// readOutcome is outcome after a reading by which some names were read: what the
// others lack is theirs alone, unless the provider asks to be left alone.
func (w *worker) readOutcome(err error, read int) {
	if r, ok := errors.AsType[resting](err); err != nil && read > 0 && (!ok || r.RetryAfter() == 0) {
		w.t.k.metrics.failures.WithLabelValues(w.name, "read").Inc()
		w.failed, w.rest = 0, time.Time{}
		return
	}
	w.outcome("read", err)
}

// leastTTL returns the shortest TTL that a zone takes.
func (w *worker) leastTTL(ctx context.Context, zone string, now time.Time) (int, error) {
	if l, ok := w.least[zone]; ok && now.Before(l.until) {
		return l.seconds, nil
	}
	seconds, err := w.to.LeastTTL(ctx, zone)
	if err == nil {
		w.least[zone] = leastTTL{seconds, now.Add(ttlEvery)}
	}
	return seconds, err
}

// before returns the state of a name that is about to be changed: the change is
// counted before it is made, by whoever may come after.
func (w *worker) before(t *task) State {
	s := t.state
	s.Name, s.Provider, s.Zone, s.Leader, s.Rev = t.name, w.name, t.zone, w.t.k.cfg.Node, t.spec.Rev
	s.Budget = s.Budget.Spend(t.spec.Interval, t.q.Now)
	s.Wanted, s.Published = textsOf(t.wanted), dataOf(t.have)
	s.Add, s.Update, s.Remove, s.Held = dataOf(t.p.Add), dataOf(t.p.Update), dataOf(t.p.Remove), "under way"
	t.state.Budget = s.Budget
	return s
}

// change makes the plans of names of one zone: all in one update where the
// provider can do that.
func (w *worker) change(ctx context.Context, zone string, due []*task) {
	swapper, ok := w.to.(Swapper)
	if ok && len(due) > 1 {
		swaps := make([]Swap, len(due))
		for i, t := range due {
			swaps[i] = t.q.swap(t.p)
		}
		if err := swapper.Swap(ctx, zone, swaps); err == nil {
			for _, t := range due {
				w.changed(t, t.p.after(t.have), nil)
			}
			return
		}
		// One of them is not as it was read, or not to be changed: which one, each by
		// itself tells.
	}
	for _, t := range due {
		if w.rest.After(w.t.k.cfg.Now()) || ctx.Err() != nil {
			t.err = errors.Join(t.err, errLater)
			continue
		}
		if ok {
			err := swapper.Swap(ctx, zone, []Swap{t.q.swap(t.p)})
			after := t.have
			if err == nil {
				after = t.p.after(t.have)
			}
			w.changed(t, after, err)
			continue
		}
		after, err := carryOut(ctx, w.to, zone, t.q, t.p)
		w.changed(t, after, err)
	}
}

// errLater says that a name's turn has not come.
var errLater = errors.New("put off: the provider is left alone for a moment")

// changed notes what became of a change.
func (w *worker) changed(t *task, after []Record, err error) {
	w.outcome("change", err)
	t.err = err
	t.state.Change = changeText(t.have, after)
	t.state.Changed = stamp(w.t.k.cfg.Now())
	w.t.k.metrics.changes.WithLabelValues(w.name).Inc()
	w.t.k.cfg.Logger.Info("changed records", "name", t.name, "provider", w.name, "was", list(dataOf(t.have)), "is", list(dataOf(after)), "err", err)
	t.have = after
}

// changeText writes what came and what went.
func changeText(was, is []Record) string {
	var parts []string
	for _, r := range is {
		if !slices.ContainsFunc(was, r.same) {
			parts = append(parts, "+"+r.Data)
		}
	}
	for _, r := range was {
		if !slices.ContainsFunc(is, r.same) {
			parts = append(parts, "-"+r.Data)
		}
	}
	return cmp.Or(list(parts), "TTL, weight or marker")
}

// outcome notes how a call went: where the provider as such fails it is left
// alone, longer each time, or as long as it asks.
func (w *worker) outcome(what string, err error) {
	if err == nil {
		w.failed, w.rest = 0, time.Time{}
		return
	}
	w.t.k.metrics.failures.WithLabelValues(w.name, what).Inc()
	if p, ok := errors.AsType[passing](err); !ok || !p.Passing() {
		return
	}
	w.failed++
	pause := pauseAfter(w.failed)
	if r, ok := errors.AsType[resting](err); ok {
		pause = max(pause, min(r.RetryAfter(), 5*lastPause))
	}
	w.rest = w.t.k.cfg.Now().Add(pause)
}

// pauseAfter returns the pause after the n-th failure in a row, n from 1: twice
// the one before, and up to a quarter less, so that nodes and providers do not
// meet again.
func pauseAfter(n int) time.Duration {
	d := min(firstPause<<min(n-1, 10), lastPause)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

// conclude says how a name fares, and when it is looked at again.
func (w *worker) conclude(t *task) {
	now := w.t.k.cfg.Now()
	s := &t.state
	s.Name, s.Provider, s.Zone, s.Leader, s.Rev = t.name, w.name, t.zone, w.t.k.cfg.Node, t.spec.Rev
	s.Wanted, s.Out = textsOf(t.wanted), t.wanted.Out
	s.Add, s.Update, s.Remove, s.Held = nil, nil, nil, ""
	if t.req.rev != 0 {
		t.answered, s.Answered = t.req.rev, t.req.rev
	}
	if t.err != nil {
		t.failed++
		t.retry = now.Add(pauseAfter(t.failed))
		t.look = t.retry
		s.Trouble = "provider_failed: " + t.err.Error()
		if s.Published == nil {
			s.Published = []string{}
		}
		w.tell(t)
		return
	}
	t.failed, t.retry = 0, time.Time{}
	t.look = now.Add(max(checkEvery, time.Duration(len(w.tasks))*checkEach))
	s.Owned, s.Trouble, s.Published = t.p.Owned, t.p.Trouble, dataOf(t.have)
	if s.left = nil; s.Owned {
		s.left = s.Published
	}
	if t.p.Held != "" && t.p.Changes() {
		s.Add, s.Update, s.Remove, s.Held = dataOf(t.p.Add), dataOf(t.p.Update), dataOf(t.p.Remove), t.p.Held
	}
	if t.p.Due() {
		t.look = now.Add(checkSoon)
	}
	if t.p.Wait > 0 {
		t.look = now.Add(min(t.p.Wait, t.look.Sub(now)))
	}
	if s.Trouble == "" && t.spec.Weights && !t.q.Weighted && t.wanted.weighs() {
		s.Trouble = fmt.Sprintf("weights_not_offered: %s has no weights for records, so all addresses get the same share", w.to.Kind())
	}
	w.tell(t)
}

// tell writes the verdict of a name, and logs a trouble that is new.
func (w *worker) tell(t *task) {
	s := t.state
	degraded := s.Trouble != ""
	text := s.Trouble
	if published := publishedText(t, w.to.Kind()); text == "" {
		text = published
	} else if len(s.Published) > 0 && s.Owned {
		text += "; " + published
	}
	if s.Held != "" && s.Trouble == "" {
		degraded = !t.spec.DryRun
		text += fmt.Sprintf("; to do: %s; %s", todo(s), s.Held)
	}
	if s.Drift != "" {
		text += "; changed by other hands " + s.Drift
	}
	if len(s.Out) > 0 {
		text += "; " + list(s.Out)
	}
	w.t.k.cfg.Verdict(Key(t.name), degraded, text)
	if s.Trouble != t.said {
		t.said = s.Trouble
		if s.Trouble != "" {
			w.t.k.cfg.Logger.Warn("a name is not as wanted", "name", t.name, "why", s.Trouble)
		}
	}
}

func publishedText(t *task, kind string) string {
	s := t.state
	text := fmt.Sprintf("published %s in %s by %s (%s)", cmp.Or(list(s.Published), "nothing"), s.Zone, s.Provider, kind)
	if t.q.TTL > t.spec.TTL {
		text += fmt.Sprintf(", with the TTL %d, the shortest that the zone takes", t.q.TTL)
	}
	return text
}

// todo writes what is held back.
func todo(s State) string {
	var parts []string
	for _, one := range []struct {
		sign string
		of   []string
	}{{"+", s.Add}, {"~", s.Update}, {"-", s.Remove}} {
		for _, data := range one.of {
			parts = append(parts, one.sign+data)
		}
	}
	return cmp.Or(strings.Join(parts, " "), "the marker")
}

func textsOf(w Wanted) []string {
	all := make([]string, len(w.Addresses))
	for i, a := range w.Addresses {
		all[i] = a.Addr.String()
	}
	return all
}

// count brings the metrics of this provider up to date.
func (w *worker) count() {
	wanted, published, troubled := 0, 0, 0
	oldest := time.Time{}
	for _, t := range w.tasks {
		wanted += len(t.state.Wanted)
		published += len(t.state.Published)
		if t.state.Trouble != "" {
			troubled++
		}
		if checked := t.q.Now; oldest.IsZero() || checked.Before(oldest) {
			oldest = checked
		}
	}
	w.t.k.metrics.set(w.name, wanted, published, troubled, len(w.tasks), oldest)
}
