package envs

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// Client is what a Keeper needs of an etcd.Client.
type Client interface {
	Reader
	Store
	// Follow passes the changes below folders after revision rev to each, until
	// it returns true or an error, or ctx ends.
	Follow(ctx context.Context, folders []string, rev int64, each func([]etcd.Change) (done bool, err error)) error
}

// Keeper ends environments when they expire. It follows no more than their
// records, and reads the rest when there is something to do. One for a cluster is
// enough; more do no harm.
type Keeper struct {
	Client Client
	Ports  router.Ports
	By     string
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

const (
	// lookEvery is how often expiries are compared with the clock. The mappings
	// of an environment end by themselves, on time.
	lookEvery = time.Second
	// sweepEvery is how often a keeper sweeps where nothing expires, to forget
	// ports released long ago.
	sweepEvery = time.Hour
	// sweepAgain is the pause after a sweep that failed.
	sweepAgain = 10 * time.Second
)

// Run keeps until ctx ends, which is no error.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		err := k.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.Logger.Warn("cannot follow environments; those that expire stay until it can be done again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sweepAgain):
		}
	}
}

// follow keeps until the records cannot be followed any more.
func (k *Keeper) follow(ctx context.Context) error {
	now := k.Now
	if now == nil {
		now = time.Now
	}
	kvs, rev, err := k.Client.ReadUnder(ctx, envsFolder, 0)
	if err != nil {
		return err
	}
	ends := map[string]time.Time{}
	for _, kv := range kvs {
		note(ends, kv.Key, kv.Value)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	changed := make(chan []etcd.Change)
	go func() {
		cancel(k.Client.Follow(ctx, []string{envsFolder}, rev, func(changes []etcd.Change) (bool, error) {
			select {
			case changed <- changes:
			case <-ctx.Done():
			}
			return false, ctx.Err()
		}))
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for next := now(); ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case changes := <-changed:
			for _, c := range changes {
				note(ends, c.Key, c.Value) // nil where it was deleted
			}
		case <-tick.C:
			if at := now(); !at.Before(next) || anyOver(ends, at) {
				next = at.Add(sweepEvery)
				if err := k.sweep(ctx, now); err != nil && ctx.Err() == nil {
					k.Logger.Warn("not all expired environments were ended; trying again", "in", sweepAgain, "err", err)
					tick.Reset(sweepAgain)
					next = at
					continue
				}
				tick.Reset(lookEvery)
			}
		}
	}
}

// note notes when an environment ends.
func note(ends map[string]time.Time, key string, value []byte) {
	id := strings.TrimPrefix(key, envsFolder)
	delete(ends, id)
	if e, err := ParseEnv(id, value); err == nil && !e.ExpiresAt.IsZero() {
		ends[id] = e.ExpiresAt
	}
}

func anyOver(ends map[string]time.Time, now time.Time) bool {
	for _, at := range ends {
		if !now.Before(at) {
			return true
		}
	}
	return false
}

// sweep ends what is over.
func (k *Keeper) sweep(ctx context.Context, now func() time.Time) error {
	reg := NewRegistry()
	read := func(ctx context.Context) error {
		_, err := reg.Read(ctx, k.Client)
		return err
	}
	if err := read(ctx); err != nil {
		return fmt.Errorf("read environments: %w", err)
	}
	m := New(Config{Store: k.Client, Registry: reg, Ports: k.Ports, By: k.By, Refresh: read, Now: now})
	return m.Sweep(ctx)
}
