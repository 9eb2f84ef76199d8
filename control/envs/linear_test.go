package envs_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
)

// wish is a call of Alloc or Release.
type wish struct {
	release bool
	env     string
}

// got is what came of it.
type got struct {
	port    int
	full    bool // the pool was exhausted
	unknown bool // it may have been done, or not
}

// holding is who holds which port, as text: states are compared.
func holding(m map[string]int) string {
	var parts []string
	for _, env := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s=%d", env, m[env]))
	}
	return strings.Join(parts, " ")
}

func held(state string) map[string]int {
	m := map[string]int{}
	for part := range strings.FieldsSeq(state) {
		env, port, _ := strings.Cut(part, "=")
		n := 0
		fmt.Sscan(port, &n)
		m[env] = n
	}
	return m
}

// pool is what a pool of a few ports without quarantine may answer.
func poolModel(ports []int) porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} },
		Step: func(state, in, out any) []any {
			m, w, g := held(state.(string)), in.(wish), out.(got)
			var next []any
			if g.unknown {
				next = append(next, state)
			}
			switch {
			case w.release:
				if _, has := m[w.env]; has || !g.unknown {
					delete(m, w.env)
					next = append(next, holding(m))
				}
			case g.full:
				if _, has := m[w.env]; !has && len(m) == len(ports) {
					next = append(next, state)
				}
			default:
				next = append(next, allocated(m, w.env, g, ports)...)
			}
			return next
		},
		Equal: func(a, b any) bool { return a == b },
	}
	return model.ToModel()
}

// allocated returns the states after an allocation: any free port may be the one.
func allocated(m map[string]int, env string, g got, ports []int) (next []any) {
	if port, has := m[env]; has {
		if g.unknown || g.port == port {
			next = append(next, holding(m))
		}
		return next
	}
	taken := slices.Collect(maps.Values(m))
	for _, port := range ports {
		if !slices.Contains(taken, port) && (g.unknown || g.port == port) {
			with := maps.Clone(m)
			with[env] = port
			next = append(next, holding(with))
		}
	}
	return next
}

// flaky is a store whose answers get lost now and then: after the change was
// made, or before.
type flaky struct {
	envs.Store
	mu  sync.Mutex
	rng *rand.Rand
}

var errLost = errors.New("the connection broke")

func (f *flaky) Commit(ctx context.Context, edits []etcd.Edit, note string) (int64, error) {
	f.mu.Lock()
	n := f.rng.IntN(50)
	f.mu.Unlock()
	if n == 0 {
		return 0, errLost
	}
	rev, err := f.Store.Commit(ctx, edits, note)
	if n == 1 && err == nil {
		return 0, errLost
	}
	return rev, err
}

// TestLinearizable has clients on three nodes allocate and release the few ports
// of a pool, with answers that get lost and clients that go away, and looks for an
// order of all those calls by which each of their answers is right.
func TestLinearizable(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { checkLinear(t, seed) })
	}
}

func checkLinear(t *testing.T, seed uint64) {
	r := newRig(t)
	r.put("pools/ssh", `{"ports":"20000-20002","backend_port":22,"quarantine":"0s","pick":"random"}`)
	var nodes []*node
	for i := range uint64(3) {
		nodes = append(nodes, r.node(func(c *envs.Config) {
			c.Store = &flaky{Store: c.Store, rng: rand.New(rand.NewPCG(seed, i))}
		}))
		r.settle(nodes[i], "pools/ssh")
	}
	begin := time.Now()
	var mu sync.Mutex
	var calls []porcupine.Operation
	var clients sync.WaitGroup
	for c := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(100+c)))
		clients.Go(func() {
			for range 20 {
				w := wish{rng.IntN(2) == 0, string('a' + rune(rng.IntN(5)))}
				op := porcupine.Operation{ClientId: c, Input: w, Call: int64(time.Since(begin))}
				g, err := call(t.Context(), nodes[rng.IntN(3)], w, rng)
				if err != nil {
					t.Errorf("%+v: %v", w, err)
					return
				}
				op.Output, op.Return = g, int64(time.Since(begin))
				if g.unknown {
					op.Return = math.MaxInt64 // it may still be done
				}
				mu.Lock()
				calls = append(calls, op)
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	lost := 0
	for i := range calls {
		if calls[i].Output.(got).unknown {
			calls[i].ClientId = 1000 + i // a client makes one call at a time
			lost++
		}
	}
	t.Logf("%d calls, the outcome of %d of them not known", len(calls), lost)
	if res := porcupine.CheckOperationsTimeout(poolModel([]int{20000, 20001, 20002}), calls, time.Minute); res != porcupine.Ok {
		t.Errorf("no order of the calls makes their answers right: %s", res)
	}
}

// call makes a call; the error is of one that must not fail.
func call(ctx context.Context, n *node, w wish, rng *rand.Rand) (g got, err error) {
	if rng.IntN(40) == 0 { // the client goes away
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(4000))*time.Microsecond)
		defer cancel()
	}
	if w.release {
		_, err = n.Release(ctx, w.env, "ssh")
	} else {
		var s *envs.Service
		s, _, err = n.Alloc(ctx, portpool.Request{Env: w.env, Service: "ssh"})
		if err == nil {
			g.port = s.Port
		}
	}
	switch {
	case errors.As(err, new(*portpool.ExhaustedError)):
		g.full = true
	case errors.Is(err, errLost), err != nil && ctx.Err() != nil:
		g.unknown = true
	case err != nil:
		return g, err
	}
	return g, nil
}
