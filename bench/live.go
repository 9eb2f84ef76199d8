package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// liveResult is how long sluice takes from a put to the open port: the time
// from the return of `etcdctl put` until a connection to the new port is
// accepted.
type liveResult struct {
	Mappings int       `json:"mappings"` // that were there before the first put
	Waited   []float64 `json:"waited_ms"`
	// AtOnce counts the ports that the very first attempt found open: they may
	// have been so before etcdctl returned.
	AtOnce int `json:"open_at_once"`
	// Etcdctl is how long the command itself took.
	Etcdctl []float64 `json:"etcdctl_ms"`
}

const (
	// liveGoal is what the 99th percentile is to stay under.
	liveGoal = 20 * time.Millisecond
	// livePoll is how long the poll rests between attempts, so that it does not
	// take from the node a core that it needs.
	livePoll = 100 * time.Microsecond
	// liveLimit is when a port that has not opened is given up.
	liveLimit = 5 * time.Second
)

// runLive measures a fresh node, so that nothing but the mappings is in it.
func runLive(ctx context.Context, b *bench) error {
	o := b.options
	s, err := b.site("live")
	if err != nil {
		return err
	}
	n, err := startSluice(ctx, s, o.mappings+o.puts)
	if err != nil {
		return err
	}
	defer n.edge.proc.stop()
	backend := b.origin[serviceEcho].String()
	if err := n.loadMappings(ctx, o.mappings, backend); err != nil {
		return err
	}
	res := &liveResult{Mappings: o.mappings}
	for i := range o.puts {
		if err := res.put(ctx, n, n.ports.Low+o.mappings+i, backend); err != nil {
			return errors.Join(err, n.edge.proc.alive())
		}
	}
	b.result.Live = res
	return nil
}

// loadMappings puts mappings and waits until all their ports are open.
func (n *sluiceNode) loadMappings(ctx context.Context, mappings int, backend string) error {
	var all []keyValue
	for i := range mappings {
		all = append(all, keyValue{mappingKey(n.ports.Low + i), backend})
	}
	if err := n.etcd.putAll(ctx, all); err != nil {
		return err
	}
	for i := range mappings {
		addr := loopback(n.ports.Low + i)
		if err := until(ctx, n.edge.proc, startLimit, func(ctx context.Context) error { return connects(ctx, addr) }); err != nil {
			return err
		}
	}
	return nil
}

// put makes one put and notes how long its port then takes to open. The port
// has to echo, too.
func (r *liveResult) put(ctx context.Context, n *sluiceNode, port int, backend string) error {
	addr := loopback(port)
	start := time.Now()
	if err := n.etcd.put(ctx, mappingKey(port), backend); err != nil {
		return err
	}
	returned := time.Now()
	c, attempts, err := dialUntilOpen(ctx, addr)
	if err != nil {
		return err
	}
	waited := time.Since(returned)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(liveLimit)); err != nil {
		return err
	}
	if err := echo(c, []byte("live"), make([]byte, 4)); err != nil {
		return fmt.Errorf("port %d is open but does not echo: %w", port, err)
	}
	r.Waited = append(r.Waited, float64(waited)/float64(time.Millisecond))
	r.Etcdctl = append(r.Etcdctl, float64(returned.Sub(start))/float64(time.Millisecond))
	if attempts == 1 {
		r.AtOnce++
	}
	return nil
}

// dialUntilOpen connects as soon as that can be done.
func dialUntilOpen(ctx context.Context, addr netip.AddrPort) (c net.Conn, attempts int, err error) {
	ctx, cancel := context.WithTimeout(ctx, liveLimit)
	defer cancel()
	for attempts = 1; ; attempts++ {
		if c, err = dialTCP(ctx, addr); err == nil {
			return c, attempts, nil
		}
		if ctx.Err() != nil {
			return nil, attempts, fmt.Errorf("%v is not open %v after the put: %w", addr, liveLimit, err)
		}
		// Not time.Sleep: a Go program with nothing else to do sleeps in epoll,
		// whose unit is a millisecond. An early end does no harm.
		rest := unix.NsecToTimespec(int64(livePoll))
		_ = unix.Nanosleep(&rest, nil)
	}
}

// section is the result as a sentence.
func (r *liveResult) section() string {
	w := percentiles(slices.Clone(r.Waited), 50, 99, 100)
	e := percentiles(slices.Clone(r.Etcdctl), 50)
	return fmt.Sprintf("From `etcdctl put` returning to the first connection accepted on the new port, %d puts with %d mappings present: "+
		"p50 %.2f ms, p99 %.2f ms, longest %.2f ms; %d ports were open at the first attempt; etcdctl itself took %.0f ms.\n",
		len(r.Waited), r.Mappings, w[0], w[1], w[2], r.AtOnce, e[0])
}

func (r *liveResult) bars() []bar {
	p99 := percentiles(slices.Clone(r.Waited), 99)[0]
	return []bar{{"live: p99 from etcdctl put to an open port", fmt.Sprintf("< %d ms", liveGoal.Milliseconds()),
		fmt.Sprintf("%.2f ms", p99), p99 < float64(liveGoal.Milliseconds())}}
}

func (r *liveResult) failures() []string { return nil }
