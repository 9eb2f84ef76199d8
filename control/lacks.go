package control

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// lackError refuses a value for what this node lacks, such as a file: it may be
// good once somebody has put that there, of which nothing else tells.
type lackError struct{ error }

func (e *lackError) Unwrap() error { return e.error }

// lookEvery is how often values are looked at again that the node lacks
// something for.
const lookEvery = 10 * time.Second

// lookAgain looks every now and then at the values that are refused for what
// the node lacks, while there are any, until ctx ends.
func (c *Controller) lookAgain(ctx context.Context) {
	tick := time.NewTimer(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.lacked:
		}
		for c.lacksAny() {
			tick.Reset(lookEvery)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			c.lookOnce()
		}
	}
}

func (c *Controller) lacksAny() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lacking) > 0
}

// lookOnce takes the values again that the node lacked something for, and puts
// those in force that it lacks nothing for any more, also of the state on disk
// while etcd is away.
func (c *Controller) lookOnce() {
	c.applying.Lock()
	defer c.applying.Unlock()
	c.mu.Lock()
	rev := cmp.Or(c.rev, c.restored)
	if rev == 0 {
		c.mu.Unlock()
		return
	}
	var touched []string
	keys := slices.SortedFunc(maps.Keys(c.lacking), func(a, b string) int {
		return cmp.Or(cmp.Compare(c.entries[a].rev, c.entries[b].rev), cmp.Compare(a, b))
	})
	for _, key := range keys {
		e := c.entries[key]
		was, wasRev := e.refused, e.goodRev
		if e.heldRev == 0 && c.take(key, e) == nil || c.takeKept(key, e) {
			c.cfg.Logger.Info("accepted a value that the node had lacked something for", "key", key, "rev", e.goodRev)
		}
		if e.refused != was || e.goodRev != wasRev {
			touched = append(touched, key)
		}
	}
	touched = c.settle(touched)
	c.mu.Unlock()
	if len(touched) > 0 {
		c.apply(rev, touched)
	}
}

// takeKept puts the last good value of key in force that the node lacked something
// for, if etcd's one is refused, and reports whether it could.
func (c *Controller) takeKept(key string, e *entry) bool {
	if e.kept.rev == 0 || e.heldRev == 0 && e.kept == (lastGood{e.value, e.rev}) {
		return false
	}
	if err := c.accept(key, e.kept.value, e.kept.rev); err != nil {
		return false
	}
	c.tookOld(key, e, e.kept)
	if e.heldRev != 0 {
		delete(c.lacking, key)
	}
	return true
}
