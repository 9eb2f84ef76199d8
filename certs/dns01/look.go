package dns01

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// silentAfter is how many looks in a row a server may leave unanswered before
// it counts as silent.
const silentAfter = 3

// Pauses between looks: they double from the first to the last.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 4 * time.Second
)

// way is how the wait for a record ended; also a metric label.
type way string

const (
	waySeen    way = "seen"    // the servers have it
	wayDelayed way = "delayed" // nobody could be asked, and the delay has passed
	wayFailed  way = "failed"
)

// view is what one server has shown of a record.
type view struct {
	server
	has    bool
	silent int   // looks without an answer, in a row
	why    error // what it said or did last, if it does not have the record
}

// wait blocks until the record is published, by the rule of the config.
func (s *Solver) wait(ctx context.Context, p place, value string) (way, error) {
	switch {
	case s.cfg.Timeout < 0:
		return waySeen, nil
	case s.cfg.Rule == RuleDelay:
		return s.delay(ctx)
	case p.blind != nil:
		return s.blindly(ctx, p, p.blind)
	}
	views := make([]view, len(p.servers))
	for i, srv := range p.servers {
		views[i].server = srv
		if len(srv.addrs) == 0 {
			views[i].silent = silentAfter // it will not answer however often it is asked
		}
	}
	deadline := time.Now().Add(s.cfg.Timeout)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		s.look(ctx, views, p.name, value)
		if ctx.Err() != nil {
			return wayFailed, errStopped
		}
		switch s.judge(views) {
		case published:
			s.report(p, views)
			return waySeen, nil
		case hopeless:
			return s.blindly(ctx, p, errors.New(describe(views)))
		}
		s.log.Debug("challenge record not published yet", "record", p.name, "servers", describe(views))
		if time.Now().Add(pause).After(deadline) {
			return wayFailed, fmt.Errorf("record %s is not published after %v: %s", strings.TrimSuffix(p.name, "."), s.cfg.Timeout, describe(views))
		}
		if !sleep(ctx, pause) {
			return wayFailed, errStopped
		}
	}
}

// delay waits as long as the config says, and asks nobody.
func (s *Solver) delay(ctx context.Context) (way, error) {
	if !sleep(ctx, s.cfg.Delay) {
		return wayFailed, errStopped
	}
	return wayDelayed, nil
}

// blindly waits where the servers cannot be asked.
func (s *Solver) blindly(ctx context.Context, p place, why error) (way, error) {
	s.log.Warn("nobody can be asked whether a challenge record is published; waiting instead",
		"record", p.name, "zone", p.zone, "delay", s.cfg.Delay, "err", why)
	return s.delay(ctx)
}

// look asks every server at all its addresses at once.
func (s *Solver) look(ctx context.Context, views []view, name, value string) {
	var all sync.WaitGroup
	for i := range views {
		v := &views[i]
		all.Go(func() { s.lookAt(ctx, v, name, value) })
	}
	all.Wait()
}

// lookAt asks one server. It has the record if all its addresses that answer
// have it: behind two addresses there may be two machines.
func (s *Solver) lookAt(ctx context.Context, v *view, name, value string) {
	errs := make([]error, len(v.addrs))
	var all sync.WaitGroup
	for i, addr := range v.addrs {
		all.Go(func() { errs[i] = s.lookup(ctx, addr, name, value) })
	}
	all.Wait()
	answers, lacks := 0, error(nil)
	why := v.err
	for _, err := range errs {
		switch {
		case err == nil:
			answers++
		case errors.Is(err, errLacks):
			answers++
			lacks = err
		default:
			why = err
		}
	}
	v.has, v.why = answers > 0 && lacks == nil, why
	if answers == 0 {
		v.silent++
		return
	}
	v.silent = 0
	if lacks != nil {
		v.why = lacks
	}
}

// errLacks is a server that answers and does not have the record.
var errLacks = errors.New("does not have it yet")

// lookup asks one address.
func (s *Solver) lookup(ctx context.Context, addr, name, value string) error {
	m, err := s.ask.exchange(ctx, addr, name, dns.TypeTXT, false)
	if err != nil {
		return err
	}
	if err := speaks(m); err != nil {
		return err
	}
	for _, rr := range m.Answer {
		if txt, ok := rr.(*dns.TXT); ok && strings.Join(txt.Txt, "") == value {
			return nil
		}
	}
	return errLacks
}

// verdict is what a round of looks comes to.
type verdict int

const (
	undecided verdict = iota
	published
	hopeless // too many servers do not answer for the rule to be met ever
)

func (s *Solver) judge(views []view) verdict {
	var has, silent, pending int
	for _, v := range views {
		switch {
		case v.has:
			has++
		case v.silent >= silentAfter:
			silent++
		case v.silent > 0:
			pending++
		}
	}
	if s.cfg.Rule == RuleMajority {
		switch {
		case 2*has > len(views):
			return published
		case 2*silent >= len(views):
			return hopeless
		}
		return undecided
	}
	switch {
	case silent == len(views):
		return hopeless
	case has+silent == len(views) && pending == 0:
		return published
	}
	return undecided
}

// report names the servers that did not answer, in the log: their operator
// wants to know, and the authority may ask them.
func (s *Solver) report(p place, views []view) {
	silent := slices.DeleteFunc(slices.Clone(views), func(v view) bool { return v.has || v.silent == 0 })
	if len(silent) > 0 {
		s.log.Warn("servers of a zone do not answer; a challenge record counts as published without them",
			"zone", p.zone, "record", p.name, "servers", describe(silent))
	}
}

// describe says how each server is doing.
func describe(views []view) string {
	texts := make([]string, len(views))
	for i, v := range views {
		switch {
		case v.has:
			texts[i] = v.name + " has it"
		case v.why != nil:
			texts[i] = fmt.Sprintf("%s %v", v.name, v.why)
		default:
			texts[i] = v.name + " has no address"
		}
	}
	return strings.Join(texts, "; ")
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
