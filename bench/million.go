package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/remotegpu/sluice/router"
)

// millionResult is what the table alone takes at a size that no node has: ports
// are 65,535 for each protocol, so it is so many tables, in one process, as
// nodes or addresses of their own would have.
type millionResult struct {
	Mappings int     `json:"mappings"`
	Tables   int     `json:"tables"`
	Bytes    float64 `json:"bytes_per_mapping"`  // of live heap: parsed values and index
	Build    float64 `json:"build_us"`           // per mapping: parse and set, all in one table
	Edits    int     `json:"edits"`              // parse, set or delete, table, difference to the one before
	P50      float64 `json:"edit_p50_us"`        // wall clock
	P99      float64 `json:"edit_p99_us"`        // wall clock
	Garbage  float64 `json:"edit_garbage_bytes"` // allocated by an edit
	Lookup   float64 `json:"lookup_nanoseconds"` // of a random port of a random table
}

const (
	// tablePorts is how many ports of each protocol a table has mapped.
	tablePorts = 31250
	// tableLow is the least of them.
	tableLow = 10000
)

// tables are as many as the mappings need.
type tables struct {
	builders []router.Builder
	current  []*router.Table
	rev      int64
}

// place is where the i-th mapping is.
func place(i int) (table int, proto router.Proto, port int) {
	proto = router.Proto(i / tablePorts % 2)
	return i / (2 * tablePorts), proto, tableLow + i%tablePorts
}

// millionValue is the value of the i-th mapping, as a platform writes it.
func millionValue(i, version int) []byte {
	return fmt.Appendf(nil, `{"backend":"10.%d.%d.%d:22","env":"env%013x","service":"ssh"}`, version%256, i>>8&255, i&255, i)
}

func (t *tables) set(i, version int) error {
	table, proto, port := place(i)
	m, err := router.ParseMapping(proto, port, millionValue(i, version))
	if err != nil {
		return fmt.Errorf("mapping %d: %w", i, err)
	}
	t.rev++
	m.Rev = t.rev
	t.builders[table].SetMapping(m)
	return nil
}

// apply makes the edited table the current one and returns how many mappings
// differ, which is what the data plane would go through.
func (t *tables) apply(table int) (differ int) {
	next := t.builders[table].Table(t.rev)
	next.DiffMappings(t.current[table], func(_, _ *router.Mapping) { differ++ })
	t.current[table] = next
	return differ
}

// runMillion measures within this process, whose other work is done.
func runMillion(ctx context.Context, b *bench) error {
	n := b.options.million
	res := &millionResult{Mappings: n, Tables: (n + 2*tablePorts - 1) / (2 * tablePorts), Edits: (n + 9) / 10}
	before := liveHeap()
	began := time.Now()
	t := &tables{builders: make([]router.Builder, res.Tables), current: make([]*router.Table, res.Tables)}
	for i := range n {
		if err := t.set(i, 0); err != nil {
			return err
		}
	}
	for i := range t.current {
		t.current[i] = &router.Table{}
		t.apply(i)
	}
	res.Build = micros(time.Since(began)) / float64(n)
	res.Bytes = float64(liveHeap()-before) / float64(n)
	if err := t.measureEdits(ctx, res); err != nil {
		return err
	}
	res.Lookup = t.lookup(n)
	b.result.Million = res
	return nil
}

// measureEdits changes, deletes and adds again random mappings.
func (t *tables) measureEdits(ctx context.Context, res *millionResult) error {
	random := rand.New(rand.NewPCG(1, 2))
	took := make([]time.Duration, 0, 3*res.Edits)
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	allocated := memory.TotalAlloc
	for k := 0; len(took) < res.Edits; k++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		i := random.IntN(res.Mappings)
		table, proto, port := place(i)
		for _, edit := range []func() error{
			func() error { return t.set(i, k+1) },
			func() error { t.builders[table].DeleteMapping(proto, port); return nil },
			func() error { return t.set(i, k+2) },
		} {
			start := time.Now()
			if err := edit(); err != nil {
				return err
			}
			if differ := t.apply(table); differ != 1 {
				return fmt.Errorf("one edit made a difference of %d mappings", differ)
			}
			took = append(took, time.Since(start))
		}
	}
	runtime.ReadMemStats(&memory)
	res.Edits = len(took)
	res.Garbage = float64(memory.TotalAlloc-allocated) / float64(res.Edits)
	p := percentiles(took, 50, 99)
	res.P50, res.P99 = micros(p[0]), micros(p[1])
	return nil
}

// lookup returns the nanoseconds that it takes to find a mapping.
func (t *tables) lookup(n int) float64 {
	const lookups = 1 << 20
	random := rand.New(rand.NewPCG(3, 4))
	at := make([]int, lookups)
	for k := range at {
		at[k] = random.IntN(n)
	}
	began := time.Now()
	found := 0
	for _, i := range at {
		table, proto, port := place(i)
		if t.current[table].Mapping(proto, port) != nil {
			found++
		}
	}
	if found != lookups {
		return 0 // cannot be: all are there
	}
	return float64(time.Since(began)) / lookups
}

// liveHeap returns the bytes that are in use once garbage is collected.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (r *millionResult) section() string {
	return fmt.Sprintf("%d mappings as a simulation of the table alone: %d tables of the router, in one process, each with %d TCP and %d UDP ports, "+
		"as nodes with all their ports mapped would have them; no sockets, no etcd. %.0f bytes of live heap for each mapping, parsed value included; "+
		"%.2f µs to parse and set each. An edit (parse, set or delete, the new table, its difference to the old one; %d of them): p50 %.1f µs, p99 %.1f µs, "+
		"%.0f bytes of garbage. Finding a random mapping: %.0f ns.\n",
		r.Mappings, r.Tables, tablePorts, tablePorts, r.Bytes, r.Build, r.Edits, r.P50, r.P99, r.Garbage, r.Lookup)
}

// bars are none: the figures are asked for, no limit is.
func (r *millionResult) bars() []bar { return nil }

func (r *millionResult) failures() []string { return nil }
