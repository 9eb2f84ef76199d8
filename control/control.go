// Package control turns what the cluster's etcd says into what the data plane
// does. It reads every key, keeps the last good value of each, compiles tables,
// hands them to the data plane, says in a verdict what became of each key, and
// keeps the last good state on disk so that a node starts without etcd.
//
// It never opens a public socket and knows no data-plane package: it speaks to
// the data plane, the certificates and the verdict writer through the small
// interfaces below. cmd/sluice wires them.
package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// applier is the data plane. Apply makes t the table in force and returns once
// new connections are routed by it. It is called from one goroutine at a time.
type applier interface {
	Apply(t *router.Table)
}

// verdicts is where the node's verdicts go. Neither call blocks.
type verdicts interface {
	Set(key, text string)
	Delete(key string)
}

// Handler is what a source of keys calls: Load with all of them at one
// revision, first of all and whenever changes may have been missed, and Change
// with what changed since. A Controller is one.
type Handler interface {
	Load(rev int64, kvs []etcd.KV)
	Change(rev int64, changes []etcd.Change)
}

// Config wires a Controller. Watch, Applier, Verdicts and Logger are needed.
type Config struct {
	// Watch follows the cluster's keys until ctx ends, calling h from one
	// goroutine.
	Watch    func(ctx context.Context, h Handler) error
	Applier  applier
	Verdicts verdicts
	// Domains gets the wanted certificates whenever they change; nil: nobody.
	Domains func([]*router.Domain)
	// Names gets the names to be kept true in DNS with the first load from etcd and
	// whenever they change; nil: nobody. What is on disk may be old, and is no
	// reason to change what others see.
	Names func([]*router.PublishedName)
	// Routes gets the routes that came, changed (by name) or went (nil), once
	// they are in force and before their verdicts are written, so that what it
	// tells SetCertificate stands in these; nil: nobody.
	Routes func(map[string]*router.Route)
	// Applied gets the revision of each table after it was applied, and the
	// fingerprint of what is in force with it; nil: nobody.
	Applied func(rev int64, f Fingerprint)
	// Ports are the ports that the node's mappings may open.
	Ports router.Ports
	// Own reports whether an address is one of the node's own, so that mappings
	// which lead back to themselves are refused; nil: they are not.
	Own func(netip.Addr) bool
	// Private says what of the node itself answers at an address of its own,
	// such as "the admin address", which no TCP mapping and no route may lead to;
	// "": nothing does. nil: nothing does anywhere.
	Private func(netip.AddrPort) string
	// Public says likewise which of the node's public listeners is at an address,
	// such as "the https listener", which no route may lead to.
	Public func(netip.AddrPort) string
	// Guard says when deletions are held back.
	Guard Guard
	// Backend says what this node lacks to connect to a backend, such as a file
	// that the backend refers to, for which its key is refused. The error is a
	// *router.FieldError whose path begins behind that of the backend. nil:
	// nothing is looked at.
	Backend func(*router.Backend) error
	// Pool says what is amiss with a pool that is to be in force, for its verdict,
	// such as that environments hold ports outside of it; "": nothing is. Should that
	// change, SetState says so. nil: nothing ever is.
	Pool func(*portpool.Pool) string
	// BasicAuth is the same for users who are let in, nil being none.
	BasicAuth func(*router.BasicAuth) error
	// StateFile is where the last good state is kept; "" means nowhere.
	StateFile string
	// Cluster returns the ID of the etcd cluster that the last Load came from;
	// nil: it is not known.
	Cluster    func() uint64
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Controller keeps one node in step with its cluster. Make it with New.
type Controller struct {
	cfg     Config
	metrics *metrics
	saver   *saver

	ready     chan struct{} // closed by the first full load from etcd
	readyOnce sync.Once

	// applying is held from the first edit of a batch until all of it is in force;
	// it is taken before mu.
	applying sync.Mutex
	lacked   chan struct{} // told when lacking may have got a key; has room for one

	mu sync.Mutex // guards the following fields
	// entries has every key seen, accepted or refused.
	entries map[string]*entry
	builder router.Builder
	domains map[string]*router.Domain
	names   map[string]*router.PublishedName
	pools   map[string]*portpool.Pool
	rev     int64 // of etcd, in force; 0 before the first load
	// restored is the revision of the state that was read from disk.
	restored int64
	// lineage is the cluster that rev is of, "" where it is not known.
	lineage string
	dirty   dirtiness // what the edits since the last apply changed
	// routed are the routes among that; nil for one that is gone.
	routed map[string]*router.Route
	good   int // how many entries have a value in force
	// fingerprint is of the entries, and shown what it was when they were
	// applied last.
	fingerprint, shown Fingerprint
	scratch            []byte // of print
	// unsaved are the keys that came or left force since the state was saved;
	// nil: nobody saves, or all of it is to be.
	unsaved map[string]struct{}

	// atOdds are the keys whose value is refused for what other keys hold, and
	// contenders those in force whose value others may be refused for.
	atOdds     map[string]bool
	contenders map[string]struct{}
	// contested says that a value of this batch stands against another one, and
	// freed that one which others stood against has left force, or may yield.
	contested, freed bool
	// overtaken are the last good values of contenders that this revision had
	// other ones take the place of, which may not stay.
	overtaken map[string]lastGood
	// lacking are the keys whose value is refused for what this node lacks, and
	// those whose last good value is kept though none is in force.
	lacking map[string]bool
	// revived are the keys that this batch has in force again since their deletion
	// is held back after all.
	revived []string
	// removed are the domains that this batch took out of force.
	removed map[string]states
	guard   *guard
}

type dirtiness struct{ table, domains, names bool }

// entry is what the node knows of one key.
type entry struct {
	value   string // as last seen in etcd
	rev     int64  // of that value
	refused string // why that value is refused; "" if it is in force
	// good is the value in force and goodRev its revision; 0: none is.
	good    string
	goodRev int64
	part    Fingerprint // of good
	// heldRev is the revision at which the key was deleted, where the guard
	// holds that back, else 0.
	heldRev int64
	// kept is the last good value where none is in force since the node lacks
	// something for it, or its file does not allow it any more.
	kept lastGood
	states
}

// New checks cfg and wires a Controller; nothing runs yet.
func New(cfg Config) (*Controller, error) {
	if cfg.Watch == nil || cfg.Applier == nil || cfg.Verdicts == nil || cfg.Logger == nil {
		return nil, fmt.Errorf("control: Watch, Applier, Verdicts and Logger are all needed")
	}
	c := &Controller{
		cfg:     cfg,
		ready:   make(chan struct{}),
		entries: map[string]*entry{},
		domains: map[string]*router.Domain{},
		names:   map[string]*router.PublishedName{},
		pools:   map[string]*portpool.Pool{},
		atOdds:  map[string]bool{}, contenders: map[string]struct{}{}, overtaken: map[string]lastGood{},
		lacking: map[string]bool{},
		lacked:  make(chan struct{}, 1),
		removed: map[string]states{},
		routed:  map[string]*router.Route{},
		guard:   newGuard(cfg.Guard),
	}
	c.metrics = newMetrics(cfg.Registerer)
	c.saver = &saver{path: cfg.StateFile, source: c, log: cfg.Logger, changed: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		asked: make(chan saveAsked)}
	return c, nil
}

// Run follows the cluster until ctx ends, and saves the state once more before
// it returns nil. Any other return is an error of Watch. Restore, if at all,
// comes before it.
func (c *Controller) Run(ctx context.Context) error {
	// The saver outlives the watch, so that its last change is saved too.
	saverCtx, stopSaver := context.WithCancel(context.WithoutCancel(ctx))
	var saving sync.WaitGroup
	saving.Go(func() { c.saver.run(saverCtx) })
	defer saving.Wait()
	defer stopSaver()
	looking, stopLooking := context.WithCancel(ctx)
	defer stopLooking()
	saving.Go(func() { c.lookAgain(looking) })
	return c.cfg.Watch(ctx, c)
}

// Save has the state on disk be what is known now, and, with leave, left alone
// from then on: another process is going to write it. Save without leave takes that
// back. It waits for Run, and returns why the state could not be saved.
func (c *Controller) Save(ctx context.Context, leave bool) error {
	ask := saveAsked{leave, make(chan error, 1)}
	select {
	case c.saver.asked <- ask:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-ask.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ready is closed once the first full load from etcd has been applied.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Load brings the node to the full set of keys at revision rev. Only what
// differs from what it has is touched. Load and Change are called from
// one goroutine.
func (c *Controller) Load(rev int64, kvs []etcd.KV) {
	c.applying.Lock()
	defer c.applying.Unlock()
	there := make(map[string]bool, len(kvs))
	// As they came, so that little has to be decided anew.
	slices.SortStableFunc(kvs, func(a, b etcd.KV) int { return cmp.Compare(a.ModRev, b.ModRev) })
	c.mu.Lock()
	clear(c.removed)
	cluster := c.cluster()
	// What was said at revisions of another cluster, or of another course of this
	// one, says nothing of what this node has in force.
	strange := rev < max(c.rev, c.restored) || c.lineage != "" && cluster != "" && c.lineage != cluster
	if strange {
		c.goBack(rev)
	}
	c.lineage = cmp.Or(cluster, c.lineage)
	var touched []string
	for _, kv := range kvs {
		there[kv.Key] = true
		if c.put(kv.Key, string(kv.Value), kv.ModRev) {
			touched = append(touched, kv.Key)
		}
	}
	var gone []string
	for key := range c.entries {
		if !there[key] && c.entries[key].heldRev == 0 {
			gone = append(gone, key)
		}
	}
	if len(gone) > 0 {
		c.removeAll(gone, rev, false)
		touched = append(touched, gone...)
	}
	// It may have come while the node was away, and covers what was held before.
	if e := c.entries[ConfirmedKey]; e != nil && !strange {
		touched = append(touched, c.confirm(e.rev)...)
	}
	c.restored = 0
	c.contested = c.contested || len(c.atOdds) > 0
	touched = c.settle(touched)
	// A restored state has no verdicts yet: the first load writes them all.
	if !c.isReady() {
		c.dirty.names = true // of what was on disk nobody was told
		known := func(key string) bool { return c.entries[key] != nil }
		touched = slices.AppendSeq(slices.DeleteFunc(touched, known), maps.Keys(c.entries))
		// The youngest first: of a great many, etcd gets the verdicts on those.
		slices.SortFunc(touched, func(a, b string) int { return cmp.Compare(c.revOf(b), c.revOf(a)) })
	}
	c.mu.Unlock()
	c.apply(rev, touched)
	c.saver.expect(c.header())
	c.metrics.loads.Inc()
	c.readyOnce.Do(func() { close(c.ready) })
	c.cfg.Logger.Info("applied a full load from etcd", "rev", rev, "keys", len(kvs), "changed", len(touched))
}

// Fingerprint returns that of what is in force.
func (c *Controller) Fingerprint() Fingerprint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown
}

// Status says what is in force: the revision, and whether it came from "etcd",
// from "disk", or from nowhere yet, "none".
func (c *Controller) Status() (source string, rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.rev != 0:
		return "etcd", c.rev
	case c.restored != 0:
		return "disk", c.restored
	}
	return "none", 0
}

// Verdict returns what the node has to say of a key, as in etcd, or "" where it
// knows of none. It may be called from any goroutine.
func (c *Controller) Verdict(key string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		return ""
	}
	return e.verdict()
}

