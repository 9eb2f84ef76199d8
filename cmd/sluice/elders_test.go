package main

import (
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// beforeFlows answers as a process of a version does that knows no question but
// the one for counts.
func beforeFlows(conn *handover.Conn, flows int) {
	defer conn.Close()
	for {
		m, files, err := conn.Receive()
		handover.CloseAll(files)
		if err != nil {
			return
		}
		var q reportBody
		if m.Kind == msgReport && m.Into(&q) == nil {
			q.Flows, q.PID, q.Version = flows, 7, "v0"
			_ = conn.Send(msgReport, q)
		}
	}
}

// newElder returns an older process, and the connection by which that answers.
func newElder(t *testing.T) (*elder, *handover.Conn) {
	t.Helper()
	ours, f, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := handover.FromFile(f)
	if err != nil {
		ours.Close()
		t.Fatal(err)
	}
	return &elder{elderBody: elderBody{PID: 7, Version: "v0"}, conn: ours}, theirs
}

func TestOlderProcessThatDoesNotTell(t *testing.T) {
	of, theirs := newElder(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		beforeFlows(theirs, 3)
	}()
	var e elders
	e.add(of)
	defer func() {
		e.close()
		<-done
	}()
	const want = "3 flows of the older process 7 (version v0): its version does not tell"
	if flows, unseen := e.flows(); len(flows) != 0 || unseen != want {
		t.Errorf("the list is %v, and unseen %q, want %q", flows, unseen, want)
	}
	if cut, unseen := e.cut(func(api.Flow) bool { return true }); cut != 0 || unseen != want {
		t.Errorf("%d were cut, and unseen %q, want %q", cut, unseen, want)
	}
	if left := e.left(); left != 3 {
		t.Errorf("%d flows are left, want 3", left)
	}
}

func TestOlderProcessThatHasGone(t *testing.T) {
	of, theirs := newElder(t)
	theirs.Close()
	var e elders
	e.add(of)
	defer e.close()
	if flows, unseen := e.flows(); len(flows) != 0 || unseen != "" {
		t.Errorf("the list is %v, and unseen %q", flows, unseen)
	}
	if left := e.left(); left != 0 {
		t.Errorf("%d flows are left", left)
	}
}

// TestOlderProcessThatIsBusy has one that hears nothing keep a drain from being
// taken for done.
func TestOlderProcessThatIsBusy(t *testing.T) {
	of, theirs := newElder(t)
	defer theirs.Close()
	var e elders
	e.add(of)
	defer e.close()
	if left := e.left(); left != 1 {
		t.Errorf("%d flows are left of a process that has not said anything, want 1", left)
	}
	if got := e.older(); got != (fleet.Older{Processes: 1, Flows: 1}) {
		t.Errorf("the record would say %+v", got)
	}
	until := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	of.last = reportBody{PID: 7, Flows: 9, Left: new(5), Until: until}
	if got := e.older(); got != (fleet.Older{Processes: 1, Flows: 9, Until: until}) {
		t.Errorf("the record would say %+v", got)
	}
	if left := e.left(); left != 5 {
		t.Errorf("%d flows are left of a process that said so before, want 5", left)
	}
}
