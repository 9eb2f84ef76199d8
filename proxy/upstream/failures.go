package upstream

import "time"

const (
	// failureMemory is how long a failure counts. It is short, since there is
	// nothing that would find a target well again but flows that try it: one in
	// so many seconds meets a timeout, where otherwise each would.
	failureMemory = 10 * time.Second
	// maxFailures bounds the memory; a thousand targets of one node all down
	// fit in.
	maxFailures = 4096
)

// failures remembers what failed lately. It only ever changes an order: what
// has failed is still tried when all else has failed too, since then the fault
// is likely not theirs.
type failures[K comparable] struct {
	until *bounded[K, time.Time]
}

func newFailures[K comparable]() *failures[K] {
	return &failures[K]{&bounded[K, time.Time]{max: maxFailures, dead: isPast}}
}

func isPast(t time.Time) bool { return !time.Now().Before(t) }

func (f *failures[K]) remember(k K) { f.until.store(k, time.Now().Add(failureMemory)) }

func (f *failures[K]) forget(k K) {
	if !f.until.empty() {
		f.until.delete(k)
	}
}

// recent reports whether k failed lately and did not succeed since.
func (f *failures[K]) recent(k K) bool {
	if f.until.empty() { // nearly always: the cost of health is one load
		return false
	}
	t, ok := f.until.load(k)
	if ok && isPast(t) {
		f.until.delete(k)
		return false
	}
	return ok
}

// last returns ks with those that failed lately moved to the end, the order
// otherwise kept. It returns ks itself where there are none.
func (f *failures[K]) last(ks []K) []K {
	if f.until.empty() {
		return ks
	}
	sorted := make([]K, 0, len(ks))
	var bad []K
	for _, k := range ks {
		if f.recent(k) {
			bad = append(bad, k)
		} else {
			sorted = append(sorted, k)
		}
	}
	return append(sorted, bad...)
}
