package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// markerKey is the value by which a cluster knows that it has a key. It is
// sealed with that; its outside tells a node which one it lacks.
const markerKey = root + "shared/cluster-key"

// marker is what is in it, for people who look with the key.
type marker struct {
	Keys []string  `json:"keys"` // IDs of the keys that seal anything, that which seals first
	Node string    `json:"node"` // who wrote it
	Time time.Time `json:"time"`
}

// lookEvery is how often the file of the cluster key is looked at, and etcd
// asked for the marker until it has answered.
const lookEvery = 2 * time.Second

// ringKeeper has the cluster key, which may come and change while the node runs.
type ringKeeper struct {
	path    string
	node    string
	mayMake bool
	client  *etcd.Client
	log     *slog.Logger
	metrics *metrics
	changed func() // called after the ring has changed, with nothing held
	// asking is held, by sending to it, while the ring is compared with the marker.
	asking chan struct{}

	mu     sync.Mutex // guards the following
	ring   *seal.Ring // nil: there is none
	seen   fileState  // of the file that was read last
	wrong  error      // what is wrong with the file by now; nil: nothing
	marks  string     // ID of the key that the marker is sealed with; "": none is known
	agreed bool       // the ring has been compared with the marker, as both are now
	news   int        // how often one of them has become another, other than by the comparing
}

// fileState tells whether a file has changed.
type fileState struct {
	size  int64
	mod   time.Time
	ino   uint64           // by which one that was put in its place is told
	inode syscall.Timespec // when its mode or owner changed last: `chmod 600` mends it
}

func newRingKeeper(cfg Config, m *metrics) (*ringKeeper, error) {
	k := &ringKeeper{path: cfg.KeyFile, node: cfg.Node, mayMake: cfg.MakeKey, client: cfg.Client, log: cfg.Logger, metrics: m, changed: func() {}, asking: make(chan struct{}, 1)}
	k.seen, _ = stateOf(k.path)
	ring, err := seal.ReadFile(k.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	k.ring = ring
	return k, nil
}

func stateOf(path string) (fileState, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}, err
	}
	state := fileState{size: info.Size(), mod: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		state.ino, state.inode = sys.Ino, sys.Ctim
	}
	return state, nil
}

func (k *ringKeeper) get() *seal.Ring {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ring
}

// toSeal returns the ring to seal with. First it has to be known that the ring
// has the cluster's key: what another one seals, the other nodes could not open.
func (k *ringKeeper) toSeal(ctx context.Context) (*seal.Ring, error) {
	if k.isStale() && k.reload() {
		k.changed()
	}
	if err := k.ensure(ctx); err != nil {
		return nil, fmt.Errorf("ask etcd for the cluster's key: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.isStaleLocked() {
		return nil, fmt.Errorf("%w: %w", seal.ErrNoKey, k.troubleLocked())
	}
	return k.ring, nil
}

// unusable reports whether there is a file that cannot be used.
func (k *ringKeeper) unusable() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wrong != nil
}

// lacking says in words which key this node lacks of the cluster's; nil: none, as
// far as is known.
func (k *ringKeeper) lacking() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.isStaleLocked() {
		return nil
	}
	return k.troubleLocked()
}

// isStale reports whether the ring lacks a key that it needs, as far as is known.
func (k *ringKeeper) isStale() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.isStaleLocked()
}

func (k *ringKeeper) isStaleLocked() bool {
	return k.ring == nil || k.marks != "" && !k.ring.Has(k.marks)
}

// trouble says in words what keeps this node from the cluster's secrets.
func (k *ringKeeper) trouble() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.troubleLocked()
}

func (k *ringKeeper) troubleLocked() error {
	switch {
	case k.wrong != nil && k.isStaleLocked():
		return k.wrong
	case k.marks != "" && !k.ring.Has(k.marks):
		return fmt.Errorf("this node lacks the cluster key %s: copy the line that begins with %s to %s from the file of a node that has it; "+
			"nothing has to be restarted; where no node and no copy has it any more, OPERATIONS.md says the way out, under The cluster key", k.marks, k.marks, k.path)
	case k.wrong != nil:
		return fmt.Errorf("%w; the keys of before stay in use", k.wrong)
	case k.ring == nil && !k.mayMake:
		return fmt.Errorf("there is no cluster key in %s: make one with `sluice certs key generate`, or copy the file from another node", k.path)
	}
	return nil
}

// run follows the file, and has the cluster know its key, until ctx ends.
func (k *ringKeeper) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if k.reload() {
			k.changed()
		}
		if err := k.ensure(ctx); err != nil && ctx.Err() == nil {
			k.log.Debug("cannot tell yet whether the cluster has a key", "err", err)
		}
		k.metrics.noKey(k.trouble() != nil)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ensure compares the ring with the marker, unless that was done.
func (k *ringKeeper) ensure(ctx context.Context) error {
	select {
	case k.asking <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-k.asking }()
	k.mu.Lock()
	agreed, news := k.agreed, k.news
	k.mu.Unlock()
	if agreed {
		return nil
	}
	made, err := k.agree(ctx)
	if errors.Is(err, errMarked) {
		made, err = k.agree(ctx)
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.agreed = k.news == news // else it is compared again
	k.mu.Unlock()
	if made {
		k.changed()
	}
	return nil
}

// unmark says that the marker is gone.
func (k *ringKeeper) unmark() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.agreed, k.marks = false, ""
	k.news++
}

