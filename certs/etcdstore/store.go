// Package etcdstore keeps certificates, accounts and what else the nodes of a
// cluster share in etcd, sealed with the cluster key, and on this node's disk,
// so that it serves with etcd dead.
//
// It owns every key below acme/. It never decides which certificates there are
// to be, never talks to an authority, and knows etcd by control/etcd alone.
// cmd/sluice makes a Store, gives its Mirror to the node's one watch, and hands
// it to certs.
//
// # What it promises
//
// Every value but locks is sealed (certs/seal) for the key it lies under.
//
// A lock is held by one process of the cluster, and ends with it. What a holder
// writes of a certificate while it has the lock of its name is written under
// the condition that it still has it: one that was frozen, and wakes up after
// its lock went to somebody else, gets ErrLockLost and has changed nothing.
//
// The three files of a certificate that certmagic stores one after the other
// under that lock are gathered and written at one revision. So who watches sees
// the old certificate or the new one.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

var _ certs.Store = (*Store)(nil)

// Config says where a Store keeps things. Client and KeyFile are required.
type Config struct {
	Client *etcd.Client
	// Node is this node's name: the holder of its locks, for people to read.
	Node string
	// KeyFile holds the cluster key. It may appear, and change, later.
	KeyFile string
	// KeysChanged, if set, is called after what Store.Keys returns has changed, by
	// Run and whatever seals something. It must not block.
	KeysChanged func()
	// MakeKey has a cluster that has no key yet get one: it is written to
	// KeyFile.
	MakeKey bool
	// Dir is where the mirror is kept on disk. Empty: in memory alone.
	Dir string
	// LockTTL is how long after its holder's death a lock is free, in whole
	// seconds. 0: 15 seconds.
	LockTTL time.Duration

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: nothing is counted
}

// Store is a certs.Store on etcd. Make one with New. All methods are safe for
// concurrent use.
type Store struct {
	*Mirror
	cfg    Config
	client *etcd.Client
	ring   *ringKeeper

	mu    sync.Mutex       // guards the following
	locks map[string]*held // by name, from before a lock is asked for until it was given back
}

// New checks cfg and returns a Store, which serves what is on disk, and does
// everything but watch. It starts nothing. The error is one of KeyFile or of
// Dir.
func New(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LockTTL == 0 {
		cfg.LockTTL = 15 * time.Second
	}
	m := newMetrics(cfg.Registerer)
	ring, err := newRingKeeper(cfg, m)
	if err != nil {
		return nil, err
	}
	mirror, err := newMirror(cfg, ring, m)
	if err != nil {
		return nil, err
	}
	ring.changed = func() {
		if cfg.KeysChanged != nil {
			cfg.KeysChanged()
		}
		mirror.ringChanged()
	}
	return &Store{Mirror: mirror, cfg: cfg, client: cfg.Client, ring: ring, locks: map[string]*held{}}, nil
}

// Run keeps the mirror on disk, tells who watches it, puts back what etcd has
// lost, and follows the file of the cluster key, until ctx ends; it then returns nil. Call it once.
func (s *Store) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.Mirror.run(ctx) })
	running.Go(func() { s.keepUp(ctx) })
	s.ring.run(ctx)
	return nil
}

// root is the folder of everything that a Store keeps, below the prefix.
const root = "acme/"

// own are the folders below root that are not certmagic's.
var own = []string{"locks/", "shared/", "attempts/", "limits/"}

// checkKey refuses what is no key of certmagic's.
func checkKey(key string) error {
	if key == "" || strings.HasPrefix(key, "/") || strings.HasPrefix(key, "..") || path.Clean(key) != key {
		return fmt.Errorf("certificate storage: %q is no key: want a path without a slash at its ends", key)
	}
	for _, folder := range own {
		if strings.HasPrefix(key+"/", folder) {
			return fmt.Errorf("certificate storage: %s is kept for the nodes themselves", root+key)
		}
	}
	return nil
}

