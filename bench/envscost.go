package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// envsCost is what a load of environments has cost, for each of them.
type envsCost struct {
	NodeCPU   float64 `json:"nodes_cpu_ms"` // of all nodes together, each of which opens its ports
	EtcdCPU   float64 `json:"etcd_cpu_ms"`
	Txns      float64 `json:"etcd_transactions"` // of whatever kind: of requests, and of what nodes say of keys
	Reads     float64 `json:"etcd_reads"`
	Proposals float64 `json:"etcd_proposals"`
	Fsyncs    float64 `json:"etcd_fsyncs"`
	FsyncTime float64 `json:"etcd_fsync_ms"` // of one fsync on average, not of an environment
	Conflicts float64 `json:"conflicts"`     // transactions made anew because another came first
	Leased    float64 `json:"leased_writes"` // keys that nodes wrote of themselves: records and verdicts
}

// kvCalls is how etcd counts calls of its service.
func kvCalls(method string) string {
	return `grpc_server_handled_total{grpc_code="OK",grpc_method="` + method + `",grpc_service="etcdserverpb.KV",grpc_type="unary"}`
}

// etcdCounters are those of etcd that envsCost is made of.
var etcdCounters = []string{kvCalls("Txn"), kvCalls("Range"), "etcd_server_proposals_applied_total", "etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_wal_fsync_duration_seconds_sum"}

// nodeCounters are those of the nodes.
var nodeCounters = []string{"sluice_envs_conflicts_total", "sluice_etcd_leased_writes_total"}

// costSoFar is all that nodes and etcd have spent since they began, in the order
// of the counters.
type costSoFar struct {
	nodes, store time.Duration
	counted      map[string]float64
}

// spent reads what was spent so far.
func (c *envsCluster) spent(ctx context.Context) (s costSoFar, err error) {
	s.counted = map[string]float64{}
	if s.nodes, s.store, err = c.cpu(); err != nil {
		return s, err
	}
	text, err := getAdmin(ctx, c.store.addr, "/metrics")
	if err != nil {
		return s, err
	}
	for _, name := range etcdCounters {
		v, err := metric(text, name)
		if err != nil && !strings.HasPrefix(name, "grpc_server") { // one without a call is left out
			return s, err
		}
		s.counted[name] = v
	}
	for _, n := range c.nodes {
		if text, err = getAdmin(ctx, n.ports.Admin, "/metrics"); err != nil {
			return s, err
		}
		for _, name := range nodeCounters {
			v, err := metric(text, name)
			if err != nil {
				return s, err
			}
			s.counted[name] += v
		}
	}
	return s, nil
}

// since returns what was spent after before, for each of n environments.
func (s costSoFar) since(before costSoFar, n int) envsCost {
	each := func(name string) float64 { return (s.counted[name] - before.counted[name]) / float64(n) }
	fsyncs := each(etcdCounters[3])
	return envsCost{
		NodeCPU: millis(s.nodes-before.nodes) / float64(n), EtcdCPU: millis(s.store-before.store) / float64(n),
		Txns: each(etcdCounters[0]), Reads: each(etcdCounters[1]), Proposals: each(etcdCounters[2]), Fsyncs: fsyncs,
		FsyncTime: 1000 * each(etcdCounters[4]) / max(fsyncs, 1e-9),
		Conflicts: each(nodeCounters[0]), Leased: each(nodeCounters[1]),
	}
}

func (c envsCost) String() string {
	return fmt.Sprintf("%s ms of the nodes' CPU time, %s ms of etcd's; %s transactions, %s reads, %s proposals, %s fsyncs of %s ms; %s conflicts; %s keys that nodes say something of themselves by",
		figure(c.NodeCPU), figure(c.EtcdCPU), figure(c.Txns), figure(c.Reads), figure(c.Proposals), figure(c.Fsyncs), figure(c.FsyncTime), figure(c.Conflicts), figure(c.Leased))
}

// createPaced creates environments at half the rate of all clients' together, and
// notes how long each took from the moment that it was due: one that has to wait
// for those before it counts with its wait.
func (c *envsCluster) createPaced(ctx context.Context, res *envsResult, taken *takenPorts) error {
	rate := res.rate() / 2
	n := min(res.Envs, pacedMost, int(rate*pacedTime.Seconds())+1)
	before, err := c.spent(ctx)
	if err != nil {
		return err
	}
	due := make(chan time.Time)
	var running sync.WaitGroup
	errs, took := make([]error, len(c.clients)), make([][]float64, len(c.clients))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var names takenNames
	for i, client := range c.clients {
		running.Go(func() {
			for at := range due {
				if _, errs[i] = client.create(ctx, names.next("paced"), "", taken); errs[i] != nil {
					cancel()
					return
				}
				took[i] = append(took[i], millis(time.Since(at)))
			}
		})
	}
	began := time.Now()
	for i := range n {
		at := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if err := sleepUntil(ctx, at); err != nil {
			break
		}
		select {
		case due <- at:
		case <-ctx.Done():
		}
	}
	close(due)
	running.Wait()
	after, err := c.spent(context.WithoutCancel(ctx))
	res.Paced, res.PacedRate, res.PacedCost = slices.Concat(took...), rate, after.since(before, n)
	return errors.Join(append(errs, err)...)
}

const (
	// pacedTime bounds how long the paced load goes on, and pacedMost of how many
	// environments it is: all ports of a node are not many more than ten thousand
	// environments have.
	pacedTime = 20 * time.Second
	pacedMost = 1000
)

// takenNames gives each environment a name of its own.
type takenNames struct {
	mu sync.Mutex
	n  int
}

func (t *takenNames) next(prefix string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	return fmt.Sprintf("%s-%06d", prefix, t.n)
}

// sleepUntil waits until at; the error is that of ctx.
func sleepUntil(ctx context.Context, at time.Time) error {
	wait := time.NewTimer(time.Until(at))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
