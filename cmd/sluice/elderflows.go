package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/control/api"
)

// msgFlows asks a process that lingers for its flows, or to cut some. With it goes
// the end of a pipe that the answer is written to, so that a long one keeps no
// other question waiting. A process of a version that does not know the word
// closes the pipe.
const msgFlows = "flows"

// flowsBody is the question.
type flowsBody struct {
	Cut []uint64 `json:",omitempty"` // flows to cut; none: list all
}

// flowsLine is one of the values that the answer is made of. The last one, and no
// other, has no flow.
type flowsLine struct {
	Flow *api.Flow `json:",omitempty"`
	Cut  int       `json:",omitempty"` // how many were cut
}

const (
	// flowsLimit bounds how long an older process may take to list or cut flows.
	flowsLimit = 10 * time.Second
	// cutBatch is how many flows one message has cut: 20 digits each are to fit.
	cutBatch = 4000
)

// tellFlows answers a question about flows of this process. Whoever asked closes
// the other end at some time, so that writing ends.
func (n *node) tellFlows(q flowsBody, to *os.File) {
	defer to.Close()
	out := bufio.NewWriter(to)
	enc := json.NewEncoder(out)
	last := flowsLine{}
	if len(q.Cut) == 0 {
		for f := range (live{n}).own() {
			if enc.Encode(flowsLine{Flow: &f}) != nil {
				return // nobody wants to know any more
			}
		}
	} else {
		picked := make(map[uint64]bool, len(q.Cut))
		for _, id := range q.Cut {
			picked[id] = true
		}
		last.Cut = (live{n}).cutOwn(func(f api.Flow) bool { return picked[f.ID] })
		n.log.Info("cut flows, as asked of the process that has taken over", "flows", last.Cut)
	}
	_ = enc.Encode(last)
	_ = out.Flush()
}

// errNotTold is why an older process's flows are not known.
var errNotTold = errors.New("its version does not tell")

// askFlows asks an older process, and returns what it answers.
func (e *elder) askFlows(q flowsBody) (flows []api.Flow, cut int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	e.mu.Lock()
	e.conn.SetDeadline(time.Now().Add(askLimit))
	err = e.conn.Send(msgFlows, q, w)
	e.mu.Unlock()
	w.Close()
	if err != nil {
		return nil, 0, nil // it has gone, and its flows with it
	}
	r.SetReadDeadline(time.Now().Add(flowsLimit))
	for dec := json.NewDecoder(bufio.NewReader(r)); ; {
		var line flowsLine
		switch err := dec.Decode(&line); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, 0, fmt.Errorf("it does not answer within %v", flowsLimit)
		case errors.Is(err, io.EOF):
			return nil, 0, errNotTold
		case err != nil:
			return nil, 0, fmt.Errorf("read its answer: %w", err)
		case line.Flow == nil:
			return flows, line.Cut, nil
		}
		line.Flow.Process = e.PID
		flows = append(flows, *line.Flow)
	}
}

// cut ends flows of an older process, and returns how many.
func (e *elder) cut(ids []uint64) (cut int, err error) {
	for some := range slices.Chunk(ids, cutBatch) {
		_, n, err := e.askFlows(flowsBody{Cut: some})
		cut += n
		if err != nil {
			return cut, err
		}
	}
	return cut, nil
}

// eachAsked calls ask for each older process at the same time, and says for which
// that failed. A process that has gone meanwhile has no flows.
func (e *elders) eachAsked(ask func(of *elder) error) (unseen string) {
	all := e.list()
	failed := make([]error, len(all))
	var asking sync.WaitGroup
	for i, of := range all {
		asking.Go(func() { failed[i] = ask(of) })
	}
	asking.Wait()
	if !slices.ContainsFunc(failed, func(err error) bool { return err != nil }) {
		return ""
	}
	there := e.ask()
	var said []string
	for i, of := range all {
		at := slices.IndexFunc(there, func(r reportBody) bool { return r.PID == of.PID })
		if failed[i] != nil && at >= 0 {
			said = append(said, fmt.Sprintf("%s of the older process %d (version %s): %v", counted(there[at].Flows, "flow"), of.PID, of.Version, failed[i]))
		}
	}
	return strings.Join(said, "; ")
}

// flows lists the flows of older processes.
func (e *elders) flows() (all []api.Flow, unseen string) {
	var mu sync.Mutex // guards all
	unseen = e.eachAsked(func(of *elder) error {
		flows, _, err := of.askFlows(flowsBody{})
		mu.Lock()
		defer mu.Unlock()
		all = append(all, flows...)
		return err
	})
	return all, unseen
}

// cut ends the flows of older processes that match picks. match is called by one
// goroutine at a time.
func (e *elders) cut(match func(api.Flow) bool) (cut int, unseen string) {
	var mu sync.Mutex // guards cut; held while match is called
	unseen = e.eachAsked(func(of *elder) error {
		flows, _, err := of.askFlows(flowsBody{})
		if err != nil {
			return err
		}
		mu.Lock()
		var ids []uint64
		for _, f := range flows {
			if match(f) {
				ids = append(ids, f.ID)
			}
		}
		mu.Unlock()
		n, err := of.cut(ids)
		mu.Lock()
		defer mu.Unlock()
		cut += n
		return err
	})
	return cut, unseen
}
