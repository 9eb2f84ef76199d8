package l4

import (
	"math/rand/v2"
	"testing"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// The wheel sees every session at its tick, whatever others do meanwhile, and
// tells when the next one is due.
func TestSessionWheel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w sessionWheel
	w.now = 5
	want := map[*session]uint32{} // tick at which it is to be seen
	check := func() {
		t.Helper()
		first := int64(event.Never)
		for _, at := range want {
			first = min(first, int64(at)<<udpTickBits)
		}
		if got := w.due(); got != first {
			t.Fatalf("at tick %d the next is due at tick %d, want %d", w.now, got>>udpTickBits, first>>udpTickBits)
		}
	}
	check()
	for range 20_000 {
		switch n := r.IntN(10); {
		case n < 5:
			s, after := &session{}, uint32(r.IntN(wheelSize+500))
			if r.IntN(2) == 0 {
				after %= 8
			}
			w.enter(s, after)
			want[s] = w.now + min(max(after, 1), wheelSize-1)
		case n < 7:
			for s := range want { // any
				w.leave(s)
				w.leave(s) // twice does no harm
				delete(want, s)
				break
			}
		default:
			to := w.now + uint32(r.IntN(100))
			w.advance(to, func(s *session) {
				if at, ok := want[s]; !ok || at != w.now {
					t.Fatalf("a session is seen at tick %d, want %d", w.now, at)
				}
				delete(want, s)
			})
			for _, at := range want {
				if at <= to {
					t.Fatalf("a session that is due at tick %d was not seen by %d", at, to)
				}
			}
		}
		check()
	}
}
