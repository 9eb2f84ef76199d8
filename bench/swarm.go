package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/remotegpu/sluice/control/fleet/swarm"
)

// swarmResult is what many nodes that watch each other cost, and how fast they
// agree, on one etcd. All of them run in one process, and the network between them
// is made up.
type swarmResult struct {
	Nodes  int       `json:"nodes"`
	Joined float64   `json:"joined_s"`     // until all know all
	Looks  float64   `json:"looks"`        // a second, of a node, at rest
	Rest   float64   `json:"rest_writes"`  // a second, of all, at rest
	Edit   float64   `json:"edit_writes"`  // transactions for one edit that each node has a verdict on
	Death  float64   `json:"death_writes"` // transactions for the death of one
	Killed []float64 `json:"killed_s"`     // until all that live have it out
	Hung   []float64 `json:"hung_s"`       // the same of one that answers nothing and keeps its lease
	Back   []float64 `json:"back_s"`       // until all have it back
	Split  float64   `json:"split_s"`      // until a twentieth that is cut off is out
	Healed float64   `json:"healed_s"`
}

const (
	swarmMost   = 1000
	swarmTrials = 5 // deaths of each kind
	swarmRest   = 20 * time.Second
	swarmEdits  = 10 // one a second
	swarmLimit  = 2 * time.Minute

	swarmLooksLimit = 10.0 // a second, of a node
	swarmRestLimit  = 1.0  // writes a second, of all
	swarmEditLimit  = 2.2  // writes of a node
	swarmOutLimit   = 8.0  // s; what is left of ten is for DNS
	swarmBackLimit  = 10.0 // s
)

// swarmRun is a swarm that is measured.
type swarmRun struct {
	*swarm.Swarm
	store *etcdServer
	n     int
}

func runSwarm(ctx context.Context, b *bench) error {
	store, err := b.startEtcd(ctx, "swarm-etcd", netip.AddrPort{})
	if err != nil {
		return err
	}
	defer store.close()
	r := &swarmRun{store: store, n: b.options.nodes}
	res := &swarmResult{Nodes: r.n}
	if r.Swarm, err = swarm.Start(store.addr.String(), r.n); err != nil {
		return err
	}
	defer r.Close()
	for _, step := range []func(context.Context, *swarmResult) error{r.join, r.rest, r.edit, r.die, r.hang, r.split} {
		if err := step(ctx, res); err != nil {
			return errors.Join(err, store.proc.alive())
		}
	}
	b.result.Swarm = res
	return nil
}

// await returns how many seconds it takes until all nodes say what want does.
func (r *swarmRun) await(ctx context.Context, want func(i int) bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, swarmLimit)
	defer cancel()
	took, err := r.Await(ctx, want)
	return took.Seconds(), err
}

func everyNode(int) bool { return true }

func allBut(i int) func(int) bool { return func(j int) bool { return j != i } }

// revision returns how many transactions etcd has made.
func (r *swarmRun) revision(ctx context.Context) (float64, error) {
	resp, err := r.store.client.Get(ctx, "none")
	if err != nil {
		return 0, err
	}
	return float64(resp.Header.Revision), nil
}

// writes returns how many transactions etcd makes while work goes on.
func (r *swarmRun) writes(ctx context.Context, work func() error) (float64, error) {
	before, err := r.revision(ctx)
	if err != nil {
		return 0, err
	}
	if err := work(); err != nil {
		return 0, err
	}
	after, err := r.revision(ctx)
	return after - before, err
}

func sleep(ctx context.Context, d time.Duration) error { return sleepUntil(ctx, time.Now().Add(d)) }

func (r *swarmRun) join(ctx context.Context, res *swarmResult) (err error) {
	res.Joined, err = r.await(ctx, everyNode)
	return err
}

func (r *swarmRun) rest(ctx context.Context, res *swarmResult) error {
	if err := sleep(ctx, swarmRest); err != nil { // until all views are written
		return err
	}
	began, looks := time.Now(), r.Looks()
	writes, err := r.writes(ctx, func() error { return sleep(ctx, swarmRest) })
	seconds := time.Since(began).Seconds()
	res.Looks, res.Rest = float64(r.Looks()-looks)/seconds/float64(r.n), writes/seconds
	return err
}

