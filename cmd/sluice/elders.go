package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// What a process that lingers is asked by the one that has taken over, or by the
// youngest of several that have.
const (
	msgReport = "report" // how is it? The answer is of the same kind
	msgReopen = "reopen" // open the access log anew
	msgStop   = "stop"   // give flows drain_timeout, and end
)

// reportBody is a question with a number, and its answer.
type reportBody struct {
	Number  int64
	Flows   int
	Left    *int `json:",omitempty"` // of Flows, without connections of HTTP that have no exchange; nil: it does not tell
	PID     int
	Version string
	Until   time.Time `json:",omitzero"` // when flows that are left are cut; zero: it does not tell
}

// left returns how many flows have to end before the process does.
func (r *reportBody) left() int {
	if r.Left == nil {
		return r.Flows
	}
	return *r.Left
}

// elder is an older process of the node, which keeps the flows that it had.
type elder struct {
	elderBody
	conn *handover.Conn

	mu   sync.Mutex // held while it is asked; guards the following field
	last reportBody // what it said last
}

// askLimit bounds how long an older process may take to answer.
const askLimit = time.Second

// report asks for what it still has. io.EOF says that it has gone.
func (e *elder) report(number int64) (r reportBody, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conn.SetDeadline(time.Now().Add(askLimit))
	if err := e.conn.Send(msgReport, reportBody{Number: number}); err != nil {
		return r, io.EOF
	}
	for {
		m, files, err := e.conn.Receive()
		handover.CloseAll(files)
		if err != nil {
			return r, err
		}
		// An answer to a question of a process before this one may come first.
		if m.Kind == msgReport && m.Into(&r) == nil && r.Number == number {
			e.last = r
			return r, nil
		}
	}
}

// guess returns what one that is too busy to answer said last; of one that never
// answered, that it has a flow, for it would have gone if it had none.
func (e *elder) guess() reportBody {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.last
	if r.PID == 0 {
		r = reportBody{PID: e.PID, Version: e.Version, Flows: 1}
	}
	return r
}

// tell sends an older process a word.
func (e *elder) tell(kind string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conn.SetDeadline(time.Now().Add(askLimit))
	_ = e.conn.Send(kind, nil) // one that has gone needs no telling
}

// elders are the older processes of the node. The zero value is none; methods may
// be called from any goroutine.
type elders struct {
	number atomic.Int64

	mu  sync.Mutex // guards the following field
	all []*elder
}

func (e *elders) add(some ...*elder) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, some...)
}

func (e *elders) list() []*elder {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*elder(nil), e.all...)
}

func (e *elders) remove(gone *elder) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, is := range e.all {
		if is == gone {
			e.all = append(e.all[:i:i], e.all[i+1:]...)
			gone.conn.Close()
			return
		}
	}
}

// ask returns what older processes say that are there, and forgets those that have
// gone.
func (e *elders) ask() []reportBody {
	all := e.list()
	answers := make([]reportBody, len(all))
	var asking sync.WaitGroup
	for i, of := range all {
		asking.Go(func() {
			r, err := of.report(e.number.Add(1) + int64(os.Getpid())<<32)
			switch {
			case errors.Is(err, io.EOF):
				e.remove(of)
			case err != nil: // too busy to answer, but there
				answers[i] = of.guess()
			default:
				answers[i] = r
			}
		})
	}
	asking.Wait()
	there := answers[:0]
	for _, r := range answers {
		if r.PID != 0 {
			there = append(there, r)
		}
	}
	return there
}

// left returns how many flows they have, without connections of HTTP that wait
// for a request.
func (e *elders) left() (flows int) {
	for _, r := range e.ask() {
		flows += r.left()
	}
	return flows
}

// older returns what they have, for the node's record.
func (e *elders) older() (o fleet.Older) {
	untold := false
	for _, r := range e.ask() {
		o.Processes++
		o.Flows += r.Flows
		untold = untold || r.Until.IsZero()
		if r.Until.After(o.Until) {
			o.Until = r.Until
		}
	}
	if untold {
		o.Until = time.Time{}
	}
	return o
}

// tell sends all of them a word.
func (e *elders) tell(kind string) {
	for _, of := range e.list() {
		of.tell(kind)
	}
}

// sendTo gives them to a younger process.
func (e *elders) sendTo(to *handover.Conn) error {
	e.ask() // which forgets those that have gone
	for _, of := range e.list() {
		f, err := of.conn.File()
		if err != nil {
			return err
		}
		err = to.Send(msgElder, of.elderBody, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// close lets go of them, who go on.
func (e *elders) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, of := range e.all {
		of.conn.Close()
	}
	e.all = nil
}

// elderLook is how often older processes are asked though nobody wants to know, so
// that those which have gone are forgotten, and the node's record says what is left.
const elderLook = 10 * time.Second

// followElders notes what older processes have, until ctx ends.
func (n *node) followElders(ctx context.Context) error {
	tick := time.NewTicker(elderLook)
	defer tick.Stop()
	for {
		n.registrar.SetOlder(n.elders.older())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// upgradeMetrics shows the upgrades there were, and what is left of former
// processes.
type upgradeMetrics struct {
	elders       *elders
	done, failed atomic.Int64

	processes, flows, total *prometheus.Desc
}

func newUpgradeMetrics(e *elders) *upgradeMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sluice_upgrade_"+name, help, labels, nil)
	}
	return &upgradeMetrics{
		elders:    e,
		processes: desc("lingering_processes", "Older processes of this node that still have flows."),
		flows:     desc("lingering_flows", "Flows that older processes of this node still have: TCP connections, and connections that speak HTTP."),
		total:     desc("attempts_total", "Upgrades since the node was last started from nothing.", "result"),
	}
}

func (m *upgradeMetrics) counts() upgradeCounts {
	return upgradeCounts{Done: m.done.Load(), Failed: m.failed.Load()}
}

// Describe implements prometheus.Collector.
func (m *upgradeMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.processes
	ch <- m.flows
	ch <- m.total
}

// Collect implements prometheus.Collector.
func (m *upgradeMetrics) Collect(ch chan<- prometheus.Metric) {
	processes, flows := m.elders.ask(), 0
	for _, r := range processes {
		flows += r.Flows
	}
	ch <- prometheus.MustNewConstMetric(m.processes, prometheus.GaugeValue, float64(len(processes)))
	ch <- prometheus.MustNewConstMetric(m.flows, prometheus.GaugeValue, float64(flows))
	ch <- prometheus.MustNewConstMetric(m.total, prometheus.CounterValue, float64(m.done.Load()), "done")
	ch <- prometheus.MustNewConstMetric(m.total, prometheus.CounterValue, float64(m.failed.Load()), "failed")
}
