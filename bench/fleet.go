package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// fleetResult is what edits take until all of three nodes have them.
type fleetResult struct {
	Few     int       `json:"few_keys"`
	Many    int       `json:"many_keys"`
	FewCPU  float64   `json:"few_edit_cpu_us"` // of one node
	ManyCPU float64   `json:"many_edit_cpu_us"`
	Applied []float64 `json:"put_sent_to_applied_ms"` // by the last node
	Taken   []float64 `json:"put_ms"`                 // by etcd, of the above
	// Edits were made in Seconds, and Apart later all nodes had the same.
	Edits   int     `json:"edits"`
	Seconds float64 `json:"seconds"`
	Apart   float64 `json:"converged_ms"`
	Same    bool    `json:"same"`
}

const (
	fleetNodes        = 3
	fleetFew          = 100
	fleetRate         = 1000 // edits a second
	fleetEditors      = 32   // that wait for etcd at the same time
	fleetAppliedLimit = 20.0 // ms
	fleetCPULimit     = 2.0
)

// fleet is three nodes on one etcd. Their keys are routes: of mappings, only one
// node of a machine could open the ports.
type fleet struct {
	store *etcdServer
	nodes []*sluiceNode
}

func (f *fleet) close() {
	for _, n := range f.nodes {
		n.edge.proc.stop()
	}
	f.store.close()
}

