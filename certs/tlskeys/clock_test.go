package tlskeys_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"
)

// TestKeyMadeByAClockAhead begins with what a node has written whose clock was a
// year ahead: the others go on sharing keys.
func TestKeyMadeByAClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, now := &storage{}, time.Now().UTC()
		type key struct {
			Secret [32]byte  `json:"secret"`
			From   time.Time `json:"from"`
		}
		data, err := json.Marshal(map[string]any{"version": 1, "keys": []key{
			{[32]byte{1}, now.Add(-time.Hour)}, {[32]byte{2}, now.Add(365*24*time.Hour + time.Hour)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.put("shared/tickets", 0, data); err != nil {
			t.Fatal(err)
		}
		nodes := []*server{{view: s.view()}, {view: s.view()}}
		for _, n := range nodes {
			n.refresh()
			n.start(t)
		}
		last := [32]byte{1}
		for day := range 10 {
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			sealed := nodes[0].seals()
			if !nodes[1].opens(sealed) || !nodes[0].opens(nodes[1].seals()) {
				t.Errorf("day %d: nodes do not open each other's tickets", day)
			}
			if sealed == last {
				t.Errorf("day %d: the key is still the one of the day before", day)
			}
			last = sealed
		}
	})
}
