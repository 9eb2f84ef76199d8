package main

import (
	"context"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// pairOfConns returns both ends of a connection of two processes.
func pairOfConns(t *testing.T) (one, other *handover.Conn) {
	t.Helper()
	one, f, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close() })
	if other, err = handover.FromFile(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return one, other
}

// The time limit of an upgrade may end just as the new process is ready: what is
// left then still goes over.
func TestUpgradeLimitEndsAtReady(t *testing.T) {
	conn, other := pairOfConns(t)
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		unbind := bindTo(ctx, conn)
		cancel()
		unbind()
		conn.SetDeadline(time.Now().Add(time.Minute))
		if err := conn.Send(msgLeft, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := other.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer bindTo(ctx, conn)()
	cancel()
	if _, _, err := conn.Receive(); err == nil {
		t.Error("a bound connection outlasts its context")
	}
}