// revOf returns the revision of a key's value in etcd, 0 where there is none.
func (c *Controller) revOf(key string) int64 {
	if e := c.entries[key]; e != nil {
		return e.rev
	}
	return 0
}

func (c *Controller) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// Change applies changes, in their order, and makes revision rev the one in
// force.
func (c *Controller) Change(rev int64, changes []etcd.Change) {
	start := time.Now()
	c.applying.Lock()
	defer c.applying.Unlock()
	touched := make([]string, 0, len(changes))
	c.mu.Lock()
	clear(c.removed)
	// Revision by revision, so that every node decides alike, however they came.
	for rest := changes; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].ModRev == rest[0].ModRev {
			n++
		}
		touched = c.settle(c.changeOne(touched, rest[:n]))
		rest = rest[n:]
	}
	c.tellHeld()
	c.mu.Unlock()
	c.apply(rev, touched)
	c.metrics.changes.Add(float64(len(changes)))
	c.metrics.applySeconds.Observe(time.Since(start).Seconds())
}

// changeOne applies the changes of one revision, and appends the keys whose
// verdict may be another one to touched. c.mu is held.
func (c *Controller) changeOne(touched []string, changes []etcd.Change) []string {
	first := len(touched)
	for _, ch := range changes {
		if ch.Deleted {
			touched = append(touched, ch.Key)
		}
	}
	if gone := touched[first:]; len(gone) > 0 {
		c.removeAll(gone, changes[0].ModRev, meant(changes))
	}
	for _, ch := range changes {
		if ch.Deleted {
			continue
		}
		if c.put(ch.Key, string(ch.Value), ch.ModRev) {
			touched = append(touched, ch.Key)
		}
		if ch.Key == ConfirmedKey {
			touched = append(touched, c.confirm(ch.ModRev)...)
		}
	}
	return touched
}

