package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// dnsResult is what becomes of a name in DNS, and of clients that go by it, while
// nodes fail in turn: beside a name of the same nodes that nobody keeps.
type dnsResult struct {
	Nodes   int        `json:"nodes"`
	TTL     int        `json:"ttl_seconds"`
	Faults  []dnsFault `json:"faults"`
	Seconds float64    `json:"seconds"`
	// Views are how often the server was asked for the name's addresses, and of
	// these Empty without an answer and Wrong with what no node has or had.
	Views int      `json:"views"`
	Empty int      `json:"empty"`
	Wrong []string `json:"wrong"`
	// Touched are records of the zone that are not the name's and were changed.
	Touched []string `json:"touched"`
	// Kept and Plain are the connections of clients of either name.
	Kept  connections `json:"kept"`
	Plain connections `json:"plain"`
}

// dnsFault is one of a node's, and how long DNS took to follow.
type dnsFault struct {
	Kind string  `json:"kind"`
	Node int     `json:"node"`
	From float64 `json:"from_seconds"` // of the run
	To   float64 `json:"to_seconds"`
	Out  float64 `json:"out_seconds"`  // until the record was gone
	Back float64 `json:"back_seconds"` // from the node's taking connections until there was one again
}

// connections are those of one population of clients.
type connections struct {
	Made   int       `json:"made"`
	Failed int       `json:"failed"`
	Share  []float64 `json:"failed_share"` // of those of each second of the run
}

func (c connections) share() float64 { return float64(c.Failed) / float64(max(c.Made, 1)) }

const (
	dnsNodes = 3
	dnsTTL   = 5 // seconds
	// dnsLimit is within how many seconds a record follows its node.
	dnsLimit = 10.0
	// dnsPatience is how long is waited for that: what takes longer fails the row.
	dnsPatience = time.Minute
	// dnsOutage is for how long a node fails at least: as with real ones, for longer
	// than DNS takes to follow.
	dnsOutage = 15 * time.Second
	dnsZone   = "bench.test"
	dnsKept   = "edge." + dnsZone
	dnsPlain  = "plain." + dnsZone
)

// dnsFaults are the ways in which a node fails, in turn.
func dnsFaults() []string { return []string{"kill", "freeze", "partition", "address"} }

