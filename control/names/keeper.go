package names

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// store is etcd as a Keeper needs it; an *etcd.Client is one.
type store interface {
	ReadUnder(ctx context.Context, folder string, rev int64) (kvs []etcd.KV, of int64, err error)
	Follow(ctx context.Context, folders []string, rev int64, each func([]etcd.Change) (done bool, err error)) error
}

// Term is the time of one leader: Commit writes only while it lasts. An
// *etcd.Term is one.
type Term interface {
	Commit(ctx context.Context, writes []etcd.Write) (rev int64, err error)
}

// Config is what a Keeper needs. All fields but Registerer, Now and Dial are needed.
type Config struct {
	Node      string
	Store     store
	Providers map[string]Provider // by their names in the node's file
	// Members returns the nodes and whether all that matters of them is known, and
	// MembersChanged a channel that is closed once that may have changed.
	Members        func() (members []Member, complete bool)
	MembersChanged func() <-chan struct{}
	// Resolve returns the addresses of a name and for how long they hold.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error)
	// Dial returns nil if a TCP connection is taken at an address; nil: by net.Dialer.
	Dial func(ctx context.Context, at netip.AddrPort) error
	// Verdict says how the value in force of a key under names/ fares.
	Verdict    func(key string, degraded bool, text string)
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // nil: time.Now
}

// Keeper keeps names true while its node leads. Make it with New.
type Keeper struct {
	cfg     Config
	metrics *metrics
	lacking map[string]bool // names that have no provider; SetNames'

	mu    sync.Mutex                       // guards the following
	specs map[string]*router.PublishedName // nil: not told yet
	moved chan struct{}                    // closed, and another made, when specs change
}

// New returns a Keeper, which does nothing before Lead.
func New(cfg Config) *Keeper {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = dial
	}
	return &Keeper{cfg: cfg, metrics: newMetrics(cfg.Registerer), moved: make(chan struct{})}
}

// SetNames says which names are to be kept. It does not block. Of those that the
// node could not keep if it led, Verdict is told before SetNames returns. It is
// called by one goroutine at a time.
func (k *Keeper) SetNames(all []*router.PublishedName) {
	lacking := map[string]bool{}
	for _, p := range all {
		lack := k.lack(p)
		if lacking[p.Name] = lack != ""; lack != "" || k.lacking[p.Name] {
			k.cfg.Verdict(Key(p.Name), lack != "", lack)
		}
	}
	k.lacking = lacking
	k.mu.Lock()
	defer k.mu.Unlock()
	k.specs = make(map[string]*router.PublishedName, len(all))
	for _, p := range all {
		k.specs[p.Name] = p
	}
	close(k.moved)
	k.moved = make(chan struct{})
}

// lack says why no provider of this node has a name; "": one has.
func (k *Keeper) lack(p *router.PublishedName) string {
	if _, err := homeOf(p, k.cfg.Node, k.cfg.Providers); err != nil {
		return err.Error()
	}
	return ""
}

// names returns the names to be kept, not to be modified, and a channel that is
// closed when they change.
func (k *Keeper) names() (map[string]*router.PublishedName, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.specs, k.moved
}

// term is what a Keeper has while it leads.
type term struct {
	k       *Keeper
	fence   Term
	cluster string
	sources *sources
	workers map[string]*worker

	mu       sync.Mutex // guards the following
	requests map[string]request
	states   map[string]State // as they stand in etcd
}