// seal returns a write of a sealed value.
func (s *Store) seal(ctx context.Context, key string, value []byte) (etcd.Write, error) {
	ring, err := s.ring.toSeal(ctx)
	if err != nil {
		return etcd.Write{}, fmt.Errorf("seal %s: %w", root+key, err)
	}
	sealed, err := ring.Seal(root+key, value, time.Now())
	if err != nil {
		return etcd.Write{}, fmt.Errorf("seal %s: %w", root+key, err)
	}
	return etcd.Write{Key: root + key, Value: string(sealed)}, nil
}

// read returns what is kept under key, and when it was sealed. The error is
// fs.ErrNotExist where there is nothing.
func (s *Store) read(ctx context.Context, key string) (value []byte, at time.Time, rev int64, err error) {
	kv, err := s.client.ReadKey(ctx, root+key)
	if err != nil {
		return nil, time.Time{}, 0, err
	}
	if kv == nil {
		return nil, time.Time{}, 0, notThere("read", key)
	}
	value, at, err = open(s.ring.get(), kv.Key, kv.Value)
	if err != nil {
		return nil, time.Time{}, kv.ModRev, fmt.Errorf("%w %s: %w", errUnopened, kv.Key, err)
	}
	return value, at, kv.ModRev, nil
}

// errUnopened says that there is a value, which does not open.
var errUnopened = errors.New("read")

func open(ring *seal.Ring, key string, sealed []byte) (value []byte, at time.Time, err error) {
	value, err = ring.Open(key, sealed)
	if err != nil {
		return nil, time.Time{}, err
	}
	outside, err := seal.Look(sealed)
	if value == nil {
		value = []byte{}
	}
	return value, outside.Time, err
}

func notThere(op, key string) error {
	return &fs.PathError{Op: op, Path: root + key, Err: fs.ErrNotExist}
}

// PutStored implements certs.Store.
func (s *Store) PutStored(ctx context.Context, c *certs.Stored) error {
	if _, err := certs.ParseStored(c.Issuer, c.Name, c.Chain, c.Key, c.Meta); err != nil {
		return err
	}
	files := map[string][]byte{}
	crt, key, meta := filesOf(c.Issuer, c.Name)
	files[crt], files[key], files[meta] = c.Chain, c.Key, c.Meta
	return s.write(ctx, nil, files)
}

// write stores files at one revision; a nil one is deleted. With a lock, only
// as long as that is held.
func (s *Store) write(ctx context.Context, lock *etcd.Lock, files map[string][]byte) error {
	var writes []etcd.Write
	for key, value := range files {
		w := etcd.Write{Key: root + key, Delete: true}
		if value != nil {
			var err error
			if w, err = s.seal(ctx, key, value); err != nil {
				return err
			}
		}
		writes = append(writes, w)
	}
	return s.commit(ctx, lock, writes)
}

// ErrLockLost says that a lock went to another process: nothing was written
// that needed it.
var ErrLockLost = errors.New("the lock was lost, since this process was frozen or cut off from etcd for too long; " +
	"another one may have it by now, and nothing was written")

func (s *Store) commit(ctx context.Context, lock *etcd.Lock, writes []etcd.Write) error {
	var guards []etcd.Guard
	if lock != nil {
		guards = append(guards, lock.Guard())
	}
	_, done, err := s.client.Transact(ctx, guards, writes)
	if err == nil && !done {
		return fmt.Errorf("write %s: %w", writes[0].Key, ErrLockLost)
	}
	return err
}

// Keys returns the IDs of the cluster keys that this node has, that which seals
// first; none where it has no key. They are no secret.
func (s *Store) Keys() []string { return s.ring.get().IDs() }

// Trouble says in words what keeps this node from the cluster's secrets: a key
// that it lacks, a file that cannot be read. Nil: nothing is known to.
func (s *Store) Trouble() error { return s.ring.trouble() }

// Blind returns what Trouble does where that keeps the node from every
// certificate there is; nil: it serves some, or there is none.
func (s *Store) Blind() error {
	if usable, refused := s.count(); usable > 0 || refused == 0 {
		return nil
	}
	return s.ring.lacking()
}

// String names the store in logs: certmagic would print all that is in it.
func (s *Store) String() string { return "etcd, below " + root }
