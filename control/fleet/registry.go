package fleet

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
)

// Member is a node as the others see it.
type Member struct {
	Node string
	// Addresses are where clients reach it, in order: those at which it answers,
	// or all where it answers at none. Not to be modified.
	Addresses []netip.Addr
	Region    string // "": nobody said
	Weight    int    // its share of clients, from 1 to MaxWeight
	State     State  // Down: its record is gone, which is remembered for a minute
	// Healthy says that clients are to be sent to it: it is ready, nobody wants it
	// drained, and it is not known to be out of reach.
	Healthy bool
	Why     string // why it is not Healthy, for people; "" if it is
}

// Registry is the nodes of the cluster as etcd has them, and who of them is out.
// Feed it with Load and Change, as a handler of control/etcd's watch, and have it
// Run. It is safe for concurrent use.
type Registry struct {
	self string // whose view is known before etcd has it
	wake chan struct{}

	mu     sync.Mutex // guards the following fields
	loaded bool
	cards  map[string]*Card
	drains map[string]Drain
	views  map[string]*View
	own    *View // nil: none yet
	ghosts map[string]*ghost
	judge  judge
	now    *situation
	stale  bool          // something has changed since the last decision
	next   time.Time     // when to decide anew; zero: when something changes
	moved  chan struct{} // closed, and another made, when Members has other answers
}

// ghost is a node whose record is gone.
type ghost struct {
	card  *Card
	since time.Time
}

// NewRegistry returns a Registry of the node self that knows nothing yet.
func NewRegistry(self string) *Registry {
	return &Registry{
		self: self, wake: make(chan struct{}, 1),
		cards: map[string]*Card{}, drains: map[string]Drain{}, views: map[string]*View{}, ghosts: map[string]*ghost{},
		now: &situation{}, moved: make(chan struct{}),
	}
}

// gather is how long Run waits for more changes before it decides: as many nodes
// begin at once, deciding by each of their records takes more than all else. Whoever
// asks meanwhile is told what holds now.
const gather = 200 * time.Millisecond

// Run decides anew when something has changed, or time has passed, until ctx ends;
// it then returns nil.
func (r *Registry) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			timer.Reset(gather)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
		case <-timer.C:
		}
		r.mu.Lock()
		late := !r.next.IsZero() && !time.Now().Before(r.next)
		r.stale = r.stale || late
		r.settle()
		if late {
			r.tell()
		}
		next := r.next
		r.mu.Unlock()
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// Members returns the nodes in the order of their names. complete is false until
// etcd has been read: whoever gets that must change nothing, since nodes may be
// missing.
func (r *Registry) Members() (members []Member, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	for node, c := range r.cards {
		members = append(members, r.member(node, c))
	}
	for node, g := range r.ghosts {
		members = append(members, r.haunt(node, g.card))
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	return members, r.loaded
}

// member describes a node whose record is there.
func (r *Registry) member(node string, c *Card) Member {
	m := Member{Node: node, Addresses: c.Addresses, Region: c.Region, Weight: c.Weight, State: c.State}
	if d, ok := r.drains[node]; ok {
		if m.Why = "it is drained"; d.Reason != "" {
			m.Why += ": " + d.Reason
		}
		if m.State == Ready {
			m.State = Draining
		}
		return m
	}
	if c.State != Ready {
		if m.Why = "it is " + string(c.State); c.State == Joining && len(c.Addresses) == 0 {
			m.Why += ", and has no address yet"
		}
		return m
	}
	var in []netip.Addr
	for _, a := range c.Addresses {
		if out := r.judge.out[subjectOf(node, a)]; out == nil {
			in = append(in, a)
		} else if m.Why == "" {
			m.Why = out.why
		}
	}
	switch {
	case len(c.Addresses) == 0:
		m.Why = "it has no address"
	case len(in) > 0:
		m.Addresses, m.Healthy, m.Why = in, true, ""
	}
	return m
}

// haunt describes a node whose record is gone: it is down, unless so many are gone
// that etcd is doubted rather than those that somebody still sees.
func (r *Registry) haunt(node string, c *Card) Member {
	m := Member{Node: node, Addresses: c.Addresses, Region: c.Region, Weight: c.Weight, State: Down, Why: "its record in etcd is gone"}
	if _, drained := r.drains[node]; drained || c.State != Ready || !r.now.doubtful() {
		return m
	}
	var seen []netip.Addr
	for _, a := range c.Addresses {
		if r.now.seen(subjectOf(node, a)) || node == r.self {
			seen = append(seen, a)
		}
	}
	if len(seen) > 0 {
		m.Addresses, m.Healthy, m.Why = seen, true, ""
	}
	return m
}

// Drained returns whether somebody wants a node drained, and their words.
func (r *Registry) Drained(node string) (Drain, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.drains[node]
	return d, ok
}

// KeepsNames reports whether a node is there that may keep names in DNS: one with
// a provider, or of a version that does not tell. One whose record went within
// the last minute counts too, for it may be about to come back. known is false
// until etcd has been read.
func (r *Registry) KeepsNames() (some, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	may := func(c *Card) bool { return c.Names == nil || *c.Names }
	for _, c := range r.cards {
		some = some || may(c)
	}
	for _, g := range r.ghosts {
		some = some || may(g.card)
	}
	return some, r.loaded
}

// Changed returns a channel that is closed once Members, or another method, may
// have other answers. Call it before those, so that no change is missed.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved
}

