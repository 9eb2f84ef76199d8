package envs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Registry is what etcd says of pools, allocations, mappings and environments.
// Feed it with Load and Change, as a handler of control/etcd's watch, or once.
// It is safe for concurrent use.
type Registry struct {
	mu   sync.Mutex
	book *portpool.Book
	// ports, unless empty, are those that nodes open.
	ports router.Ports
	pools map[string]poolAt // by service; those that cannot be read too
	// refused says why pools are not in force that can be read, by service.
	refused map[string]error
	// byNodes says why nodes refuse pools, by service, where somebody has asked them.
	byNodes map[string]string
	envs    map[string]*Env
	routes  map[string]routeAt // by key
	hosts   hostIndex
	// maps are the mappings, by key.
	maps map[string]mapped
	// space is the bytes that environments take with their mappings and routes.
	space int
	// newest are the revisions of the last puts that are known, by folder: of what
	// else there was then, all is known.
	newest map[string]int64
	// broken says what is wrong with values that were left out, by key.
	broken  map[string]broken
	missing map[string]bool // folders that were not loaded yet
	isReady bool
	loaded  chan struct{} // closed once none is missing
	moved   chan struct{} // closed, and another made, by each Load and Change, and as requests end
	// pending are the requests under way that have claims, and ended counts
	// those that had.
	pending, ended int
}

// mapped is what is known of a mapping.
type mapped struct {
	rev  int64
	env  string // whose it says it is; "" for nobody's, and where it cannot be read
	size int    // bytes that an environment takes with it
}

// poolAt is what is known of a pool.
type poolAt struct {
	rev  int64
	pool *portpool.Pool // nil: it cannot be read
}

// broken is a value that cannot be read.
type broken struct {
	rev int64
	err error
}

// Folders are the subtrees that a Registry is to be fed with.
var Folders = []string{allocsFolder, envsFolder, poolsFolder, portsFolder, routesFolder}

// NewRegistry returns a Registry that knows nothing yet.
func NewRegistry() *Registry {
	missing := map[string]bool{}
	for _, folder := range Folders {
		missing[folder] = true
	}
	return &Registry{
		missing: missing,
		book:    portpool.NewBook(), pools: map[string]poolAt{}, refused: map[string]error{}, envs: map[string]*Env{},
		newest: map[string]int64{}, routes: map[string]routeAt{}, hosts: hostIndex{}, maps: map[string]mapped{},
		broken: map[string]broken{}, loaded: make(chan struct{}), moved: make(chan struct{}),
	}
}

// Load replaces all that is known by the keys as of revision rev.
func (r *Registry) Load(rev int64, kvs []etcd.KV) { r.LoadBelow(Folders, kvs) }

// LoadBelow replaces what is known of some of Folders; keys of others are left
// out. The registry is ready once each of them was loaded.
func (r *Registry) LoadBelow(folders []string, kvs []etcd.KV) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, folder := range folders {
		r.forget(folder)
		delete(r.missing, folder)
	}
	for _, kv := range kvs {
		if slices.Contains(folders, folderOf(kv.Key)) {
			r.put(kv.Key, kv.Value, kv.ModRev)
		}
	}
	if len(r.missing) == 0 && !r.isReady {
		r.isReady = true
		close(r.loaded)
	}
	r.tell()
}

// forget forgets what is known of a folder.
func (r *Registry) forget(folder string) {
	delete(r.newest, folder)
	maps.DeleteFunc(r.broken, func(key string, _ broken) bool { return folderOf(key) == folder })
	switch folder {
	case poolsFolder:
		clear(r.pools)
		r.settlePools()
	case envsFolder:
		for _, e := range r.envs {
			r.space -= e.size
		}
		clear(r.envs)
	case allocsFolder:
		r.book.ClearAllocations()
	case portsFolder:
		for _, m := range r.maps {
			r.space -= m.size
		}
		clear(r.maps)
		r.book.ClearMapped()
	case routesFolder:
		for key := range r.routes {
			r.removeRoute(key)
		}
	}
}

// folderOf returns the folder that a key is in, such as ports/.
func folderOf(key string) string { return key[:strings.IndexByte(key, '/')+1] }

