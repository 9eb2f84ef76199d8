package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// mostMappings is how many ports in a row can be mapped beside those that
// connections and the bench itself need.
const mostMappings = 50000

// spareMappings are the ports that edits add, change and delete, beyond those
// that are mapped throughout.
const spareMappings = 200

// sizedResult is what a node with many mappings takes to start and to edit.
type sizedResult struct {
	Size   int         `json:"mappings"`
	Mode   string      `json:"mode"` // how ports are listened on
	Empty  footprint   `json:"empty"`
	Starts []sizeStart `json:"starts"`
	// Returned and Sent are the times from a put's return, and from before it
	// was sent, to the first connection accepted, in milliseconds.
	Returned []float64 `json:"put_returned_ms"`
	Sent     []float64 `json:"put_sent_ms"`
	Edits    int       `json:"edits"`
	EditCPU  float64   `json:"edit_cpu_us"`
	EditRate float64   `json:"edits_per_second"`
	BulkCPU  float64   `json:"bulk_edit_cpu_us"` // of an edit among 100 in a transaction
	Rest     float64   `json:"rest_cpu_ms_per_second"`
}

// sizeStart is one start with all mappings in etcd.
type sizeStart struct {
	Cold   float64   `json:"cold_ms"` // from the start of the process to ready, with nothing on disk
	Warm   float64   `json:"warm_ms"` // the same with the last good state on disk
	CPU    float64   `json:"cold_cpu_ms"`
	Loaded footprint `json:"loaded"`
}

// The bars of a node with 40,000 mappings.
const (
	sizedReadyLimit = 2000 // ms
	sizedRSSLimit   = 60 << 20
	sizedPutLimit   = 5.0   // ms
	sizedEditLimit  = 100.0 // µs
	sizedStarts     = 3
)

// sizedNode is a node with many mappings and the etcd beside it.
type sizedNode struct {
	*sluiceNode
	bench *bench
	store *etcdServer
	size  int
	undo  func()
}

// newSizedNode starts an etcd and decides where the node will listen. The
// caller closes it.
func (b *bench) newSizedNode(ctx context.Context, name string) (*sizedNode, error) {
	size := b.options.size
	picker, undo, err := b.room(size + b.options.puts + spareMappings)
	if err != nil {
		return nil, err
	}
	s, err := b.site(name)
	if err != nil {
		undo()
		return nil, err
	}
	s.ports = picker
	// The range comes first: a port in its midst would leave no place for it.
	addrs, where, err := s.sluiceAddrs(size + b.options.puts + spareMappings)
	if err != nil {
		undo()
		return nil, err
	}
	where.External = true
	store, err := startEtcd(ctx, s, where.Etcd)
	if err != nil {
		undo()
		return nil, err
	}
	return &sizedNode{
		sluiceNode: &sluiceNode{edge: &edge{name: judged, addrs: addrs, admin: where.Admin}, ports: where},
		bench:      b, store: store, size: size, undo: undo,
	}, nil
}

func (n *sizedNode) close() {
	n.stop()
	n.store.close()
	n.undo()
}

// stop ends the node, if it runs; etcd goes on.
func (n *sizedNode) stop() {
	if n.edge.proc != nil {
		n.edge.proc.stop()
	}
}

// cpu is the CPU time that the node has spent so far.
func (n *sizedNode) cpu() (time.Duration, error) { return cpuTime([]int{n.edge.root}) }

// backend is what all mappings go to.
func (n *sizedNode) backend() netip.AddrPort { return n.bench.origin[serviceEcho] }

// mapping is the i-th mapping, in the form that a platform's database writes.
func (n *sizedNode) mapping(i int) keyValue {
	return keyValue{mappingKey(n.ports.Low + i), fmt.Sprintf(`{"backend":"%v","env":"env%06d","service":"ssh"}`, n.backend(), i)}
}

