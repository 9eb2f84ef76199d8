package etcdstore

import (
	"sync"

	"github.com/remotegpu/sluice/control/etcd"
)

// batch is one call of Load or Change.
type batch struct {
	load    bool
	kvs     []etcd.KV
	changes []etcd.Change
}

// inbox holds batches until run takes them, so that the node's watch, which
// carries its configuration too, does not wait for seals and disks.
type inbox struct {
	ready chan struct{} // holds a token while there are batches

	mu    sync.Mutex // guards queue
	queue []batch
}

func (b *inbox) put(one batch) {
	b.mu.Lock()
	b.queue = append(b.queue, one)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

func (b *inbox) takeAll() []batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.queue
	b.queue = nil
	return all
}