// reload reads the file if it has changed, and reports whether the ring has.
func (k *ringKeeper) reload() bool {
	state, err := stateOf(k.path)
	k.mu.Lock()
	same := state == k.seen
	k.mu.Unlock()
	if same {
		return false
	}
	var ring *seal.Ring
	if err == nil {
		ring, err = seal.ReadFile(k.path)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen, k.wrong = state, nil
	switch {
	case err == nil:
	case k.ring != nil: // also where it is gone
		k.wrong = err
		k.log.Error("the cluster key's file cannot be read any more; the keys of before stay in use", "err", err)
		return false
	case !errors.Is(err, fs.ErrNotExist):
		k.wrong = err
		k.log.Error("the cluster key's file cannot be used", "err", err)
		return false
	default:
		return false
	}
	k.ring, k.agreed = ring, false
	k.news++
	k.log.Info("read the cluster key", "keys", ring)
	return true
}

// agree compares the ring with the marker. Where the cluster has none, it makes
// one, and a key if there is none on this node either. The error is one of
// etcd's, or of the disk's.
func (k *ringKeeper) agree(ctx context.Context) (made bool, err error) {
	kv, err := k.client.ReadKey(ctx, markerKey)
	if err != nil {
		return false, err
	}
	ring := k.get()
	switch {
	case kv != nil:
		if ring == nil && k.mayMake && k.isOurs(kv.Value) {
			return true, k.adopt() // the node died between marking the key and this
		}
		k.meet(kv.Value)
		return false, remove(k.path + newSuffix) // another node was quicker
	case ring != nil:
		return false, k.mark(ctx, ring)
	case !k.mayMake || k.unusable(): // a file that is there is not replaced
		return false, nil
	}
	// The key is on disk before the cluster has it, and in use only after that:
	// of nodes that start together one makes the key.
	if err := seal.WriteFile(k.path+newSuffix, []seal.Key{seal.NewKey()}, true); err != nil {
		return false, err
	}
	if ring, err = seal.ReadFile(k.path + newSuffix); err != nil {
		return false, err
	}
	if err := k.mark(ctx, ring); err != nil {
		return false, err
	}
	return true, k.adopt()
}

// newSuffix is what the name of a file ends in whose key the cluster does not
// have yet.
const newSuffix = ".new"

// isOurs reports whether the marker is sealed with a key that this node has made
// and not taken into use.
func (k *ringKeeper) isOurs(sealed []byte) bool { return opens(k.path+newSuffix, sealed) }

// opens reports whether a file has the key that the marker is sealed with.
func opens(file string, sealed []byte) bool {
	ring, err := seal.ReadFile(file)
	if err != nil {
		return false
	}
	_, err = ring.Open(markerKey, sealed)
	return err == nil
}

// adopt takes the key that this node has made into use.
func (k *ringKeeper) adopt() error {
	if err := os.Rename(k.path+newSuffix, k.path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(k.path)); err != nil {
		return err
	}
	ring, err := seal.ReadFile(k.path)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen, _ = stateOf(k.path)
	k.ring = ring
	k.log.Info("made a key for the cluster, which had none; copy the file to its other nodes, and keep a copy in a safe place", "file", k.path, "key", ring)
	return nil
}

// errMarked says that there is a marker by now.
var errMarked = errors.New("another node has marked its key as the cluster's at this moment")

// mark writes the marker where there is none.
func (k *ringKeeper) mark(ctx context.Context, ring *seal.Ring) error {
	w, err := markerOf(ring, ring.IDs(), k.node)
	if err != nil {
		return err
	}
	_, done, err := k.client.Transact(ctx, []etcd.Guard{k.client.Unchanged(markerKey, 0)}, []etcd.Write{w})
	if err == nil && !done {
		err = errMarked
	}
	return err
}

func markerOf(ring *seal.Ring, ids []string, node string) (etcd.Write, error) {
	text, err := json.Marshal(marker{ids, node, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return etcd.Write{}, err
	}
	sealed, err := ring.Seal(markerKey, text, time.Now())
	return etcd.Write{Key: markerKey, Value: string(sealed)}, err
}

// meet notes which key the cluster has, as its marker says.
func (k *ringKeeper) meet(sealed []byte) {
	outside, err := seal.Look(sealed)
	if err != nil {
		k.log.Error("the mark of the cluster's key in etcd is damaged", "key", markerKey, "err", err)
		return
	}
	if k.get() == nil && k.mayMake && (k.isOurs(sealed) || opens(k.path, sealed)) {
		return // it is about to be taken into use, and the watch was quicker
	}
	k.mu.Lock()
	news := k.marks != outside.KeyID && !k.ring.Has(outside.KeyID)
	k.marks = outside.KeyID
	k.mu.Unlock()
	if news {
		k.log.Error("certificates and accounts in etcd cannot be read; all else is served", "err", k.trouble())
	}
}