// load puts all mappings into etcd.
func (n *sizedNode) load(ctx context.Context) error {
	all := make([]keyValue, n.size)
	for i := range all {
		all[i] = n.mapping(i)
	}
	return n.store.putAll(ctx, all)
}

// serves makes sure that mapped ports work, all over the range.
func (n *sizedNode) serves(ctx context.Context) error {
	const ports = 200
	for i := range min(ports, n.size) {
		at := i * (n.size - 1) / max(min(ports, n.size)-1, 1)
		if err := echoOnce(ctx, loopback(n.ports.Low+at)); err != nil {
			return fmt.Errorf("mapped port %d does not work: %w", n.ports.Low+at, err)
		}
	}
	return nil
}

// caughtUp waits until the node has applied revision rev and has written all
// verdicts.
func (n *sizedNode) caughtUp(ctx context.Context, rev int64) error {
	return until(ctx, n.edge.proc, startLimit, func(ctx context.Context) error { return hasApplied(ctx, n.edge.admin, rev, true) })
}

// hasApplied returns nil if the node with an admin address has applied revision
// rev, and has written all verdicts where those matter.
func hasApplied(ctx context.Context, admin netip.AddrPort, rev int64, verdicts bool) error {
	text, err := getAdmin(ctx, admin, "/metrics")
	if err != nil {
		return err
	}
	applied, err := metric(text, "sluice_control_applied_revision")
	if err != nil {
		return err
	}
	pending, err := metric(text, "sluice_etcd_leased_writes_pending")
	if err != nil {
		return err
	}
	if int64(applied) < rev || verdicts && pending > 0 {
		return fmt.Errorf("revision %.0f of %d is applied, %.0f verdicts are to be written", applied, rev, pending)
	}
	return nil
}

// metric returns the value of a metric without labels.
func metric(text []byte, name string) (float64, error) {
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == name {
			return strconv.ParseFloat(string(f[1]), 64)
		}
	}
	return 0, fmt.Errorf("the node has no metric %s", name)
}

func runSized(ctx context.Context, b *bench) error {
	n, err := b.newSizedNode(ctx, "map40k")
	if err != nil {
		return err
	}
	defer n.close()
	res := &sizedResult{Size: n.size}
	for _, step := range []func(context.Context, *sizedResult) error{n.measureEmpty, n.measureStarts, n.measurePuts, n.measureEdits} {
		if err := step(ctx, res); err != nil {
			return err
		}
	}
	b.result.Sized = res
	return nil
}

// measureEmpty takes the node's memory without any mapping.
func (n *sizedNode) measureEmpty(ctx context.Context, res *sizedResult) error {
	s, err := n.bench.site("map40k-empty")
	if err != nil {
		return err
	}
	if err := n.start(ctx, s); err != nil {
		return err
	}
	defer n.stop()
	res.Empty, err = settled(ctx, n.edge)
	return err
}

// measureStarts leaves the node of the last start running.
func (n *sizedNode) measureStarts(ctx context.Context, res *sizedResult) error {
	if err := n.load(ctx); err != nil {
		return err
	}
	for i := range min(n.bench.options.rounds, sizedStarts) {
		n.stop()
		s, err := n.bench.site(fmt.Sprintf("map40k-%d", i))
		if err != nil {
			return err
		}
		if err := n.start(ctx, s); err != nil {
			return err
		}
		one := sizeStart{Cold: millis(n.started), CPU: millis(n.startCPU)}
		n.stop()
		if err := n.start(ctx, s); err != nil {
			return err
		}
		one.Warm = millis(n.started)
		if err := n.serves(ctx); err != nil {
			return err
		}
		if err := n.caughtUp(ctx, 0); err != nil {
			return err
		}
		if one.Loaded, err = settled(ctx, n.edge); err != nil {
			return err
		}
		res.Starts = append(res.Starts, one)
		fmt.Fprintf(n.bench.out, "map40k    %d  ready in %.0f ms (CPU time %.0f ms), again in %.0f ms; %s and %d files\n",
			i+1, one.Cold, one.CPU, one.Warm, byteSize(float64(one.Loaded.RSS)), one.Loaded.FDs)
	}
	var err error
	res.Mode, err = n.mode(ctx)
	return err
}

