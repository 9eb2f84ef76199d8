package etcd

import (
	"testing"
	"time"
)

// Plain verdicts are there for edits that come apart, however many, and for a
// crowd of MaxPlain, and for no row of edits that does not end.
func TestAllowance(t *testing.T) {
	now := time.Unix(1, 0)
	taken := func(a *allowance, n int, apart time.Duration) (got int) {
		for range n {
			now = now.Add(apart)
			if a.take(now) {
				got++
			}
		}
		return got
	}
	etcd := new(pacemaker)
	a := &allowance{most: MaxPlain, etcd: etcd}
	if got := taken(a, 40_000, 0); got != MaxPlain {
		t.Errorf("of 40,000 at once %d are written, want %d", got, MaxPlain)
	}
	if got := taken(a, 60_000, time.Millisecond); got != 0 {
		t.Errorf("%d of a minute of edits, 1,000 a second, are written after that, want none", got)
	}
	if got := taken(a, 1000, rowGap); got != 1000 {
		t.Errorf("of 1,000 edits that come apart %d are written", got)
	}
	if taken(a, 1, MaxPlain*plainRest); taken(a, 1000, 0) != MaxPlain-1 {
		t.Error("after a rest there is less than all of it")
	}
	// As environments come, of several keys each.
	several := 0
	for range 200 {
		several += taken(a, 1, 3*rowGap) + taken(a, 7, 0)
	}
	if several != 200*8 {
		t.Errorf("of 200 times 8 edits that come apart %d are written", several)
	}
	taken(a, 2*MaxPlain, 0)
	// An etcd that takes its time for transactions is asked for fewer.
	for range 100 {
		etcd.note(5 * easyTxn)
	}
	if got := taken(a, 1000, rowGap); got < 195 || got > 205 {
		t.Errorf("of 1,000 edits %d are written to an etcd that is slow, want a fifth", got)
	}
	if got := taken(a, 1000, 25*plainRest); got < 990 {
		t.Errorf("of 1,000 edits that come further apart %d are written to an etcd that is slow, want all", got)
	}
	for range 100 {
		etcd.note(time.Hour)
	}
	if got := taken(a, 100, 401*plainRest); got != 100 {
		t.Errorf("of 100 edits with seconds between them %d are written, want all", got)
	}
	for range 100 {
		etcd.note(time.Millisecond)
	}
	if got := taken(a, 1000, rowGap); got < 990 {
		t.Errorf("of 1,000 edits %d are written to an etcd that is quick again, want all", got)
	}
}
