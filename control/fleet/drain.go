package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Phase is how far a node that is drained has come.
type Phase string

// The phases of a drain, in their order.
const (
	LeavingDNS  Phase = "leaving_dns"  // it serves all that comes, until nobody is sent to it any more
	EndingFlows Phase = "ending_flows" // it takes nothing new, and keeps the flows that it has
	Drained     Phase = "drained"      // no flow is left
)

// Progress is how far a drain is, in a node's record.
type Progress struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"`          // when the phase began
	Until time.Time `json:"until,omitzero"` // when LeavingDNS ends
	Left  int       `json:"flows_left"`     // of EndingFlows, at most leftEvery ago
}

// leftEvery is how often it is written how many flows are left.
const leftEvery = 5 * time.Second

// rester is a data plane that can stop for a while to take up flows.
type rester interface {
	// Rest takes up nothing new until ctx ends, and returns once it serves again.
	Rest(ctx context.Context)
	// Left returns how many flows there are.
	Left() int
}

// DrainerConfig wires a Drainer. All but Logger and Registerer are needed.
type DrainerConfig struct {
	Node      string
	Registry  *Registry
	Registrar *Registrar
	Engine    rester
	// Ready is closed once the node has what it is to serve.
	Ready <-chan struct{}
	// Wait is how long clients may go on to come after the node's record says that
	// it drains: until DNS is changed, and answers of before are forgotten.
	Wait func() time.Duration
	// Marker is the path of a file that is there while the node takes up nothing,
	// so that it begins so after a restart: Resting tells.
	Marker     string
	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// Drainer says that its node is ready, and drains it for as long as drain/<node>
// is there.
type Drainer struct {
	cfg      DrainerConfig
	draining atomic.Bool
	gauge    prometheus.Gauge
	left     prometheus.Gauge
}

// Resting reports whether a marker says that the node is to take up nothing.
func Resting(marker string) bool {
	_, err := os.Stat(marker)
	return err == nil
}

// NewDrainer returns a Drainer that does nothing before Run.
func NewDrainer(cfg DrainerConfig) *Drainer {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	auto := promauto.With(cfg.Registerer)
	return &Drainer{
		cfg: cfg,
		gauge: auto.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_fleet_draining", Help: "1 while somebody wants the node drained, from when it knows."}),
		left: auto.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_fleet_drain_flows_left", Help: "Flows that are left of a node that is drained and takes up nothing new; else 0."}),
	}
}

// Draining reports whether the node is drained at somebody's wish.
func (d *Drainer) Draining() bool { return d.draining.Load() }

// Run drains and serves until ctx ends; it then returns nil. A node that begins to
// rest by its marker rests until etcd says that nobody wants it drained.
func (d *Drainer) Run(ctx context.Context) error {
	resting := Resting(d.cfg.Marker)
	for {
		if resting || d.await(ctx, true) {
			d.drain(ctx, resting)
		}
		if ctx.Err() != nil {
			return nil
		}
		resting = false
	}
}

// await says that the node is ready once it is, and returns true as soon as
// somebody wants it drained, or not any more; false: ctx has ended.
func (d *Drainer) await(ctx context.Context, drained bool) bool {
	ready := d.cfg.Ready
	for {
		changed := d.cfg.Registry.Changed()
		if _, complete := d.cfg.Registry.Members(); complete {
			if _, wanted := d.cfg.Registry.Drained(d.cfg.Node); wanted == drained {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		case <-ready:
			ready = nil
			if drained { // else it is
				d.cfg.Registrar.SetState(Ready)
			}
		}
	}
}

// drain drains the node until nobody wants it drained any more, or the program
// ends. resting says that the node takes up nothing already.
func (d *Drainer) drain(ctx context.Context, resting bool) {
	d.draining.Store(true)
	d.gauge.Set(1)
	defer d.gauge.Set(0)
	defer d.draining.Store(false)
	over, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		if d.await(over, false) {
			cancel()
		}
	})
	defer running.Wait()
	if resting || d.leaveDNS(over) {
		d.endFlows(over)
	}
	cancel()
	if ctx.Err() != nil {
		return // the marker stays, as the wish does
	}
	if err := os.Remove(d.cfg.Marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.cfg.Logger.Error("cannot remove the mark of a drained node; it will begin drained after a restart until it reaches etcd", "err", err)
	}
	d.cfg.Logger.Info("this node is not to be drained any more, and serves")
	d.cfg.Registrar.setProgress(nil)
	select {
	case <-d.cfg.Ready:
		d.cfg.Registrar.SetState(Ready)
	default:
		d.cfg.Registrar.SetState(Joining) // await says when it is ready
	}
}

// leaveDNS waits until nobody is sent here any more, and reports whether that is
// so: false, the drain was called off.
func (d *Drainer) leaveDNS(ctx context.Context) bool {
	wait, now := d.cfg.Wait(), time.Now()
	wish, _ := d.cfg.Registry.Drained(d.cfg.Node)
	d.cfg.Logger.Info("this node is drained: it serves until clients have other addresses", "reason", wish.Reason, "wait", wait)
	d.cfg.Registrar.setProgress(&Progress{Phase: LeavingDNS, Since: now, Until: now.Add(wait)})
	d.cfg.Registrar.SetState(Draining)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// endFlows takes up nothing, and tells how many flows are left, until ctx ends.
func (d *Drainer) endFlows(ctx context.Context) {
	if err := os.WriteFile(d.cfg.Marker, []byte("drained\n"), 0o600); err != nil {
		d.cfg.Logger.Error("cannot mark this node as drained on disk; after a restart it serves until it reaches etcd", "err", err)
	}
	var resting sync.WaitGroup
	resting.Go(func() { d.cfg.Engine.Rest(ctx) })
	defer resting.Wait()
	defer d.left.Set(0)
	began, last := time.Now(), -1
	tick := time.NewTicker(leftEvery)
	defer tick.Stop()
	for {
		left := d.cfg.Engine.Left()
		d.left.Set(float64(left))
		if left != last {
			d.tell(left, began)
			last = left
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tell puts into the record how many flows are left.
func (d *Drainer) tell(left int, began time.Time) {
	p, state := &Progress{Phase: EndingFlows, Since: began, Left: left}, Draining
	if left == 0 {
		d.cfg.Logger.Info("this node is drained: no flow is left", "took", fmt.Sprint(time.Since(began).Round(time.Second)))
		p.Phase, p.Since, state = Drained, time.Now(), Down
	}
	d.cfg.Registrar.setProgress(p)
	d.cfg.Registrar.SetState(state)
}
