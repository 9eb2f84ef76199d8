package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libdns/libdns"
)

// op is what is done to a record; also a metric label.
type op string

const (
	opAppend op = "append"
	opDelete op = "delete"
	opCheck  op = "check" // the deletion of a record that is not there
)

// records is the part of libdns that a driver brings.
type records interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// driver is one library client and what has to be known about it.
type driver struct {
	// open returns the client for one call.
	open func() records
	// classify says what an error of the client, or nil, means.
	classify func(error) class
	// explain adds what the user could change, or returns "".
	explain func(err error, zone string) string
	// oneAtATime: two calls must not overlap.
	oneAtATime bool
	// detached: the client does not honour its context, so a call runs in a
	// goroutine of its own and is left behind when its time is up.
	detached bool
	// hosts keeps records true; nil: the kind of provider cannot.
	hosts hosts
}

// class is what the outcome of a call means; also a metric label.
type class string

const (
	classOK        class = "ok"
	classExists    class = "exists"    // append: it is there already
	classMissing   class = "missing"   // delete: it is gone already
	classTransient class = "transient" // throttled, broken or unreachable: worth another call
	classRefused   class = "refused"   // will fail again
)

// contains reports whether text has any of parts in it. Libraries that report
// failures as text leave nothing better to go by.
func contains(text string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
}

// maxStuck bounds the detached calls left behind by one provider. Each is a
// goroutine and a connection that only the peer can end.
const maxStuck = 8

// outcome is what a call of the library came to.
type outcome struct {
	rec    libdns.Record
	err    error
	unsent bool // the library was not called at all
}

// do carries out one operation, repeating it while the failure is transient.
func (p *Provider) do(ctx context.Context, o op, zone string, rec libdns.Record) (libdns.Record, *Error) {
	for n := 1; ; n++ {
		start := time.Now()
		r := p.once(ctx, o, zone, rec)
		c := p.driver.classify(r.err)
		p.metrics.observe(p.name, o, c, time.Since(start))
		switch {
		case c == classOK, c == classExists && o == opAppend, c == classMissing && o != opAppend:
			return r.rec, nil
		case c == classTransient && n < p.policy.attempts && ctx.Err() == nil && p.wait(ctx, n, r.err):
			continue
		}
		return nil, &Error{
			Provider: p.name, Kind: p.kind, Attempts: n, Hint: p.driver.explain(r.err, zone),
			Err: r.err, op: o, zone: zone, rec: rec.RR(), doubt: c == classTransient && !r.unsent,
		}
	}
}

// wait pauses after the n-th call, for as long as the API asks if it does, and
// reports whether there is still somebody to go on for.
func (p *Provider) wait(ctx context.Context, n int, err error) bool {
	d := p.policy.pause(n)
	var asked interface{ after() time.Duration } // by Retry-After
	if errors.As(err, &asked) && asked.after() > d {
		d = min(asked.after(), p.policy.limit)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once makes a single call, within the policy's limit.
func (p *Provider) once(ctx context.Context, o op, zone string, rec libdns.Record) outcome {
	if p.slot != nil {
		select {
		case p.slot <- struct{}{}:
			defer func() { <-p.slot }()
		case <-ctx.Done():
			return outcome{err: fmt.Errorf("waiting for the provider's other calls: %w", ctx.Err()), unsent: true}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.policy.limit)
	defer cancel()
	if !p.driver.detached {
		return invoke(ctx, p.driver.open(), o, zone, rec)
	}
	return p.detach(ctx, o, zone, rec)
}

// detach runs the call where it can be left behind. The client it uses is its
// own (driver.open), so that it shares nothing with the calls that follow.
func (p *Provider) detach(ctx context.Context, o op, zone string, rec libdns.Record) outcome {
	if n := p.stuck.Load(); n >= maxStuck {
		return outcome{err: fmt.Errorf("%d earlier calls to its API have not returned yet", n), unsent: true}
	}
	p.stuck.Add(1)
	done := make(chan outcome, 1)
	go func() {
		r := invoke(ctx, p.driver.open(), o, zone, rec)
		p.stuck.Add(-1)
		done <- r
	}()
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
		return outcome{err: fmt.Errorf("no answer from its API: %w", ctx.Err())}
	}
}

// invoke calls the client. A client that panics over a reply it did not expect
// must not take the edge down with it.
func invoke(ctx context.Context, client records, o op, zone string, rec libdns.Record) (r outcome) {
	defer func() {
		if v := recover(); v != nil {
			r = outcome{err: fmt.Errorf("its client library panicked over the API's reply: %v", v)}
		}
	}()
	call := client.AppendRecords
	if o != opAppend {
		call = client.DeleteRecords
	}
	got, err := call(ctx, zone, []libdns.Record{rec})
	switch {
	case err != nil, len(got) != 1:
	case o == opAppend && !(got[0].RR().Type == rec.RR().Type && got[0].RR().Data == rec.RR().Data):
		err = errors.New("the API's reply is about another record")
	default:
		rec = got[0]
	}
	return outcome{rec: rec, err: err}
}
