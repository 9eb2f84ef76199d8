package loop

import (
	"math/rand/v2"
	"testing"
	"time"
)

// The wheel must see each flow when it is due, not earlier but to enter it
// again, and next must never promise more quiet than there is.
func TestWheel(t *testing.T) {
	const flows, steps = 300, 4000
	l := newLoop(&Group{}, 0)
	w, s := &l.wheel, &l.slab
	due := map[*flow]int64{}
	var all []*flow
	for range flows {
		all = append(all, s.get(l))
	}
	delay := func() uint32 {
		return uint32(rand.Int64N(1 << rand.IntN(23)))
	}
	schedule := func(f *flow) {
		d := delay()
		w.enter(s, f, d)
		due[f] = w.now + int64(max(d, 1))
	}
	seen := 0
	see := func(f *flow) {
		at, ok := due[f]
		if !ok {
			t.Fatalf("tick %d: a flow is seen that is not in the wheel", w.now)
		}
		if w.now < at { // as flows do, whose time has moved or is far off
			w.enter(s, f, uint32(at-w.now))
			return
		}
		seen++
		delete(due, f)
		if rand.IntN(2) == 0 {
			schedule(f)
		}
	}
	for range steps {
		f := all[rand.IntN(flows)]
		switch rand.IntN(4) {
		case 0:
			w.leave(s, f)
			delete(due, f)
		default:
			schedule(f)
		}
		ticks, ok := w.next()
		if ok != (len(due) > 0) {
			t.Fatalf("next says %v with %d flows in the wheel", ok, len(due))
		}
		to := w.now + rand.Int64N(1<<rand.IntN(16))
		if rand.IntN(2) == 0 && ok {
			to = w.now + ticks
		}
		before := seen
		if ok && to < w.now+ticks {
			w.advance(s, to, func(*flow) { t.Fatal("a flow is seen before next") })
		} else {
			w.advance(s, to, see)
		}
		_ = before
		for f, at := range due {
			if at <= w.now {
				t.Fatalf("tick %d: flow %d was due at %d", w.now, f.index, at)
			}
		}
	}
	if seen < steps/10 {
		t.Errorf("only %d flows became due", seen)
	}
}

func TestSlabReusesSlots(t *testing.T) {
	l := newLoop(&Group{}, 0)
	a, b := l.slab.get(l), l.slab.get(l)
	if a == b || a.index == 0 || b.index == 0 {
		t.Fatalf("slots %d and %d", a.index, b.index)
	}
	old := Flow{a, a.gen.Load()}
	l.slab.put(a)
	if c := l.slab.get(l); c != a {
		t.Errorf("slot %d is given, want the free one, %d", c.index, a.index)
	}
	if _, _, live := old.Bytes(); live || a.gen.Load() == old.gen {
		t.Error("the slot's new flow answers to the old one's name")
	}
	a.gen.Store(^uint32(0))
	l.slab.put(a)
	if a.gen.Load() == 0 {
		t.Error("a generation is 0, which is no flow's")
	}
	for range 3 * chunkSize {
		f := l.slab.get(l)
		if f == nil || l.slab.at(f.index) != f {
			t.Fatal("a slot is not where its index says")
		}
	}
	l.slab.used = maxChunks*chunkSize - 1
	if f := l.slab.get(l); f != nil {
		t.Errorf("slot %d is beyond what an event can tell", f.index)
	}
}

func TestPool(t *testing.T) {
	var p pool[int]
	if _, ok := p.get(); ok {
		t.Error("something came out of nothing")
	}
	for i := range 5 {
		p.put(i)
	}
	dropped := 0
	drop := func(int) { dropped++ }
	if !p.trim(drop) || dropped != 0 {
		t.Errorf("%d were dropped that had just come", dropped)
	}
	p.get()
	p.get()
	p.put(8)
	if p.trim(drop); dropped != 3 {
		t.Errorf("%d were dropped, want the 3 that nobody needed", dropped)
	}
	if p.trim(drop) || dropped != 4 {
		t.Errorf("%d were dropped in all, want 4", dropped)
	}
}

// A line that is never empty must not grow.
func TestLineStaysShort(t *testing.T) {
	l := newLoop(&Group{}, 0)
	const flows = 10
	var all []*flow
	for range flows {
		f := l.slab.get(l)
		f.state = relaying
		all = append(all, f)
		l.queueUp(f, client)
		l.queueUp(f, client) // is in line already
	}
	if len(l.line) != flows {
		t.Fatalf("%d are in line, want %d", len(l.line), flows)
	}
	for i := range 10_000 {
		next := l.line[l.served].flow
		if next != all[i%flows] {
			t.Fatalf("turn %d is not that of the one that waited longest", i)
		}
		l.serveLine()
		l.queueUp(next, client)
	}
	if cap(l.line) > 8*flows {
		t.Errorf("the line has room for %d", cap(l.line))
	}
}

// A loop whose deadline has passed, and that has none any more, waits again.
func TestWaitAfterADeadline(t *testing.T) {
	l := newLoop(&Group{}, 0)
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	f := l.slab.get(l)
	l.wheel.now = int64(l.tick)
	l.wheel.enter(&l.slab, f, 1)
	for came := 0; came == 0 && l.now>>tickBits <= l.wheel.now; {
		var err error
		if came, err = l.wait(); err != nil {
			t.Fatal(err)
		}
	}
	l.wheel.leave(&l.slab, f)
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		<-time.After(20 * time.Millisecond) // for a loop that does not wait to be there first
		l.post(command{kind: cmdStop})
	}()
	if _, err := l.wait(); err != nil {
		t.Fatal(err)
	}
	if !l.poll.Pending() {
		t.Error("a loop with nothing to do did not wait")
	}
	<-posted
}
