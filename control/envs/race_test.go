package envs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/portpool"
)

// TestNoPortTwice has eight clients on three nodes make, change and end
// environments at once, and wants allocations, mappings and records to tell the
// same story after that.
func TestNoPortTwice(t *testing.T) {
	r := newRig(t)
	r.put("pools/ssh", `{"ports":"20000-20149","backend_port":22,"quarantine":"0s"}`)
	r.put("pools/jupyter", `{"ports":"30000-30149","backend_port":8888,"http":true,"quarantine":"0s","pick":"random"}`)
	r.put("pools/rdp", `{"ports":"31000-31149","backend_port":3389,"protocol":"tcp+udp","quarantine":"0s"}`)
	nodes := []*node{r.node(), r.node(), r.node()}
	for _, n := range nodes {
		r.settle(n, "pools/ssh", "pools/jupyter", "pools/rdp")
	}
	var mu sync.Mutex
	var took []time.Duration
	var clients sync.WaitGroup
	for c := range 8 {
		rng := rand.New(rand.NewPCG(uint64(c), 1))
		clients.Go(func() {
			for i := range 40 {
				n := nodes[rng.IntN(len(nodes))]
				start := time.Now()
				id := fmt.Sprintf("env-%d-%d", c, rng.IntN(i+1))
				if err := step(t.Context(), n, rng, id); err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	slices.Sort(took)
	t.Logf("%d changes: p50 %v, p99 %v", len(took), took[len(took)/2], took[len(took)*99/100])
	r.clock.advance(time.Hour)
	fresh := r.node()
	if found := fresh.findings(t); len(found) > 0 {
		t.Errorf("audit: %q", found)
	}
	list, err := fresh.List(t.Context(), "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	ports := 0
	for _, e := range list {
		ports += len(e.Services)
		if e.Services["rdp"] != nil {
			ports++ // for TCP and UDP
		}
	}
	held, err := fresh.Ports(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	held = slices.DeleteFunc(held, func(h envs.Held) bool { return h.State != portpool.Allocated })
	if mappings := len(r.keys("ports/")); len(list) == 0 || len(held) != ports || mappings != ports {
		t.Errorf("%d environments have %d ports; %d are held and %d mapped", len(list), ports, len(held), mappings)
	}
}

// step makes one random change, and returns the error of one that must not fail.
func step(ctx context.Context, n *node, rng *rand.Rand, id string) error {
	var err error
	switch rng.IntN(5) {
	case 0:
		_, err = n.Delete(ctx, id, 0)
	case 1:
		services := map[string]*envs.ServiceSpec{"rdp": nil}
		if rng.IntN(2) == 0 {
			services["rdp"] = &envs.ServiceSpec{}
		}
		_, err = n.Patch(ctx, id, envs.Patch{Services: services})
	default:
		_, err = n.Create(ctx, spec(id, "ssh", "jupyter"))
	}
	if errors.As(err, new(*envs.NotFoundError)) || errors.As(err, new(*envs.ExistsError)) {
		return nil
	}
	return err
}