// mode is how the node says that it opens mapped ports: bind or steer.
func (n *sizedNode) mode(ctx context.Context) (string, error) {
	text, err := getAdmin(ctx, n.edge.admin, "/metrics")
	if err != nil {
		return "", err
	}
	for _, mode := range []string{"bind", "steer"} {
		if v, err := metric(text, `sluice_proxy_ports_mode{mode="`+mode+`"}`); err == nil && v == 1 {
			return mode, nil
		}
	}
	return "", errors.New("the node's metric sluice_proxy_ports_mode names neither bind nor steer")
}

// measurePuts takes the time that ports take to open.
func (n *sizedNode) measurePuts(ctx context.Context, res *sizedResult) error {
	for i := range n.bench.options.puts {
		at := n.size + i
		sent := time.Now()
		if _, err := n.store.edit(ctx, n.mapping(at)); err != nil {
			return err
		}
		returned := time.Now()
		c, _, err := dialUntilOpen(ctx, loopback(n.ports.Low+at))
		if err != nil {
			return errors.Join(err, n.edge.proc.alive())
		}
		open := time.Now()
		err = echoSoon(c)
		closeHard(c)
		if err != nil {
			return fmt.Errorf("a port is open but does not echo: %w", err)
		}
		res.Sent = append(res.Sent, millis(open.Sub(sent)))
		res.Returned = append(res.Returned, millis(open.Sub(returned)))
	}
	return nil
}

// measureEdits takes the CPU time of edits that come one after the other.
func (n *sizedNode) measureEdits(ctx context.Context, res *sizedResult) error {
	rest, err := observe(ctx, n.edge.root, n.bench.options.phases, func() {})
	if err != nil {
		return err
	}
	res.Rest = float64(rest.cpu) / float64(time.Millisecond) / rest.length().Seconds()
	res.Edits = n.bench.options.changes
	cpu, took, err := n.editing(ctx, func() (rev int64, err error) {
		for i := range res.Edits {
			if rev, err = n.store.edit(ctx, n.change(i)); err != nil {
				return 0, err
			}
		}
		return rev, nil
	})
	if err != nil {
		return err
	}
	res.EditCPU, res.EditRate = micros(cpu)/float64(res.Edits), float64(res.Edits)/took.Seconds()
	bulk := min(res.Edits, n.size)
	cpu, _, err = n.editing(ctx, func() (int64, error) {
		all := make([]keyValue, bulk)
		for i := range all {
			all[i] = n.relimit(i, i)
		}
		if err := n.store.putAll(ctx, all); err != nil {
			return 0, err
		}
		return n.store.edit(ctx, n.change(0))
	})
	res.BulkCPU = micros(cpu) / float64(bulk+1)
	return err
}

// editing returns the node's CPU time and the time from the start of edits, a
// function that makes some and returns the last revision, until the node has
// caught up with that.
func (n *sizedNode) editing(ctx context.Context, edits func() (rev int64, err error)) (cpu, took time.Duration, err error) {
	before, err := n.cpu()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	rev, err := edits()
	if err != nil {
		return 0, 0, err
	}
	if err := n.caughtUp(ctx, rev); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	after, err := n.cpu()
	return after - before, took, err
}

// change is the i-th of a row of edits, in threes that add a mapping, give it
// another backend and delete it.
func (n *sizedNode) change(i int) keyValue {
	kv := n.spare(i / 3 % spareMappings)
	switch i % 3 {
	case 1:
		kv.value = n.bench.origin[serviceBlast].String()
	case 2:
		kv.value = ""
	}
	return kv
}

// spare is a mapping that is there only between two edits.
func (n *sizedNode) spare(i int) keyValue { return n.mapping(n.size + n.bench.options.puts + i) }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
