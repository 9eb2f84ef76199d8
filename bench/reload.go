package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// reloadResult is what it costs nginx to get one more port when it has many:
// its way of doing what an edit is to sluice.
type reloadResult struct {
	Ports   int          `json:"ports"`
	Started float64      `json:"started_ms"` // from the start of the process until the last port accepts
	Before  footprint    `json:"before"`
	Reloads []reloadTurn `json:"reloads"`
	After   footprint    `json:"after"`
	Left    int          `json:"processes_left"` // with one session that lives since before each reload
}

// reloadTurn is one port more.
type reloadTurn struct {
	Open float64 `json:"open_ms"` // from the call of nginx -s reload until the new port accepts
	CPU  float64 `json:"cpu_ms"`  // of all processes, those that came and went included
}

// reloadTurns is how many ports are added, one by one.
const reloadTurns = 5

// runReload measures nginx alone, with a session that lives through it all.
func runReload(ctx context.Context, b *bench) error {
	ports := b.options.reload
	limit, err := fileLimit(uint64(2*ports + idleSpareFiles))
	if err != nil {
		return err
	}
	ports = min(ports, int(limit)-usualRelays/2)
	picker, undo, err := b.room(ports + reloadTurns)
	if err != nil {
		return err
	}
	defer undo()
	s, err := b.site("reload")
	if err != nil {
		return err
	}
	s.files, s.ports = int(limit), picker
	s.relays = ports // a worker's listeners are among its connections
	low, err := picker.pickRange(ports + reloadTurns)
	if err != nil {
		return err
	}
	n := &manyPorts{site: s, low: low, ports: ports}
	res := &reloadResult{Ports: ports}
	defer n.close()
	if res.Started, err = n.start(ctx); err != nil {
		return err
	}
	if res.Before, err = settled(ctx, n.edge); err != nil {
		return err
	}
	for range reloadTurns {
		turn, err := n.addPort(ctx)
		if err != nil {
			return errors.Join(err, n.edge.proc.alive())
		}
		res.Reloads = append(res.Reloads, turn)
	}
	if res.After, err = settled(ctx, n.edge); err != nil {
		return err
	}
	tree, err := processTree("/proc", n.edge.root)
	if err != nil {
		return err
	}
	res.Left = len(tree)
	b.result.Reload = res
	return stillEcho(n.held)
}

// manyPorts is an nginx with many ports.
type manyPorts struct {
	site   *site
	edge   *edge
	low    int
	ports  int
	config string
	held   []net.Conn // sessions
}

func (n *manyPorts) close() {
	for _, c := range n.held {
		closeHard(c)
	}
	if n.edge != nil {
		n.edge.proc.stop()
	}
}

func (n *manyPorts) write() (err error) {
	v := configValues{StreamModule: nginxStreamModule}
	for i := range n.ports {
		v.Ports = append(v.Ports, loopback(n.low+i))
	}
	n.config, err = n.site.writeConfig("nginx-ports.conf", v)
	return err
}

func (n *manyPorts) start(ctx context.Context) (ms float64, err error) {
	if err := n.write(); err != nil {
		return 0, err
	}
	program, err := nginxTool.path()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	p, err := startProcess("nginx-ports", n.site.dir, nil, nil, program, "-p", n.site.dir, "-c", n.config, "-e", "stderr")
	if err != nil {
		return 0, err
	}
	n.edge = &edge{name: reference, root: p.pid(), proc: p}
	last := loopback(n.low + n.ports - 1)
	if err := until(ctx, p, startLimit, func(ctx context.Context) error { return echoOnce(ctx, last) }); err != nil {
		return 0, err
	}
	return millis(time.Since(began)), nil
}

// addPort opens a session, which keeps the worker that has it from ending, and
// then has nginx listen on one port more.
func (n *manyPorts) addPort(ctx context.Context) (reloadTurn, error) {
	held, err := openRelays(ctx, loopback(n.low), 1)
	n.held = append(n.held, held...)
	if err != nil {
		return reloadTurn{}, err
	}
	n.ports++
	if err := n.write(); err != nil {
		return reloadTurn{}, err
	}
	before, err := familyCPU(n.edge.root)
	if err != nil {
		return reloadTurn{}, err
	}
	program, err := nginxTool.path()
	if err != nil {
		return reloadTurn{}, err
	}
	began := time.Now()
	cmd := command(ctx, program, "-p", n.site.dir, "-c", n.config, "-e", "stderr", "-s", "reload")
	if out, err := cmd.CombinedOutput(); err != nil {
		return reloadTurn{}, fmt.Errorf("nginx -s reload: %w: %s", err, tail(out))
	}
	c, _, err := dialUntilOpen(ctx, loopback(n.low+n.ports-1))
	if err != nil {
		return reloadTurn{}, err
	}
	open := time.Since(began)
	closeHard(c)
	after, err := n.rested(ctx)
	if err != nil {
		return reloadTurn{}, err
	}
	signaller := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return reloadTurn{Open: millis(open), CPU: millis(after - before + signaller)}, nil
}

// rested returns the family's CPU time once it no longer grows: workers that
// ended have been waited for.
func (n *manyPorts) rested(ctx context.Context) (time.Duration, error) {
	var last time.Duration
	err := until(ctx, n.edge.proc, startLimit, func(ctx context.Context) error {
		if err := pause(ctx, settleEvery); err != nil {
			return err
		}
		now, err := familyCPU(n.edge.root)
		if err != nil {
			return err
		}
		if grew := now - last; grew > time.Millisecond {
			last = now
			return fmt.Errorf("%v more of CPU time than before", grew)
		}
		last = now
		return nil
	})
	return last, err
}

// familyCPU is the CPU time of the process root, of all below it, and of
// root's children that have ended.
func familyCPU(root int) (time.Duration, error) {
	tree, err := processTree("/proc", root)
	if err != nil {
		return 0, err
	}
	living, err := cpuTime(tree)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(root), "stat"))
	if err != nil {
		return 0, err
	}
	ended, ok := parseChildrenTime(b)
	if !ok {
		return 0, fmt.Errorf("read CPU time of process %d's children: not a stat line: %q", root, b)
	}
	return living + ended, nil
}

// parseChildrenTime takes cutime and cstime from /proc/PID/stat: what children
// that were waited for have spent, in ticks of 10 ms.
func parseChildrenTime(b []byte) (time.Duration, bool) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs on Linux
	rest := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(rest) < 15 {
		return 0, false
	}
	user, err1 := strconv.ParseInt(string(rest[13]), 10, 64)
	system, err2 := strconv.ParseInt(string(rest[14]), 10, 64)
	return time.Duration(user+system) * tick, err1 == nil && err2 == nil
}

func (r *reloadResult) section() string {
	var open, cpu []float64
	for _, t := range r.Reloads {
		open, cpu = append(open, t.Open), append(cpu, t.CPU)
	}
	o, c := spreadOf(open), spreadOf(cpu)
	return fmt.Sprintf("nginx with %d ports: %.0f ms from its start to the last port; one port more by `nginx -s reload`: open after %.0f ms (%.0f–%.0f), "+
		"%.0f ms of CPU time (%.0f–%.0f). %d reloads, with one session living since before each, leave %d processes and take its memory from %s to %s.\n",
		r.Ports, r.Started, o.median, o.min, o.max, c.median, c.min, c.max, len(r.Reloads), r.Left, byteSize(float64(r.Before.RSS)), byteSize(float64(r.After.RSS)))
}

// bars are none: this is nginx.
func (r *reloadResult) bars() []bar { return nil }

func (r *reloadResult) failures() []string { return nil }
