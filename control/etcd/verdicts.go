package etcd

import (
	"container/list"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxVerdict    = 1 << 10
	maxVerdictKey = 4 << 10

	// MaxPlain is how many verdicts of a node say nothing but applied@rev, and
	// MaxNotes how many say that and more, such as until when a certificate is
	// valid. With those of every key, 40,000 keys and 1,000 nodes would take 5 GB
	// of etcd and more, and as much each time that all nodes begin anew.
	MaxPlain = 512
	MaxNotes = 1536

	// LeftOut is what etcd has for a moment in the place of a verdict that is left
	// out from now on, since the key is applied and all is well: so whoever follows
	// verdicts can tell it from one whose key is gone.
	LeftOut = "applied (left out)"
)

// Verdicts are what a node says became of each key, kept in etcd under
// verdicts/<node>/<key> for as long as the node lives. It is safe for
// concurrent use.
type Verdicts struct {
	ledger *ledger
	prefix string

	mu           sync.Mutex // guards the following fields, and the order of what the ledger is told
	plain, notes crowd
}

// Verdicts returns the verdicts of the session's node. It is called once.
func (s *Session) Verdicts() *Verdicts {
	return &Verdicts{
		ledger: s.ledger, prefix: "verdicts/" + s.cfg.Node + "/",
		plain: newCrowd(MaxPlain, &s.etcdPace), notes: newCrowd(MaxNotes, &s.etcdPace),
	}
}

// Set makes text the verdict on key, which is below the cluster's prefix, such
// as ports/tcp/20022. It returns at once: a verdict is written soon after, if
// it differs from what was written last and is not replaced meanwhile. More
// than 1 KiB of text is cut; a key of more than 4 KiB gets no verdict.
//
// One that says applied@rev is left out where many come, of a load of all keys
// or a row of edits, and where MaxPlain others came after it that say no more, or
// MaxNotes that do. What etcd has of the key then goes: there is no verdict that
// is not the last one, and of a key without any the node's record says so, by its
// applied revision.
func (v *Verdicts) Set(key, text string) {
	if len(key) > maxVerdictKey {
		return
	}
	if len(text) > maxVerdict {
		text = strings.ToValidUTF8(text[:maxVerdict], "") + "..."
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	in := v.crowdOf(text)
	for _, other := range []*crowd{&v.plain, &v.notes} {
		if other != in {
			other.forget(key)
		}
	}
	if in == nil {
		v.ledger.set(v.prefix+key, text)
		return
	}
	if !in.rate.take(time.Now()) {
		in.forget(key)
		v.ledger.leave(v.prefix+key, LeftOut)
		return
	}
	v.ledger.set(v.prefix+key, text)
	if oldest, over := in.keep(key); over {
		v.ledger.leave(v.prefix+oldest, LeftOut)
	}
}

// crowdOf returns the crowd that a verdict belongs to; nil: none, since it says
// what is amiss, and is always written.
func (v *Verdicts) crowdOf(text string) *crowd {
	switch {
	case !strings.HasPrefix(text, "applied@"):
		return nil
	case strings.Contains(text, ":"):
		return &v.notes
	}
	return &v.plain
}

// crowd are the keys of verdicts that are bounded in number.
type crowd struct {
	rate  allowance
	most  int
	at    map[string]*list.Element // of order, by key
	order list.List                // of keys, the one whose verdict was set last at the end
}

func newCrowd(most int, etcd *pacemaker) crowd {
	return crowd{rate: allowance{most: float64(most), etcd: etcd}, most: most, at: map[string]*list.Element{}}
}

// keep notes key as the one that was set last, and returns the oldest if there are
// too many.
func (c *crowd) keep(key string) (oldest string, over bool) {
	if at := c.at[key]; at != nil {
		c.order.MoveToBack(at)
		return "", false
	}
	c.at[key] = c.order.PushBack(key)
	if c.order.Len() <= c.most {
		return "", false
	}
	oldest = c.order.Front().Value.(string)
	c.forget(oldest)
	return oldest, true
}

func (c *crowd) forget(key string) {
	if at := c.at[key]; at != nil {
		c.order.Remove(at)
		delete(c.at, key)
	}
}

// Delete removes the verdict on key, and like Set returns at once.
func (v *Verdicts) Delete(key string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.plain.forget(key)
	v.notes.forget(key)
	v.ledger.drop(v.prefix + key)
}

const (
	// plainRest is the time that earns another verdict of a crowd, with an etcd
	// that is quick: which takes no longer than easyTxn for a transaction. Each is
	// written by each node: where etcd takes longer it has better things to do,
	// and the time grows by the square, up to what it is at slowTxn.
	plainRest = 2 * time.Millisecond
	easyTxn   = 20 * time.Millisecond
	slowTxn   = 20 * easyTxn
	// rowGap is how far apart edits are that are no row.
	rowGap = 10 * time.Millisecond
)

// pacemaker knows how long etcd takes. The zero value is that it takes no time.
// It is safe for concurrent use.
type pacemaker struct{ took atomic.Int64 } // nanoseconds, by a transaction, of late

// note notes how long a transaction took. It is called from one goroutine.
func (p *pacemaker) note(took time.Duration) {
	before := p.took.Load()
	p.took.Store(before + (int64(min(took, slowTxn))-before)/8)
}

// rest returns the time that earns a verdict.
func (p *pacemaker) rest() time.Duration {
	slow := max(1, float64(p.took.Load())/float64(easyTxn))
	return time.Duration(float64(plainRest) * slow * slow)
}

// allowance says how many verdicts of a crowd may be written: most of them at
// once, and then as many as etcd takes easily, of those that come apart from each
// other. A row of edits that does not end is allowed none.
type allowance struct {
	most float64
	etcd *pacemaker
	used float64   // of most
	seen time.Time // when one was asked for
}

// take takes one, and reports whether there was any.
func (a *allowance) take(now time.Time) bool {
	if gap := now.Sub(a.seen); gap >= rowGap {
		a.used = max(0, a.used-gap.Seconds()/a.etcd.rest().Seconds())
	}
	a.seen = now
	if a.used > a.most-1 {
		return false
	}
	a.used++
	return true
}
