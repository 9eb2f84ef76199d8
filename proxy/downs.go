package proxy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// downsSettle is how long after a target went down or came back the verdicts
// follow: where a machine goes, many targets go with it.
const downsSettle = 300 * time.Millisecond

// checked is a backend whose targets are checked, and the key that it is of.
type checked struct {
	key     string
	backend *router.Backend
}

func backendsOf(all []checked) []*router.Backend {
	backends := make([]*router.Backend, len(all))
	for i, c := range all {
		backends[i] = c.backend
	}
	return backends
}

// backendDowns tells of which keys every target of a backend fails its checks.
type backendDowns struct {
	// down says that all targets of a backend are down, and why; nil if not.
	down func(*router.Backend) error
	tell func(key string, err error)

	due atomic.Bool // judge is going to be called

	mu      sync.Mutex // guards the following fields, and the order of what is told
	of      map[*router.Backend]string
	told    map[string]string // what was told last, where something is wrong; "": it may be forgotten
	stopped bool
}

func newBackendDowns(tell func(key string, err error)) *backendDowns {
	return &backendDowns{tell: tell, of: map[*router.Backend]string{}, told: map[string]string{}}
}

// changed has judge called soon. It waits for nothing.
func (d *backendDowns) changed() {
	if d.due.CompareAndSwap(false, true) {
		time.AfterFunc(downsSettle, d.judge)
	}
}

// apply takes note of the backends that came and went.
func (d *backendDowns) apply(came, gone []checked) {
	if len(came) == 0 && len(gone) == 0 {
		return
	}
	d.mu.Lock()
	for _, c := range came {
		d.of[c.backend] = c.key
		// A key that was deleted and put again has no word of before in its verdict.
		if _, ok := d.told[c.key]; ok {
			d.told[c.key] = ""
		}
	}
	for _, c := range gone {
		delete(d.of, c.backend)
	}
	d.mu.Unlock()
	d.changed()
}

// judge tells what is different from what was told last.
func (d *backendDowns) judge() {
	d.due.Store(false)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return
	}
	wrong := map[string]error{}
	for b, key := range d.of {
		if err := d.down(b); err != nil {
			wrong[key] = fmt.Errorf("backend_down: %w", err)
		}
	}
	for key, err := range wrong {
		if text := err.Error(); d.told[key] != text {
			d.told[key] = text
			d.tell(key, err)
		}
	}
	for key := range d.told {
		if wrong[key] == nil {
			delete(d.told, key)
			d.tell(key, nil)
		}
	}
}

// stop has nothing told any more.
func (d *backendDowns) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
}
