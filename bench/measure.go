package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// measure starts what is to be measured, measures it and stops it all. A row
// that fails is marked in the result; an error is what made going on senseless.
func measure(ctx context.Context, o *options, out io.Writer) (*result, error) {
	b, err := newBench(o, out)
	if err != nil {
		return nil, err
	}
	defer b.close()
	b.result = newResult(ctx, o)
	if err := b.rows(ctx); err != nil {
		return nil, err
	}
	for _, s := range o.studies {
		if err := b.study(ctx, s); err != nil {
			return nil, err
		}
	}
	return b.result, b.backend.alive()
}

// newBench starts the origin and makes what contenders share. The caller closes
// the bench.
func newBench(o *options, out io.Writer) (*bench, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, dir: dir, out: out, ports: newPortPicker()}
	if b.pair, err = newKeyPair(dir); err != nil {
		b.close()
		return nil, err
	}
	first := 0
	if o.isolated {
		first = isolatedOrigin
	}
	if b.backend, b.origin, err = startOrigin(dir, first); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// close ends the origin and removes all files of the run.
func (b *bench) close() {
	if b.backend != nil {
		b.backend.stop()
	}
	os.RemoveAll(b.dir) // temporary files: what is left harms nobody
}

func newResult(ctx context.Context, o *options) *result {
	res := &result{
		Time:     time.Now(),
		Machine:  describeMachine(ctx),
		Flags:    o.given,
		Versions: toolVersions(ctx, o),
		Warm:     o.phases.warm.Seconds(),
		Main:     o.phases.main.Seconds(),
	}
	for _, c := range o.contenders {
		res.Contenders = append(res.Contenders, c.name)
		res.Versions[c.name] = c.version(ctx, o)
	}
	return res
}

// bench is a run of the bench.
type bench struct {
	options *options
	dir     string
	out     io.Writer // what happens, as it happens
	ports   *portPicker
	backend *process    // the origin
	origin  addressBook // where it listens
	pair    keyPair
	result  *result
}

// usualRelays is more than any row but idle has at a time.
const usualRelays = 4096

// site makes a place for a contender to run in.
func (b *bench) site(name string) (*site, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return &site{options: b.options, dir: dir, relays: usualRelays, ports: b.ports, origin: b.origin, pair: b.pair, binary: b.options.sluice}, nil
}

// rows measures all rows with all contenders up.
func (b *bench) rows(ctx context.Context) error {
	if len(b.options.rows) == 0 {
		return nil
	}
	var edges []*edge
	defer func() {
		for _, e := range edges {
			e.proc.stop()
		}
	}()
	for _, c := range b.options.contenders {
		e, err := b.start(ctx, c)
		if err != nil {
			return err
		}
		edges = append(edges, e)
	}
	var err error
	if b.result.Rest, err = atRest(ctx, edges); err != nil {
		return err
	}
	for _, r := range b.options.rows {
		offered := 0.0
		if r.half != nil {
			if r, offered, err = b.halfLoad(ctx, r, edges); err != nil {
				return err
			}
		}
		res := rowResult{Offered: offered, Name: r.name, Title: r.title, Cost: r.cost, Rate: r.rate, Limits: r.limits, Reference: r.reference}
		for i := range b.options.rounds {
			round, err := b.round(ctx, r, edges, i+1)
			if err != nil {
				return err
			}
			res.Rounds = append(res.Rounds, round)
		}
		b.result.Rows = append(b.result.Rows, res)
	}
	return nil
}

// start starts a contender and makes sure that it works.
func (b *bench) start(ctx context.Context, c contender) (*edge, error) {
	s, err := b.site(c.name)
	if err != nil {
		return nil, err
	}
	e, err := c.start(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := verify(ctx, e); err != nil {
		e.proc.stop()
		return nil, err
	}
	return e, nil
}

// round gives each contender its turn at a row.
func (b *bench) round(ctx context.Context, r row, edges []*edge, n int) (map[string]sample, error) {
	round := make(map[string]sample)
	for _, e := range edges {
		if !r.takes(e) {
			continue
		}
		s, err := r.measure(ctx, e, b.options.phases)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if dead := e.proc.alive(); dead != nil {
			err = dead
		}
		if err != nil {
			s = sample{Error: err.Error()}
			fmt.Fprintf(b.out, "%-9s %d/%d  %-8s FAILED: %v\n", r.name, n, b.options.rounds, e.name, err)
		} else {
			fmt.Fprintf(b.out, "%-9s %d/%d  %-8s %8s %-8s %9s %s\n",
				r.name, n, b.options.rounds, e.name, figure(s.Cost), r.cost, figure(s.Rate), r.rate)
		}
		round[e.name] = s
	}
	return round, nil
}

// atRest measures what each contender spends on doing nothing, in milliseconds
// of CPU time per second. It is part of every row's figures.
func atRest(ctx context.Context, edges []*edge) (map[string]float64, error) {
	rest := make(map[string]float64)
	for _, e := range edges {
		w, err := observe(ctx, e.root, phases{main: time.Second}, func() {})
		if err != nil {
			return nil, fmt.Errorf("%s at rest: %w", e.name, err)
		}
		rest[e.name] = float64(w.cpu) / float64(time.Millisecond) / w.length().Seconds()
	}
	return rest, nil
}