// Reader reads keys: an etcd.Client.
type Reader interface {
	// ReadUnder returns the keys below a folder as of revision rev, 0 being the
	// newest, and which that is.
	ReadUnder(ctx context.Context, folder string, rev int64) (kvs []etcd.KV, of int64, err error)
}

// Read loads the keys as they are now, and returns the revision that that is.
func (r *Registry) Read(ctx context.Context, from Reader) (rev int64, err error) {
	var all []etcd.KV
	for _, folder := range Folders {
		kvs, of, err := from.ReadUnder(ctx, folder, rev)
		if err != nil {
			return 0, err
		}
		all, rev = append(all, kvs...), of
	}
	r.Load(rev, all)
	return rev, nil
}

// Change notes changes, in their order.
func (r *Registry) Change(rev int64, changes []etcd.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range changes {
		if c.Deleted {
			r.remove(c.Key, c.ModRev)
		} else {
			r.put(c.Key, c.Value, c.ModRev)
		}
	}
	if len(changes) > 0 {
		r.tell()
	}
}

func (r *Registry) tell() {
	close(r.moved)
	r.moved = make(chan struct{})
}

// put notes the value of a key. One that cannot be read is noted in broken, and
// what it was before is forgotten: whoever would change it has to see it first.
func (r *Registry) put(key string, value []byte, rev int64) {
	delete(r.broken, key)
	r.newest[folderOf(key)] = max(rev, r.newest[folderOf(key)])
	var err error
	switch folder, name, _ := strings.Cut(key, "/"); folder + "/" {
	case poolsFolder:
		var p *portpool.Pool
		p, err = portpool.Parse(name, value)
		r.pools[name] = poolAt{rev, p}
		r.settlePools()
	case allocsFolder:
		err = r.putAllocation(key, value, rev)
	case envsFolder:
		r.removeEnv(name)
		var e *Env
		if e, err = ParseEnv(name, value); err == nil {
			e.Rev, e.size = rev, len(key)+len(value)
			r.envs[name] = e
			r.space += e.size
		}
	case portsFolder:
		r.putMapping(key, value, rev)
	case routesFolder:
		r.putRoute(key, value, rev)
	}
	if err != nil {
		r.broken[key] = broken{rev, err}
	}
}

// putAllocation keeps a port whose allocation cannot be read away from everybody.
func (r *Registry) putAllocation(key string, value []byte, rev int64) error {
	proto, port, err := portpool.ParseKey(key)
	if err != nil {
		return err
	}
	a, err := portpool.ParseAllocation(value)
	if err != nil {
		a = &portpool.Allocation{Reserved: "its allocation cannot be read: " + err.Error()}
	}
	r.book.Set(proto, port, a, rev)
	return err
}

// putMapping notes that a port has a mapping, be it one that nodes refuse: the
// port is somebody's anyhow.
func (r *Registry) putMapping(key string, value []byte, rev int64) {
	k, err := router.ParseKey(key)
	if err != nil {
		return // nodes say so in its verdict
	}
	m := mapped{rev: rev}
	// Most of tens of thousands of values are a mere address, which is nobody's.
	if bytes.HasPrefix(bytes.TrimSpace(value), []byte("{")) {
		if got, err := router.ParseMapping(k.Proto, k.Port, value); err == nil && got.Env != "" {
			m.env, m.size = got.Env, len(key)+len(value)
		}
	}
	r.space += m.size - r.maps[key].size
	r.maps[key] = m
	r.book.SetMapped(k.Proto, k.Port, true)
}

// opens says which ports nodes open.
func (r *Registry) opens(ports router.Ports) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports = ports
	r.settlePools()
}

// Refuse notes which pools nodes refuse, by service, and why, in the place of what was
// noted before: they are not in force. It is for who does not know what nodes go by,
// the ports that they open above all.
func (r *Registry) Refuse(why map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byNodes = why
	r.settlePools()
}

