package fleet_test

import (
	"context"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/proxy/listen/netns"
)

// TestChangesOfAddressesAreTold sets the loopback interface of a network namespace
// up and down, in a child that has one.
func TestChangesOfAddressesAreTold(t *testing.T) {
	if !netns.Alone(t, 0) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- fleet.WatchAddresses(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	limit := time.After(20 * time.Second)
	for round := 0; ; round++ { // the first changes may come before it listens
		if err := netns.SetLoopback(round%2 == 0); err != nil {
			t.Fatal(err)
		}
		select {
		case <-told:
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			return
		case <-limit:
			t.Fatal("nothing was told")
		case <-time.After(5 * time.Millisecond):
		}
	}
}
