package portpool

import (
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

// A book that is told of releases and never asked keeps one rest for each port.
func TestRestsDoNotPileUp(t *testing.T) {
	b := NewBook()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	a := &Allocation{Env: "a", Service: "ssh", Since: now}
	for i := range int64(1000) {
		for port := range 3 {
			b.Set(router.TCP, 20000+port, a, 2*i+1)
			b.Set(router.TCP, 20000+port, a.Release(now, time.Minute), 2*i+2)
		}
	}
	if len(b.resting) != 3 {
		t.Errorf("3 ports that were released 1000 times each leave %d rests", len(b.resting))
	}
	b.Set(router.TCP, 20000, nil, 5000)
	b.advance(now.Add(time.Hour))
	if len(b.resting) != 0 {
		t.Errorf("after an hour %d rests are left", len(b.resting))
	}
}