// Load replaces all that is known by the keys below Folders as of a revision.
func (r *Registry) Load(_ int64, kvs []etcd.KV) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := maps.Clone(r.cards)
	clear(r.cards)
	clear(r.drains)
	clear(r.views)
	for _, kv := range kvs {
		r.put(kv.Key, kv.Value)
	}
	for node, c := range was {
		if r.cards[node] == nil {
			r.ghosts[node] = &ghost{c, time.Now()}
		}
	}
	r.loaded, r.stale = true, true
	r.tell()
}

// Change notes changes, in their order.
func (r *Registry) Change(_ int64, changes []etcd.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := false
	for _, c := range changes {
		if c.Deleted {
			news = r.remove(c.Key) || news
		} else {
			news = r.put(c.Key, c.Value) || news
		}
	}
	if news {
		r.stale = true
		r.tell()
	}
}

// setView notes what this node sees itself.
func (r *Registry) setView(v *View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own, r.stale = v, true
	r.tell()
}

func (r *Registry) tell() {
	close(r.moved)
	r.moved = make(chan struct{})
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// settle decides, unless nothing has changed since the last time. r.mu is held.
func (r *Registry) settle() {
	if r.stale {
		r.stale = false
		r.decide()
	}
}

// decide brings what follows from cards, drains and views up to date. r.mu is held.
func (r *Registry) decide() {
	now := time.Now()
	r.next = time.Time{}
	s := &situation{nodes: slices.Sorted(maps.Keys(r.cards)), views: r.views, gone: map[string]time.Time{}}
	if r.own != nil {
		s.views = maps.Clone(r.views)
		s.views[r.self] = r.own
	}
	for node, g := range r.ghosts {
		if end := g.since.Add(ghostFor); now.Before(end) {
			s.gone[node] = g.since
			r.next = earliest(r.next, end)
		} else {
			delete(r.ghosts, node)
		}
	}
	for _, node := range s.nodes {
		c := r.cards[node]
		if _, drained := r.drains[node]; drained || c.State != Ready {
			continue
		}
		for _, a := range c.Addresses {
			s.subjects = append(s.subjects, subjectOf(node, a))
		}
	}
	slices.Sort(s.subjects)
	r.now = s
	r.next = earliest(r.next, r.judge.decide(now, s))
}

// put notes a value, and reports whether it is of a key that matters. A card that
// cannot be read is none: clients cannot be sent to whoever wrote it.
func (r *Registry) put(key string, value []byte) bool {
	folder, node, _ := strings.Cut(key, "/")
	switch folder + "/" {
	case cardsFolder:
		delete(r.cards, node)
		if c, err := ParseCard(value); err == nil {
			r.cards[node] = c
			delete(r.ghosts, node)
		}
	case drainFolder:
		r.drains[node], _ = ParseDrain(value)
	case viewsFolder:
		delete(r.views, node)
		if v, err := ParseView(value); err == nil {
			r.views[node] = v
		}
	default:
		return false
	}
	return true
}

func (r *Registry) remove(key string) bool {
	folder, node, _ := strings.Cut(key, "/")
	switch folder + "/" {
	case cardsFolder:
		if c := r.cards[node]; c != nil {
			r.ghosts[node] = &ghost{c, time.Now()}
		}
		delete(r.cards, node)
	case drainFolder:
		delete(r.drains, node)
	case viewsFolder:
		delete(r.views, node)
	default:
		return false
	}
	return true
}

// target is an address that a node looks at.
type target struct {
	subject string
	addr    netip.Addr
	https   int // port; 0: none
	mapped  int // port; 0: none
}

// targets returns what this node is to look at, in the order of subjects: the
// addresses of the nodes that it watches, also for a while after their records went.
func (r *Registry) targets() []target {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	var all []target
	add := func(node string, c *Card) {
		if node == r.self || c.HTTPS == 0 && c.Mapped == 0 || c.State != Ready {
			return
		}
		if !slices.Contains(r.judge.watch(node, r.now.nodes), r.self) {
			return
		}
		for _, a := range c.Addresses {
			all = append(all, target{subjectOf(node, a), a, c.HTTPS, c.Mapped})
		}
	}
	for node, c := range r.cards {
		add(node, c)
	}
	for node, g := range r.ghosts {
		add(node, g.card)
	}
	slices.SortFunc(all, func(a, b target) int { return cmp.Compare(a.subject, b.subject) })
	return all
}

// Wary reports whether votes would put so many nodes out that they are not
// believed, and nobody else goes out.
func (r *Registry) Wary() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	return r.judge.wary
}
