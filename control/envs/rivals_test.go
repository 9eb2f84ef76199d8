package envs

import (
	"testing"
	"time"
)

func TestRivalsSpreadWhileTheyMeet(t *testing.T) {
	var r rivals
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	most := func() (most int) {
		for range 10000 {
			most = max(most, r.skip(now))
		}
		return most
	}
	if n := most(); n != 0 {
		t.Errorf("whoever has met nobody passes over %d places", n)
	}
	for _, want := range []int{16, 32, 64, 128, 256, 512, 512} {
		r.met(now)
		if n := most(); n >= want || n < want*9/10 {
			t.Errorf("at most %d places are passed over, want somewhat less than %d", n, want)
		}
	}
	now = now.Add(calmAfter)
	if n := most(); n >= 256 || n < 200 {
		t.Errorf("after a while at most %d places are passed over, want less than 256", n)
	}
	now = now.Add(-time.Hour)
	if n := most(); n >= 256 || n < 200 {
		t.Errorf("with the clock set back at most %d places are passed over", n)
	}
	now = now.Add(5 * calmAfter)
	if n := most(); n != 0 {
		t.Errorf("after a long while %d places are passed over", n)
	}
}
