package etcd

import (
	"container/list"
	"strings"
	"sync"
)

const (
	maxVerdict    = 1 << 10
	maxVerdictKey = 4 << 10

	// MaxPlain is how many verdicts of a node say nothing but applied@rev. With
	// these of every key, 40,000 keys and 1,000 nodes would take 5 GB of etcd, and
	// as much more each time that all nodes begin anew.
	MaxPlain = 100000
)

// Verdicts are what a node says became of each key, kept in etcd under
// verdicts/<node>/<key> for as long as the node lives. It is safe for
// concurrent use.
type Verdicts struct {
	ledger *ledger
	prefix string

	mu    sync.Mutex               // guards the following fields, and the order of what the ledger is told
	plain map[string]*list.Element // of order, by key
	order list.List                // of keys with a plain verdict, the one set last at the end
	most  int                      // of them
}

// Verdicts returns the verdicts of the session's node. It is called once.
func (s *Session) Verdicts() *Verdicts {
	return &Verdicts{ledger: s.ledger, prefix: "verdicts/" + s.cfg.Node + "/", plain: map[string]*list.Element{}, most: MaxPlain}
}

// Set makes text the verdict on key, which is below the cluster's prefix, such
// as ports/tcp/20022. It returns at once: a verdict is written soon after, if
// it differs from what was written last and is not replaced meanwhile. More
// than 1 KiB of text is cut; a key of more than 4 KiB gets no verdict. Of those
// that say nothing but applied@rev the last MaxPlain are kept: of other keys the
// node's record says it, by its applied revision.
func (v *Verdicts) Set(key, text string) {
	if len(key) > maxVerdictKey {
		return
	}
	if len(text) > maxVerdict {
		text = strings.ToValidUTF8(text[:maxVerdict], "") + "..."
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	at := v.plain[key]
	switch plain := isPlain(text); {
	case plain && at != nil:
		v.order.MoveToBack(at)
	case plain:
		v.plain[key] = v.order.PushBack(key)
	case at != nil:
		v.forget(at)
	}
	v.ledger.set(v.prefix+key, text)
	if v.order.Len() > v.most {
		v.ledger.drop(v.prefix + v.forget(v.order.Front()))
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
