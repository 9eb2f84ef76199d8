package fleet_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// plane is a data plane that rests when it is told to.
type plane struct {
	mu      sync.Mutex
	resting bool
	flows   int
}

func (p *plane) Rest(ctx context.Context) {
	p.set(true)
	<-ctx.Done()
	p.set(false)
}

func (p *plane) set(resting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = resting
}

func (p *plane) Left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flows
}

func (p *plane) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = 0
}

func (p *plane) rests() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resting
}

// drainRig is a node that can be drained.
type drainRig struct {
	*plane
	*shelf
	registry *fleet.Registry
	ready    chan struct{}
	stop     func()
}

func newDrainRig(t *testing.T, marker string, flows int) *drainRig {
	t.Helper()
	rig := &drainRig{plane: &plane{flows: flows}, registry: fleet.NewRegistry("edge-1"), ready: make(chan struct{})}
	registrar, s := run(t, config())
	rig.shelf = s
	d := fleet.NewDrainer(fleet.DrainerConfig{
		Node: "edge-1", Registry: rig.registry, Registrar: registrar, Engine: rig.plane, Ready: rig.ready,
		Wait: func() time.Duration { return time.Minute }, Marker: marker,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	rig.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(rig.stop)
	return rig
}

// expect wants the record to say so, and the node to rest or not.
func (r *drainRig) expect(t *testing.T, when string, state fleet.State, phase fleet.Phase, left int, resting bool) {
	t.Helper()
	synctest.Wait()
	n, _ := r.last(t)
	p := fleet.Progress{}
	if n.Drain != nil {
		p = *n.Drain
	}
	if n.State != state || p.Phase != phase || p.Left != left || r.rests() != resting {
		t.Errorf("%s: %s, %q, %d flows left, resting %t; want %s, %q, %d, %t", when, n.State, p.Phase, p.Left, r.rests(), state, phase, left, resting)
	}
}

var (
	wished    = []etcd.Change{put("drain/edge-1", `{"reason":"new disk"}`)}
	takenBack = []etcd.Change{gone("drain/edge-1")}
)

func TestDrainAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		marker := filepath.Join(t.TempDir(), "drained")
		rig := newDrainRig(t, marker, 2)
		rig.registry.Load(1, nil)
		rig.expect(t, "at first", fleet.Joining, "", 0, false)
		close(rig.ready)
		rig.expect(t, "ready", fleet.Ready, "", 0, false)

		rig.registry.Change(2, wished)
		rig.expect(t, "drained", fleet.Draining, fleet.LeavingDNS, 0, false)
		time.Sleep(59 * time.Second)
		rig.registry.Change(3, takenBack)
		rig.expect(t, "called off in time", fleet.Ready, "", 0, false)

		rig.registry.Change(4, wished)
		time.Sleep(61 * time.Second)
		rig.expect(t, "out of DNS", fleet.Draining, fleet.EndingFlows, 2, true)
		if !fleet.Resting(marker) {
			t.Error("no marker")
		}
		rig.end()
		time.Sleep(6 * time.Second)
		rig.expect(t, "the last flow has ended", fleet.Down, fleet.Drained, 0, true)
		rig.registry.Change(5, takenBack)
		rig.expect(t, "taken back", fleet.Ready, "", 0, false)
		if fleet.Resting(marker) {
			t.Error("the marker is there still")
		}
	})
}

func TestDrainedOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		marker := filepath.Join(t.TempDir(), "drained")
		rig := newDrainRig(t, marker, 1)
		rig.registry.Load(1, []etcd.KV{{Key: "drain/edge-1", Value: []byte("{}")}})
		close(rig.ready)
		time.Sleep(61 * time.Second)
		rig.expect(t, "drained", fleet.Draining, fleet.EndingFlows, 1, true)
		rig.stop()

		rig = newDrainRig(t, marker, 0)
		rig.expect(t, "before etcd answers", fleet.Down, fleet.Drained, 0, true)
		rig.registry.Load(2, []etcd.KV{{Key: "drain/edge-1", Value: []byte("{}")}})
		close(rig.ready)
		time.Sleep(time.Hour)
		rig.expect(t, "after a restart", fleet.Down, fleet.Drained, 0, true)
		rig.stop()

		rig = newDrainRig(t, marker, 0)
		rig.expect(t, "again", fleet.Down, fleet.Drained, 0, true)
		rig.registry.Load(3, nil) // somebody has taken it back meanwhile
		rig.expect(t, "taken back, and not ready", fleet.Joining, "", 0, false)
		close(rig.ready)
		rig.expect(t, "taken back, and ready", fleet.Ready, "", 0, false)
	})
}