// settlePools has those pools in force that are on nodes: whose ports nodes open,
// and of those that overlap the ones that were not changed last. One that is not
// has no other value in force here, as nodes may: environments get nothing of it.
func (r *Registry) settlePools() {
	clear(r.refused)
	inForce := map[string]*portpool.Pool{}
	byAge := slices.SortedFunc(maps.Keys(r.pools), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.pools[a].rev, r.pools[b].rev), cmp.Compare(a, b))
	})
	for _, service := range byAge {
		p := r.pools[service].pool
		if p == nil {
			continue
		}
		var err error
		if why, ok := r.byNodes[service]; ok {
			err = fmt.Errorf("nodes refuse its value: %s", why)
		} else if len(r.ports) > 0 {
			err = p.CheckWithin(r.ports)
		}
		for _, other := range slices.Sorted(maps.Keys(inForce)) {
			err = cmp.Or(err, p.CheckApart(inForce[other]))
		}
		if err != nil {
			r.refused[service] = err
			continue
		}
		inForce[service] = p
	}
	for _, service := range r.book.Services() {
		if inForce[service] == nil {
			r.book.DeletePool(service)
		}
	}
	for service, p := range inForce {
		if r.book.Pool(service) != p {
			r.book.SetPool(p)
		}
	}
}

// Stranded returns the ports that environments hold outside of the pools that are
// in force, by service and in order.
func (r *Registry) Stranded() map[string][]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.book.Outside()
}

// StrandedBy returns those that a pool does not have that is to be in force.
func (r *Registry) StrandedBy(p *portpool.Pool) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.book.Stranded(p)
}

// pool returns the pool of a service that is in force. The error is a
// *router.FieldError that says why there is none.
func (r *Registry) pool(service string) (*portpool.Pool, error) {
	if p := r.book.Pool(service); p != nil {
		return p, nil
	}
	why := r.refused[service]
	if b, ok := r.broken[poolsFolder+service]; ok {
		why = b.err
	}
	if why != nil {
		return nil, &router.FieldError{Msg: fmt.Sprintf("the pool %q is not in force, %v; mend %s%s", service, why, poolsFolder, service)}
	}
	return nil, &router.FieldError{Msg: fmt.Sprintf("there is no pool %q; there are: %v", service, r.book.Services())}
}

func (r *Registry) removeEnv(id string) {
	if e := r.envs[id]; e != nil {
		r.space -= e.size
		delete(r.envs, id)
	}
}

func (r *Registry) remove(key string, rev int64) {
	delete(r.broken, key)
	switch folder, name, _ := strings.Cut(key, "/"); folder + "/" {
	case poolsFolder:
		delete(r.pools, name)
		r.settlePools()
	case allocsFolder:
		if proto, port, err := portpool.ParseKey(key); err == nil {
			r.book.Set(proto, port, nil, rev)
		}
	case envsFolder:
		r.removeEnv(name)
	case routesFolder:
		r.removeRoute(key)
	case portsFolder:
		r.space -= r.maps[key].size
		delete(r.maps, key)
		if k, err := router.ParseKey(key); err == nil {
			r.book.SetMapped(k.Proto, k.Port, false)
		}
	}
}

// rev returns the revision at which a key was changed last, as far as is known;
// 0: there is no such key. r.mu is held.
func (r *Registry) rev(key string) int64 {
	switch folder, name, _ := strings.Cut(key, "/"); folder + "/" {
	case poolsFolder:
		return r.pools[name].rev
	case envsFolder:
		if e := r.envs[name]; e != nil {
			return e.Rev
		}
		return r.broken[key].rev
	case portsFolder:
		return r.maps[key].rev
	case routesFolder:
		return r.routes[key].rev
	case allocsFolder:
		if proto, port, err := portpool.ParseKey(key); err == nil {
			_, rev := r.book.Allocation(proto, port)
			return rev
		}
	}
	return 0
}

// errNotLoaded says that nothing can be decided yet.
var errNotLoaded = errors.New("the keys of the cluster have not been read yet: etcd does not answer; try again once /readyz says ready")

// ready waits until each folder was loaded.
func (r *Registry) ready(ctx context.Context) error {
	select {
	case <-r.loaded:
		return nil
	default:
	}
	select {
	case <-r.loaded:
		return nil
	case <-ctx.Done():
		return errNotLoaded
	}
}

// await waits until done, called with r.mu held, reports true. The error is that
// of ctx.
func (r *Registry) await(ctx context.Context, done func() bool) error {
	for {
		r.mu.Lock()
		ok, moved := done(), r.moved
		r.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