func (r *swarmRun) edit(ctx context.Context, res *swarmResult) error {
	writes, err := r.writes(ctx, func() error {
		for i := range swarmEdits {
			r.Apply(int64(i + 1))
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
		}
		return sleep(ctx, 2*time.Second)
	})
	res.Edit = writes / swarmEdits
	return err
}

func (r *swarmRun) die(ctx context.Context, res *swarmResult) error {
	for trial := range swarmTrials {
		i := trial * r.n / swarmTrials
		writes, err := r.writes(ctx, func() error {
			r.Kill(i)
			took, err := r.await(ctx, allBut(i))
			res.Killed = append(res.Killed, took)
			return err
		})
		if err != nil {
			return err
		}
		res.Death = max(res.Death, writes)
		if err := r.Revive(i); err != nil {
			return err
		}
		took, err := r.await(ctx, everyNode)
		if err != nil {
			return err
		}
		res.Back = append(res.Back, took)
	}
	return nil
}

func (r *swarmRun) hang(ctx context.Context, res *swarmResult) error {
	for trial := range swarmTrials {
		i := 1 + trial*r.n/swarmTrials
		r.Hang(i, true)
		took, err := r.await(ctx, allBut(i))
		if err != nil {
			return err
		}
		res.Hung = append(res.Hung, took)
		r.Hang(i, false)
		if took, err = r.await(ctx, everyNode); err != nil {
			return err
		}
		res.Back = append(res.Back, took)
	}
	return nil
}

func (r *swarmRun) split(ctx context.Context, res *swarmResult) (err error) {
	cut := max(r.n/20, 1)
	r.Split(cut)
	if res.Split, err = r.await(ctx, func(i int) bool { return i >= cut }); err != nil {
		return err
	}
	r.Split(0)
	res.Healed, err = r.await(ctx, everyNode)
	return err
}

func (r *swarmResult) section() string {
	longest := func(values []float64) string {
		p := percentiles(append([]float64(nil), values...), 50, 100)
		return fmt.Sprintf("%s s, %s s (of %d)", figure(p[0]), figure(p[1]), len(values))
	}
	return align([][]string{
		{fmt.Sprintf("%d nodes that watch each other, on one etcd", r.Nodes), ""},
		{"begun at once, until all know all", figure(r.Joined) + " s"},
		{"at rest: looks of a node; writes to etcd of all", fmt.Sprintf("%s a second; %s a second", figure(r.Looks), figure(r.Rest))},
		{"leases kept alive", fmt.Sprintf("%s a second, which etcd writes nothing for", figure(float64(r.Nodes)/(swarm.TTL.Seconds()/3)))},
		{"an edit, with a verdict and a record of each node", figure(r.Edit) + " transactions"},
		{"a node is killed, until all have it out: median, longest", longest(r.Killed)},
		{"  transactions of that, at most", figure(r.Death)},
		{"a node answers nothing and keeps its lease: median, longest", longest(r.Hung)},
		{"it is well again, until all have it back: median, longest", longest(r.Back)},
		{"a twentieth is cut off, until it is out; until it is back", fmt.Sprintf("%s s; %s s", figure(r.Split), figure(r.Healed))},
	})
}

func (r *swarmResult) bars() []bar {
	out := percentiles(append(append([]float64(nil), r.Killed...), r.Hung...), 100)[0]
	back := percentiles(append([]float64(nil), r.Back...), 100)[0]
	perEdit := r.Edit / float64(r.Nodes)
	return []bar{
		{"fleet of many: looks of a node a second", "≤ " + figure(swarmLooksLimit), figure(r.Looks), r.Looks <= swarmLooksLimit},
		{"fleet of many: writes a second of all nodes at rest", "≤ " + figure(swarmRestLimit), figure(r.Rest), r.Rest <= swarmRestLimit},
		{"fleet of many: writes of a node for an edit", "≤ " + figure(swarmEditLimit), figure(perEdit), perEdit <= swarmEditLimit},
		{"fleet of many: out everywhere after death", "≤ " + figure(swarmOutLimit) + " s", figure(out) + " s", out <= swarmOutLimit},
		{"fleet of many: back everywhere after health", "≤ " + figure(swarmBackLimit) + " s", figure(back) + " s", back <= swarmBackLimit},
	}
}

func (r *swarmResult) failures() []string { return nil }
