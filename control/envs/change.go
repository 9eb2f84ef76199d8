package envs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Store is where keys are written: an etcd.Client.
type Store interface {
	// Commit makes all of edits at one revision or, with an *etcd.ConflictError,
	// none of them.
	Commit(ctx context.Context, edits []etcd.Edit, note string) (rev int64, err error)
	// ReadKey returns a key, nil if there is none.
	ReadKey(ctx context.Context, key string) (*etcd.KV, error)
}

// Config wires a Manager. Store, Registry and Ports are needed.
type Config struct {
	Store    Store
	Registry *Registry
	// Ports are those that the cluster's nodes open for mappings.
	Ports router.Ports
	// By says who makes changes through the manager, for the history, where the
	// context does not.
	By string
	// Refresh, unless nil, brings the registry up to date, where nothing else
	// does.
	Refresh func(ctx context.Context) error
	// Sync, where the registry follows etcd, returns once it knows all that etcd
	// had when Sync was called. nil: what it knows is taken for what there is.
	Sync func(ctx context.Context) error
	// Seal and Open keep secrets of environments; nil: there are none to keep.
	// path is the key of the environment.
	Seal func(ctx context.Context, path string, plain []byte) ([]byte, error)
	Open func(path string, sealed []byte) ([]byte, error)
	// Space bounds the bytes that environments take in etcd, with their mappings
	// and routes; 0: nothing does.
	Space int
	// Deny are networks where no service of an environment may listen that is made
	// or changed with a context of Guard.
	Deny []netip.Prefix
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Metrics counts what happens; nil: nobody does.
	Metrics *Metrics
}

// byKey is where a context has who makes changes with it.
type byKey struct{}

// By returns a context with which changes are made by who, for the history.
func By(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, byKey{}, who)
}

// by returns who makes changes with ctx.
func (m *Manager) by(ctx context.Context) string {
	if who, ok := ctx.Value(byKey{}).(string); ok {
		return who
	}
	return m.cfg.By
}

// guardKey is where a context has that Config.Deny is to be heeded.
type guardKey struct{}

// Guard returns a context with which changes are made that are bound by
// Config.Deny: by somebody who is trusted with some environments only.
func Guard(ctx context.Context) context.Context { return context.WithValue(ctx, guardKey{}, true) }

// Manager changes environments. Make one with New. It is safe for concurrent use,
// and so are many of them on as many nodes.
type Manager struct {
	cfg    Config
	reg    *Registry
	rivals rivals
}

// New wires a Manager; nothing runs.
func New(cfg Config) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Registry.opens(cfg.Ports)
	return &Manager{cfg: cfg, reg: cfg.Registry}
}

// NotFoundError says that there is no such environment, or that it has no such
// service.
type NotFoundError struct{ ID, Service string }

func (e *NotFoundError) Error() string {
	if e.Service != "" {
		return fmt.Sprintf("environment %s has no service %s", e.ID, e.Service)
	}
	return fmt.Sprintf("there is no environment %s", e.ID)
}

// ExistsError says that there is another environment of that name, or that it has
// another service of that name.
type ExistsError struct{ ID, What string }

func (e *ExistsError) Error() string {
	return fmt.Sprintf("environment %s exists already, %s", e.ID, e.What)
}

// draft is a change in the making: the edits of one transaction.
type draft struct {
	now     time.Time
	guarded bool // Config.Deny is to be heeded
	skip    int  // free places to pass over, after lost races
	edits   []etcd.Edit
	grants  []*portpool.Grant
	rested  []time.Duration // how long ago their ports were released
	meant   bool            // its deletions are, however many
	same    bool            // nothing is to be done
	read    map[string]*etcd.KV
	unread  []string // keys whose values have to be read first, into read
}

const (
	attempts = 40
	// catchUp bounds the wait for one's own change, or for that of another, to
	// come back by the watch.
	catchUp = time.Second
)

