package etcd

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

const (
	maxVerdict    = 1 << 10
	maxVerdictKey = 4 << 10

	// MaxPlain is how many verdicts of a node say nothing but applied@rev. With
	// these of every key, 40,000 keys and 1,000 nodes would take 5 GB of etcd, and
	// as much more each time that all nodes begin anew.
	MaxPlain = 512

	// LeftOut is what etcd has for a moment in the place of a verdict that is left
	// out from now on, since it would say nothing but applied@rev: so whoever
	// follows verdicts can tell it from one whose key is gone.
	LeftOut = "applied (left out)"
)

// Verdicts are what a node says became of each key, kept in etcd under
// verdicts/<node>/<key> for as long as the node lives. It is safe for
// concurrent use.
type Verdicts struct {
	ledger *ledger
	prefix string
	rate   *allowance // of plain ones

	mu    sync.Mutex               // guards the following fields, and the order of what the ledger is told
	plain map[string]*list.Element // of order, by key
	order list.List                // of keys with a plain verdict, the one set last at the end
	most  int                      // of them
}

// Verdicts returns the verdicts of the session's node. It is called once.
func (s *Session) Verdicts() *Verdicts {
	return &Verdicts{ledger: s.ledger, rate: &s.plain, prefix: "verdicts/" + s.cfg.Node + "/", plain: map[string]*list.Element{}, most: MaxPlain}
}

// Set makes text the verdict on key, which is below the cluster's prefix, such
// as ports/tcp/20022. It returns at once: a verdict is written soon after, if
// it differs from what was written last and is not replaced meanwhile. More
// than 1 KiB of text is cut; a key of more than 4 KiB gets no verdict.
//
// One that says nothing but applied@rev is left out where many come, of a load
// of all keys or a row of edits, and where MaxPlain others came after it. What
// etcd has of the key then goes: there is no verdict that is not the last one,
// and of a key without any the node's record says so, by its applied revision.
func (v *Verdicts) Set(key, text string) {
	if len(key) > maxVerdictKey {
		return
	}
	if len(text) > maxVerdict {
		text = strings.ToValidUTF8(text[:maxVerdict], "") + "..."
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	at, plain := v.plain[key], isPlain(text)
	if plain && !v.rate.take(time.Now()) {
		if at != nil {
			v.forget(at)
		}
		v.ledger.leave(v.prefix+key, LeftOut)
		return
	}
	switch {
	case plain && at != nil:
		v.order.MoveToBack(at)
	case plain:
		v.plain[key] = v.order.PushBack(key)
	case at != nil:
		v.forget(at)
	}
	v.ledger.set(v.prefix+key, text)
	if v.order.Len() > v.most {
		v.ledger.leave(v.prefix+v.forget(v.order.Front()), LeftOut)
	}
}

// isPlain reports whether a verdict says no more than which revision is applied.
func isPlain(text string) bool {
	return strings.HasPrefix(text, "applied@") && !strings.Contains(text, ":")
}

func (v *Verdicts) forget(at *list.Element) (key string) {
	key = v.order.Remove(at).(string)
	delete(v.plain, key)
	return key
}

// Delete removes the verdict on key, and like Set returns at once.
func (v *Verdicts) Delete(key string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if at := v.plain[key]; at != nil {
		v.forget(at)
	}
	v.ledger.drop(v.prefix + key)
}

const (
	// plainRest is the time between plain verdicts in the long run, with an etcd
	// that is quick. Each is written by each node: where etcd takes longer than
	// that for a transaction, it has better things to do, and the time grows by
	// the square.
	plainRest = 10 * time.Millisecond
	// plainSlow is when an etcd is no slower than slow.
	plainSlow = 20 * plainRest
)

// allowance says how many plain verdicts may be written: MaxPlain at once, and
// then as many as etcd takes easily, of those that come apart from each other.
// A row of edits that does not end is allowed none. The zero value is a full
// one. It is safe for concurrent use.
type allowance struct {
	mu   sync.Mutex    // guards the following fields
	used float64       // of MaxPlain
	seen time.Time     // when one was asked for
	took time.Duration // by a transaction, of late
}

// take takes one, and reports whether there was any.
func (a *allowance) take(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	slow := max(1, a.took.Seconds()/plainRest.Seconds())
	// What lies closer together is a row of edits, and earns nothing.
	if rests := now.Sub(a.seen).Seconds() / (plainRest.Seconds() * slow * slow); rests >= 1 {
		a.used = max(0, a.used-rests)
	}
	a.seen = now
	if a.used > MaxPlain-1 {
		return false
	}
	a.used++
	return true
}

// note notes how long a transaction took.
func (a *allowance) note(took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.took += (min(took, plainSlow) - a.took) / 8
}