func (b *bench) newFleet(ctx context.Context) (*fleet, error) {
	store, err := b.startEtcd(ctx, "fleet-etcd", netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	f := &fleet{store: store}
	for i := range fleetNodes {
		name := fmt.Sprintf("fleet%d", i)
		var s *site
		if s, err = b.site(name); err != nil {
			break
		}
		var addrs addressBook
		var ports sluicePorts
		if addrs, ports, err = s.sluiceAddrs(len(services())); err != nil {
			break
		}
		ports.Etcd, ports.External, ports.Name = store.addr, true, name
		n := &sluiceNode{edge: &edge{name: judged, addrs: addrs, admin: ports.Admin}, ports: ports}
		if err = n.start(ctx, s); err != nil {
			break
		}
		f.nodes = append(f.nodes, n)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func runFleet(ctx context.Context, b *bench) error {
	f, err := b.newFleet(ctx)
	if err != nil {
		return err
	}
	defer f.close()
	res := &fleetResult{Few: fleetFew, Many: b.options.size}
	for _, step := range []func() error{
		func() (err error) { res.FewCPU, err = f.editCPU(ctx, res.Few, b.options.changes); return err },
		func() (err error) { res.ManyCPU, err = f.editCPU(ctx, res.Many, b.options.changes); return err },
		func() error { return f.followEdits(ctx, res, b.options.puts) },
		func() error { return f.rush(ctx, res, b.options.rush()) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	b.result.Fleet = res
	return nil
}

// rush is how long edits come at fleetRate: a minute, and less in a quick run,
// which makes fewer of all edits.
func (o *options) rush() time.Duration {
	const usual = 10_000 // edits
	return min(time.Minute, time.Minute*time.Duration(o.edits)/usual)
}

// route is a route and an edit of it.
func (f *fleet) route(i, edit int) keyValue {
	return keyValue{fmt.Sprintf("/sluice/routes/fleet%d", i), fmt.Sprintf(`{"host":"fleet%d.test","respond":{"body":"%d"}}`, i, edit)}
}

// editCPU loads so many keys and returns the CPU time that an edit of one costs
// a node, in microseconds.
func (f *fleet) editCPU(ctx context.Context, keys, edits int) (float64, error) {
	all := make([]keyValue, keys)
	for i := range all {
		all[i] = f.route(i, 0)
	}
	if err := f.store.putAll(ctx, all); err != nil {
		return 0, err
	}
	if _, err := f.same(ctx, true); err != nil {
		return 0, err
	}
	before, err := f.cpu()
	if err != nil {
		return 0, err
	}
	for i := range edits {
		if _, err := f.store.edit(ctx, f.route(i*7919%keys, 1+i)); err != nil {
			return 0, err
		}
	}
	if _, err := f.same(ctx, true); err != nil {
		return 0, err
	}
	after, err := f.cpu()
	return micros(after-before) / float64(edits*len(f.nodes)), err
}

func (f *fleet) cpu() (time.Duration, error) {
	var roots []int
	for _, n := range f.nodes {
		roots = append(roots, n.edge.root)
	}
	return cpuTime(roots)
}

// fingerprint is that of what a node has in force, as it says.
func (f *fleet) fingerprint(ctx context.Context, n *sluiceNode) (string, error) {
	text, err := getAdmin(ctx, n.ports.Admin, "/readyz")
	if err != nil {
		return "", err
	}
	var ready struct {
		Fingerprint string `json:"fingerprint"`
	}
	if err := json.Unmarshal(text, &ready); err != nil || ready.Fingerprint == "" {
		return "", fmt.Errorf("the node's /readyz has no fingerprint: %s, %w", text, err)
	}
	return ready.Fingerprint, nil
}

// same puts a key and waits until every node has it, and with it all that was
// put before, and returns whether all then have the same in force; the error says
// why not. verdicts says that those are to be written as well.
func (f *fleet) same(ctx context.Context, verdicts bool) (bool, error) {
	rev, err := f.store.edit(ctx, keyValue{"/sluice/routes/fleet-last", fmt.Sprintf(`{"host":"last.test","respond":{"body":"%d"}}`, time.Now().UnixNano())})
	if err != nil {
		return false, err
	}
	for _, n := range f.nodes {
		if err := until(ctx, n.edge.proc, 2*startLimit, func(ctx context.Context) error { return hasApplied(ctx, n.ports.Admin, rev, verdicts) }); err != nil {
			return false, err
		}
	}
	// Debian's etcd may name a revision a moment before its changes have come.
	alike := false
	err = until(ctx, f.nodes[0].edge.proc, startLimit, func(ctx context.Context) (err error) {
		if alike, err = f.alike(ctx); err == nil && !alike {
			err = errors.New("the nodes differ in what they have in force")
		}
		return err
	})
	if !alike {
		return false, err
	}
	return true, nil
}

// alike reports whether all nodes have the same in force.
func (f *fleet) alike(ctx context.Context) (bool, error) {
	first := ""
	for i, n := range f.nodes {
		print, err := f.fingerprint(ctx, n)
		if err != nil {
			return false, err
		}
		if i == 0 {
			first = print
		}
		if print != first {
			return false, nil
		}
	}
	return true, nil
}

// followEdits takes the time from a put until the last node has it in force.
func (f *fleet) followEdits(ctx context.Context, res *fleetResult, edits int) error {
	for i := range edits {
		was, err := f.fingerprint(ctx, f.nodes[0])
		if err != nil {
			return err
		}
		sent := time.Now()
		if _, err := f.store.edit(ctx, f.route(i*7919%res.Many, -1-i)); err != nil {
			return err
		}
		res.Taken = append(res.Taken, millis(time.Since(sent)))
		for _, n := range f.nodes {
			for now := was; now == was; {
				if now, err = f.fingerprint(ctx, n); err != nil {
					return errors.Join(err, n.edge.proc.alive())
				}
			}
		}
		res.Applied = append(res.Applied, millis(time.Since(sent)))
	}
	return nil
}

// rush edits at fleetRate for so long, and then sees whether the nodes agree.
func (f *fleet) rush(ctx context.Context, res *fleetResult, length time.Duration) error {
	began := time.Now()
	total := int64(length.Seconds() * fleetRate)
	var next atomic.Int64
	var editors sync.WaitGroup
	errs := make([]error, fleetEditors)
	for i := range errs {
		editors.Go(func() {
			for errs[i] == nil {
				n := next.Add(1) - 1
				if n >= total {
					return
				}
				// Each has its time, so that etcd's pauses are made up for.
				time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / fleetRate)))
				_, errs[i] = f.store.edit(ctx, f.route(int(n)*7919%res.Many, int(n)))
			}
		})
	}
	editors.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	res.Edits, res.Seconds = int(total), time.Since(began).Seconds()
	var err error
	ended := time.Now()
	if res.Same, err = f.same(ctx, false); err != nil {
		return err
	}
	res.Apart = millis(time.Since(ended))
	return nil
}

func (r *fleetResult) section() string {
	applied, taken := percentiles(slices.Clone(r.Applied), 50, 99, 100), percentiles(slices.Clone(r.Taken), 50, 99, 100)
	return align([][]string{
		{fmt.Sprintf("three nodes with %d routes on one machine", r.Many), ""},
		{fmt.Sprintf("put sent to applied by all, %d puts: p50, p99, longest", len(r.Applied)), figure(applied[0]) + " ms, " + figure(applied[1]) + " ms, " + figure(applied[2]) + " ms"},
		{"of which until etcd had taken it", figure(taken[0]) + " ms, " + figure(taken[1]) + " ms, " + figure(taken[2]) + " ms"},
		{"CPU time of an edit for each node, verdicts written", fmt.Sprintf("%s µs with %d keys, %s µs with %d", figure(r.FewCPU), r.Few, figure(r.ManyCPU), r.Many)},
		{fmt.Sprintf("%d edits in %.1f s", r.Edits, r.Seconds), fmt.Sprintf("%.0f a second; all nodes had the last %s ms later, the same in force: %v", r.rate(), figure(r.Apart), r.Same)},
	})
}

func (r *fleetResult) rate() float64 { return float64(r.Edits) / r.Seconds }

func (r *fleetResult) bars() []bar {
	p99 := percentiles(slices.Clone(r.Applied), 99)[0]
	return []bar{
		{"three nodes: p99 from put to applied by all", "≤ " + figure(fleetAppliedLimit) + " ms", figure(p99) + " ms", p99 <= fleetAppliedLimit},
		{fmt.Sprintf("three nodes: CPU of an edit with %d keys to %d", r.Many, r.Few), "≤ " + times(fleetCPULimit), times(r.ManyCPU / r.FewCPU), r.ManyCPU <= fleetCPULimit*r.FewCPU},
		{"three nodes: edits a second", fmt.Sprintf("≥ %d", fleetRate*98/100), figure(r.rate()), r.rate() >= fleetRate*98/100},
		{"three nodes: the same in force afterwards", "yes", map[bool]string{true: "yes", false: "no"}[r.Same], r.Same},
	}
}

func (r *fleetResult) failures() []string { return nil }