func runDNS(ctx context.Context, b *bench) error {
	r, err := b.newDNSRig(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	res := &dnsResult{Nodes: dnsNodes, TTL: dnsTTL}
	before, err := r.foreign(ctx)
	if err != nil {
		return err
	}
	watch, load := r.startWatch(ctx), r.startLoad(ctx)
	err = r.faults(ctx, res, watch)
	res.Seconds = time.Since(watch.began).Seconds()
	load.stop()
	watch.stop()
	if err != nil {
		return err
	}
	res.Kept, res.Plain = load.kept.result(res.Seconds), load.plain.result(res.Seconds)
	res.Views, res.Empty, res.Wrong = watch.views, watch.empty, watch.wrong
	after, err := r.foreign(ctx)
	if err != nil {
		return err
	}
	res.Touched = differences(before, after)
	b.result.DNS = res
	return nil
}

// faults has nodes fail in turn and waits for DNS to follow.
func (r *dnsRig) faults(ctx context.Context, res *dnsResult, watch *dnsWatch) error {
	for i := range r.bench.options.faults {
		kind, node := dnsFaults()[i/dnsNodes%len(dnsFaults())], i%dnsNodes
		f := dnsFault{Kind: kind, Node: node, From: time.Since(watch.began).Seconds()}
		fault := r.kill
		switch kind {
		case "freeze":
			fault = r.freeze
		case "partition":
			fault = r.partition
		case "address":
			fault = r.move
		}
		if err := fault(ctx, watch, &f); err != nil {
			return fmt.Errorf("%s node %d: %w; %s", kind, node, err, r.said(ctx))
		}
		f.To = time.Since(watch.began).Seconds()
		res.Faults = append(res.Faults, f)
		fmt.Fprintf(r.bench.out, "dns       %-9s node %d: out %.1f s, back %.1f s\n", kind, node, f.Out, f.Back)
		if err := wait(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// wait waits.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// fails has a node fail, waits until its record is gone, has it be well again, and
// waits until the record is back.
func (r *dnsRig) fails(ctx context.Context, watch *dnsWatch, f *dnsFault, fail, mend func() error) error {
	addr := r.net.hosts[f.Node].addr
	began := time.Now()
	if err := fail(); err != nil {
		return err
	}
	gone, err := watch.until(ctx, func(is []netip.Addr) bool { return !slices.Contains(is, addr) })
	if err != nil {
		return fmt.Errorf("the record of %v stays: %w", addr, err)
	}
	f.Out = gone.Sub(began).Seconds()
	if err := wait(ctx, time.Until(began.Add(dnsOutage))); err != nil {
		return err
	}
	if err := mend(); err != nil {
		return err
	}
	if err := r.takesConnections(ctx, addr); err != nil {
		return err
	}
	well := time.Now()
	back, err := watch.until(ctx, func(is []netip.Addr) bool { return slices.Contains(is, addr) })
	if err != nil {
		return fmt.Errorf("the record of %v does not come back: %w", addr, err)
	}
	f.Back = max(back.Sub(well).Seconds(), 0)
	return nil
}

func (r *dnsResult) section() string {
	rows := [][]string{
		{fmt.Sprintf("%d faults of %d nodes in %.0f s, TTL %d s", len(r.Faults), r.Nodes, r.Seconds, r.TTL), "record out: p50, longest", "record back: p50, longest"},
	}
	for _, kind := range dnsFaults() {
		var out, back []float64
		for _, f := range r.Faults {
			if f.Kind == kind {
				out, back = append(out, f.Out), append(back, f.Back)
			}
		}
		if len(out) > 0 {
			rows = append(rows, []string{kind, seconds(out), seconds(back)})
		}
	}
	return align(append(rows,
		[]string{"views of the name; empty; wrong", fmt.Sprintf("%d; %d; %s", r.Views, r.Empty, orNone(r.Wrong)), ""},
		[]string{"records changed that are not its own", orNone(r.Touched), ""},
		[]string{"connections of clients that failed", fmt.Sprintf("%d of %d, %.2f %%", r.Kept.Failed, r.Kept.Made, 100*r.Kept.share()), ""},
		[]string{"and by plain round robin, in the same run", fmt.Sprintf("%d of %d, %.2f %%", r.Plain.Failed, r.Plain.Made, 100*r.Plain.share()), ""},
	))
}

func seconds(values []float64) string {
	p := percentiles(slices.Clone(values), 50, 100)
	return fmt.Sprintf("%.1f s, %.1f s", p[0], p[1])
}

func (r *dnsResult) bars() []bar {
	var out, back []float64
	for _, f := range r.Faults {
		out, back = append(out, f.Out), append(back, f.Back)
	}
	within := func(what string, values []float64) bar {
		p99 := percentiles(values, 99)[0]
		return bar{"names in DNS: " + what + ", p99", fmt.Sprintf("≤ %g s", dnsLimit), fmt.Sprintf("%.1f s", p99), p99 <= dnsLimit}
	}
	none := func(what string, n int) bar { return bar{"names in DNS: " + what, "0", fmt.Sprint(n), n == 0} }
	return []bar{
		within("record out after its node failed", out),
		within("record back after its node was well", back),
		none("empty sets of records", r.Empty),
		none("wrong sets of records", len(r.Wrong)),
		none("records changed that are not its own", len(r.Touched)),
		{"names in DNS: failed connections, to those of plain round robin", "< 1", fmt.Sprintf("%.2f", r.Kept.share()/r.Plain.share()), r.Kept.share() < r.Plain.share()},
	}
}

func (r *dnsResult) failures() []string {
	if r.Plain.Failed == 0 {
		return []string{"dns: no connection by plain round robin failed, so the faults were none"}
	}
	return nil
}

// differences returns the lines that only one of two lists has.
func differences(a, b []string) []string {
	var all []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			all = append(all, "- "+strings.Join(strings.Fields(line), " "))
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			all = append(all, "+ "+strings.Join(strings.Fields(line), " "))
		}
	}
	return all
}