// change has plan make a draft, with the registry's lock held, and commits it.
// When another change came first it has another one made. It returns once the
// registry knows of the change.
func (m *Manager) change(ctx context.Context, plan func(d *draft) error) (rev int64, err error) {
	if err := m.reg.ready(ctx); err != nil {
		return 0, err
	}
	guarded, _ := ctx.Value(guardKey{}).(bool)
	read := map[string]*etcd.KV{}
	synced := m.cfg.Sync == nil
	for range attempts {
		d := &draft{guarded: guarded, read: read, skip: m.rivals.skip(m.cfg.Now())}
		err := m.plan(d, plan)
		if (err != nil || d.same) && !synced {
			// What is written is right by its conditions. That nothing is to be
			// written, or can be, is right only if nobody has changed that just now.
			if err := m.cfg.Sync(ctx); err != nil {
				return 0, err
			}
			synced = true
			d = &draft{guarded: guarded, read: read, skip: d.skip}
			err = m.plan(d, plan)
		}
		if isScarcity(err) && m.othersEnded(ctx) {
			continue // what others were about to get they may not have got
		}
		if err != nil || d.same {
			return 0, err
		}
		if len(d.unread) > 0 {
			if err := m.readKeys(ctx, d); err != nil {
				return 0, err
			}
			continue
		}
		synced = m.cfg.Sync == nil
		rev, err = m.commit(ctx, d)
		if conflict := (*etcd.ConflictError)(nil); !errors.As(err, &conflict) {
			return rev, err
		} else if err := m.lost(ctx, d, conflict); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("gave up after %d attempts, each of which somebody else's change came before: %w", attempts, cmp.Or(err, errors.New("keys changed while they were looked at")))
}

// current waits until the registry knows all that etcd has, for as long as etcd
// answers; else what is known has to do, and stale says why it may be old.
func (m *Manager) current(ctx context.Context) (stale, err error) {
	if err := m.reg.ready(ctx); err != nil {
		return nil, err
	}
	if m.cfg.Sync != nil {
		ctx, cancel := context.WithTimeout(ctx, catchUp)
		defer cancel()
		stale = m.cfg.Sync(ctx)
	}
	return stale, nil
}

// envAsOf returns an environment. That there is none can only be said by who knows
// that nothing is stale.
func (m *Manager) envAsOf(id string, stale error) (*Env, error) {
	e, err := m.env(id)
	if stale != nil && errors.As(err, new(*NotFoundError)) {
		return nil, fmt.Errorf("environment %s is not known here, and etcd cannot be asked: %w", id, stale)
	}
	return e, err
}

// isScarcity reports whether err says that there was no port to be had.
func isScarcity(err error) bool {
	return errors.As(err, new(*portpool.ExhaustedError)) || errors.As(err, new(*portpool.TakenError))
}

// othersEnded waits until a change that another request is making on this node
// has come to its end. It returns false where there is none.
func (m *Manager) othersEnded(ctx context.Context) bool {
	m.reg.mu.Lock()
	before, pending := m.reg.ended, m.reg.pending
	m.reg.mu.Unlock()
	if pending == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	return m.reg.await(ctx, func() bool { return m.reg.ended != before || m.reg.pending == 0 }) == nil
}

// plan has the draft made, and its ports kept from others.
func (m *Manager) plan(d *draft, plan func(d *draft) error) error {
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	d.now = m.cfg.Now().UTC().Truncate(time.Second)
	err := plan(d)
	if len(d.grants) > 0 {
		m.reg.pending++
	}
	if err == nil {
		err = m.checkDraft(d)
	}
	if err != nil || len(d.unread) > 0 {
		m.unclaim(d)
	}
	return err
}

// maxDraft bounds what a transaction writes: etcd takes requests of 1.5 MiB.
const maxDraft = 1 << 20

// FullError says that environments take all the room in etcd that they may.
type FullError struct{ Space, Taken, More int }

func (e *FullError) Error() string {
	return fmt.Sprintf("environments take %d bytes in etcd with their mappings and routes, this would take %d more, and they may take %d (api.space in sluice.yaml); end some",
		e.Taken, e.More, e.Space)
}

// checkDraft refuses what etcd would not take, or should not.
func (m *Manager) checkDraft(d *draft) error {
	if len(d.edits)+1 > etcd.MaxEdits {
		return &router.FieldError{Path: "services", Msg: fmt.Sprintf("come to %d keys, and a transaction of etcd has room for %d; ask for fewer ports", len(d.edits), etcd.MaxEdits-1)}
	}
	size, more := 0, 0
	for _, e := range d.edits {
		size += len(e.Key) + len(e.Value)
		if !e.Check {
			more += m.reg.growth(e)
		}
	}
	if size > maxDraft {
		return &router.FieldError{Path: "services", Msg: fmt.Sprintf("come to %d bytes, and a transaction of etcd has room for %d; say less in mapping, or ask for fewer ports", size, maxDraft)}
	}
	if m.cfg.Space > 0 && more > 0 && m.reg.space+more > m.cfg.Space {
		return &FullError{m.cfg.Space, m.reg.space, more}
	}
	return nil
}

// growth returns how many bytes more environments take after an edit.
func (r *Registry) growth(e etcd.Edit) int {
	was := 0
	switch folder, name, _ := strings.Cut(e.Key, "/"); folder + "/" {
	case envsFolder:
		if there := r.envs[name]; there != nil {
			was = there.size
		}
	case portsFolder:
		was = r.maps[e.Key].size
	case routesFolder:
		was = r.routes[e.Key].size
	default:
		return 0 // there is one for each port at most
	}
	if e.Delete {
		return -was
	}
	return len(e.Key) + len(e.Value) - was
}

// unclaim ends the claims of d. The registry's lock is held.
func (m *Manager) unclaim(d *draft) {
	if len(d.grants) == 0 {
		return
	}
	m.reg.pending--
	m.reg.ended++
	m.reg.tell()
	for _, g := range d.grants {
		m.reg.book.Unclaim(g)
	}
	d.grants = nil
}

func (m *Manager) commit(ctx context.Context, d *draft) (rev int64, err error) {
	defer func() {
		m.reg.mu.Lock()
		defer m.reg.mu.Unlock()
		m.unclaim(d)
	}()
	edits := d.edits
	if d.meant {
		edits = append(edits, etcd.Edit{Key: control.MeantKey, Value: []byte(m.by(ctx)), Blind: true})
	}
	rev, err = m.cfg.Store.Commit(ctx, edits, m.by(ctx))
	if err != nil {
		return 0, err
	}
	for _, rest := range d.rested {
		m.cfg.Metrics.reused(rest)
	}
	if m.cfg.Refresh != nil {
		return rev, nil // whoever changes more brings it up to date first
	}
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	// Should the watch be slower than that, transactions still are right: it is
	// only that a request soon after may see what was before.
	_ = m.reg.await(ctx, func() bool {
		for _, e := range d.edits {
			now := m.reg.rev(e.Key)
			if !e.Check && (e.Delete && now == e.Since || !e.Delete && now < rev) {
				return false
			}
		}
		return true
	})
	return rev, nil
}

// lost notes that another's change of a key came before that of d, and waits until
// the registry knows of it.
func (m *Manager) lost(ctx context.Context, d *draft, to *etcd.ConflictError) error {
	m.cfg.Metrics.conflict()
	switch folderOf(to.Key) {
	case allocsFolder, portsFolder:
		m.rivals.met(m.cfg.Now())
	}
	return m.catchUp(ctx, d, to)
}

// catchUp waits until the registry knows what a draft was too late for.
func (m *Manager) catchUp(ctx context.Context, d *draft, to *etcd.ConflictError) error {
	if m.cfg.Refresh != nil {
		return m.cfg.Refresh(ctx)
	}
	at := slices.IndexFunc(d.edits, func(e etcd.Edit) bool { return e.Key == to.Key && e.End == "" })
	waiting, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	_ = m.reg.await(waiting, func() bool {
		now := m.reg.rev(to.Key)
		return at < 0 && now >= to.Rev || at >= 0 && now != d.edits[at].Since
	})
	return ctx.Err()
}

// put adds an edit that writes v, as JSON, in the place of what is known.
func (m *Manager) put(d *draft, key string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	d.edits = append(d.edits, etcd.Edit{Key: key, Value: value, Since: m.reg.rev(key)})
	return nil
}

// delete adds an edit that deletes what is known.
func (m *Manager) delete(d *draft, key string) {
	if rev := m.reg.rev(key); rev != 0 {
		d.edits = append(d.edits, etcd.Edit{Key: key, Delete: true, Since: rev})
		d.meant = true
	}
}

// checkPool makes it a condition that a pool is as it is known.
func (m *Manager) checkPool(d *draft, service string) { m.check(d, poolsFolder+service) }

// check makes it a condition that a key is as it is known.
func (m *Manager) check(d *draft, key string) {
	if !slices.ContainsFunc(d.edits, func(e etcd.Edit) bool { return e.Key == key && e.End == "" }) {
		d.edits = append(d.edits, etcd.Edit{Key: key, Check: true, Since: m.reg.rev(key)})
	}
}

// checkRange makes it a condition that no key from first up to end, which are in one
// folder, was put that is not known.
func (m *Manager) checkRange(d *draft, first, end string) {
	check := etcd.Edit{Key: first, End: end, Check: true, Since: m.reg.newest[folderOf(first)]}
	if !slices.ContainsFunc(d.edits, func(e etcd.Edit) bool { return e.Key == first && e.End == end }) {
		d.edits = append(d.edits, check)
	}
}

// env returns an environment, or why there is none to work with.
func (m *Manager) env(id string) (*Env, error) {
	if b, ok := m.reg.broken[envsFolder+id]; ok {
		return nil, fmt.Errorf("the key %s%s cannot be read: %w; mend or delete it", envsFolder, id, b.err)
	}
	e := m.reg.envs[id]
	if e == nil {
		return nil, &NotFoundError{ID: id}
	}
	return e, nil
}