// Lead keeps names until ctx, the leader's, ends, or until it cannot know any
// more what it needs; the caller calls it again with the next term.
func (k *Keeper) Lead(ctx context.Context, fence Term) error {
	if specs, moved := k.names(); specs == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		}
	}
	t := &term{k: k, fence: fence, requests: map[string]request{}, states: map[string]State{}}
	rev, err := t.read(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	defer t.silence()
	t.sources = newSources(k.cfg.Resolve, k.cfg.Dial, t.wakeAll)
	t.workers = map[string]*worker{}
	for name, p := range k.cfg.Providers {
		t.workers[name] = newWorker(t, name, p)
	}
	t.workers[""] = newWorker(t, "", nil) // of names that have none
	for _, w := range t.workers {
		running.Go(func() { cancel(w.run(ctx)) })
	}
	running.Go(func() { t.sources.run(ctx) })
	running.Go(func() {
		cancel(k.cfg.Store.Follow(ctx, []string{RequestFolder}, rev, func(changes []etcd.Change) (bool, error) {
			t.asked(changes)
			return false, nil
		}))
	})
	t.watch(ctx)
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// read reads what the leader before has left, and what is asked for.
func (t *term) read(ctx context.Context) (rev int64, err error) {
	kvs, rev, err := t.k.cfg.Store.ReadUnder(ctx, "dns/", 0)
	if err != nil {
		return 0, fmt.Errorf("read how names fare: %w", err)
	}
	for _, kv := range kvs {
		switch {
		case kv.Key == ClusterKey:
			t.cluster = strings.TrimSpace(string(kv.Value))
		case strings.HasPrefix(kv.Key, RequestFolder):
			name, r := parseRequest(kv)
			t.requests[name] = r
		case strings.HasPrefix(kv.Key, StateFolder):
			s, err := ParseState(kv.Value)
			if err != nil {
				t.k.cfg.Logger.Warn("what was noted of a name cannot be read; it is looked at anew", "key", kv.Key, "err", err)
				continue
			}
			if s.Owned {
				s.left = s.Published
			}
			t.states[strings.TrimPrefix(kv.Key, StateFolder)] = s
		}
	}
	if t.cluster == "" || strings.ContainsAny(t.cluster, ",\" ") {
		t.cluster = strings.ToLower(rand.Text()[:12])
		if rev, err = t.fence.Commit(ctx, []etcd.Write{{Key: ClusterKey, Value: t.cluster}}); err != nil {
			return 0, fmt.Errorf("name the cluster: %w", err)
		}
	}
	return rev, nil
}

// watch tells the workers of what changes, until ctx ends.
func (t *term) watch(ctx context.Context) {
	for {
		members := t.k.cfg.MembersChanged()
		specs, moved := t.k.names()
		t.sources.set(specs)
		t.wakeAll()
		select {
		case <-ctx.Done():
			return
		case <-members:
		case <-moved:
		}
	}
}

func (t *term) wakeAll() {
	for _, w := range t.workers {
		w.poke()
	}
}

// asked takes up requests.
func (t *term) asked(changes []etcd.Change) {
	t.mu.Lock()
	for _, c := range changes {
		name, r := parseRequest(etcd.KV{Key: c.Key, Value: c.Value, ModRev: c.ModRev})
		if c.Deleted {
			delete(t.requests, name)
		} else {
			t.requests[name] = r
		}
	}
	t.mu.Unlock()
	t.wakeAll()
}

// wanted returns what a name is to have.
func (t *term) wanted(p *router.PublishedName) Wanted {
	if len(p.Sources) > 0 {
		return t.sources.wanted(p)
	}
	members, complete := t.k.cfg.Members()
	return wantMembers(p, members, complete)
}

// mine returns the names of a worker, with the zones that they are in, and what
// is wrong with those that have no provider: those are the worker's without one.
func (t *term) mine(provider string) (specs map[string]*router.PublishedName, homes map[string]home, wrong map[string]error) {
	all, _ := t.k.names()
	specs, homes, wrong = map[string]*router.PublishedName{}, map[string]home{}, map[string]error{}
	for name, p := range all {
		h, err := homeOf(p, t.k.cfg.Node, t.k.cfg.Providers)
		if err != nil {
			h.provider = ""
		}
		if h.provider != provider {
			continue
		}
		specs[name], homes[name] = p, h
		if err != nil {
			wrong[name] = err
		}
	}
	return specs, homes, wrong
}

// request returns what is asked of a name.
func (t *term) request(name string) (request, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.requests[name]
	return r, ok
}

// state returns what stands in etcd of a name.
func (t *term) state(name string) (State, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.states[name]
	return s, ok
}

// commit writes states that are not there yet, and takes the requests away that
// they answer, as long as the term lasts. Whatever is changed at a provider is
// committed before: who does not lead any more changes nothing.
func (t *term) commit(ctx context.Context, states []State, always bool) error {
	var writes []etcd.Write
	t.mu.Lock()
	for _, s := range states {
		was, ok := t.states[s.Name]
		if ok && was.text() == s.text() && !always {
			continue
		}
		writes = append(writes, etcd.Write{Key: StateFolder + s.Name, Value: s.text()})
		if r, ok := t.requests[s.Name]; ok && s.Answered == r.rev {
			writes = append(writes, etcd.Write{Key: RequestFolder + s.Name, Delete: true, Since: r.rev})
		}
	}
	t.mu.Unlock()
	for chunk := range slices.Chunk(writes, etcd.MaxEdits) {
		if err := t.write(ctx, chunk); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range states {
		t.states[s.Name] = s
	}
	return nil
}

// write writes, and where a request was replaced meanwhile, leaves that.
func (t *term) write(ctx context.Context, writes []etcd.Write) error {
	_, err := t.fence.Commit(ctx, writes)
	if !errors.Is(err, etcd.ErrDeposed) {
		return err
	}
	writes = slices.DeleteFunc(writes, func(w etcd.Write) bool { return w.Since != 0 })
	if len(writes) == 0 {
		return nil
	}
	_, err = t.fence.Commit(ctx, writes)
	return err
}

// forget removes what is noted of names that are not kept any more. Their records
// stay as they are.
func (t *term) forget(ctx context.Context) error {
	specs, _ := t.k.names()
	var gone []etcd.Write
	t.mu.Lock()
	for name := range t.states {
		if specs[name] == nil {
			gone = append(gone, etcd.Write{Key: StateFolder + name, Delete: true})
		}
	}
	for name := range t.requests {
		if specs[name] == nil {
			gone = append(gone, etcd.Write{Key: RequestFolder + name, Delete: true})
		}
	}
	maps.DeleteFunc(t.states, func(name string, _ State) bool { return specs[name] == nil })
	maps.DeleteFunc(t.requests, func(name string, _ request) bool { return specs[name] == nil })
	t.mu.Unlock()
	for chunk := range slices.Chunk(gone, etcd.MaxEdits) {
		if _, err := t.fence.Commit(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// silence takes back what the leader said: another one speaks from now on, but for
// what this node could not keep.
func (t *term) silence() {
	specs, _ := t.k.names()
	for name, p := range specs {
		lack := t.k.lack(p)
		t.k.cfg.Verdict(Key(name), lack != "", lack)
	}
	t.k.metrics.reset()
}

// Key returns the key of a name, below the prefix.
func Key(name string) string { return "names/" + name }
