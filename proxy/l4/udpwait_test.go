package l4

import (
	"testing"
	"time"
)

// A loop whose last session has timed out waits again.
func TestUDPLoopWaitsAfterADeadline(t *testing.T) {
	l, err := newUDPLoop(&Server{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	s := &session{}
	l.wheel.now = l.tick
	l.wheel.enter(s, 1)
	for l.tick == l.wheel.now {
		l.wait()
	}
	l.wheel.advance(l.tick, func(*session) {})
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		<-time.After(20 * time.Millisecond) // for a loop that does not wait to be there first
		l.post(udpCommand{kind: cmdQuit})
	}()
	l.wait()
	if !l.poll.Pending() {
		t.Error("a loop with nothing to do did not wait")
	}
	<-posted
}