// apply hands what the edits before it made to the data plane, and only then
// says so in the verdicts of the touched keys. mu is not held while the data
// plane works: it reports through SetState meanwhile.
func (c *Controller) apply(rev int64, touched []string) {
	c.mu.Lock()
	dirty := c.dirty
	c.dirty = dirtiness{}
	table := c.builder.Table(rev)
	var domains []*router.Domain
	if dirty.domains {
		domains = slices.Collect(maps.Values(c.domains))
	}
	var names []*router.PublishedName
	if dirty.names {
		names = slices.Collect(maps.Values(c.names))
	}
	routed := c.takeRouted()
	c.mu.Unlock()

	if dirty.table {
		c.cfg.Applier.Apply(table)
	}
	if dirty.domains && c.cfg.Domains != nil {
		c.cfg.Domains(domains)
	}
	if dirty.names && c.cfg.Names != nil {
		c.cfg.Names(names)
	}
	if len(routed) > 0 {
		c.cfg.Routes(routed)
	}
	c.mu.Lock()
	c.shown = c.fingerprint
	restored := c.restored != 0
	if !restored { // else it is no revision of etcd, which is away
		c.rev = rev
		c.metrics.rev.Set(float64(rev))
	}
	for _, key := range touched {
		c.publish(key)
	}
	c.metrics.keys.Set(float64(len(c.entries)))
	shown := c.shown
	c.metrics.fingerprint.Set(float64(shown))
	c.mu.Unlock()
	if c.cfg.Applied != nil && !restored {
		c.cfg.Applied(rev, shown)
	}
	if len(touched) > 0 {
		c.saver.poke()
	}
}
