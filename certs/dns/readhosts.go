package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// readsAtOnce bounds the names of one account that are read at a time.
	readsAtOnce = 8
	// readsFail is after how many failures that may pass no more names are read: it
	// is the provider rather than the names, and those that wait would fail as late.
	readsFail = readsAtOnce
	// readLimit bounds the reading of all names.
	readLimit = 2 * hostsLimit
)

// A NamesError says that some names could not be read. The others were.
type NamesError struct{ failed map[string]error }

// Error says how it went with one of the names.
func (e *NamesError) Error() string {
	text := e.Unwrap().Error()
	if others := len(e.failed) - 1; others > 0 {
		text += fmt.Sprintf(" (and %d names more)", others)
	}
	return text
}

// Unwrap returns the error of the name that comes first.
func (e *NamesError) Unwrap() error {
	first := ""
	for name := range e.failed {
		if first == "" || name < first {
			first = name
		}
	}
	return e.failed[first]
}

// Passing reports whether any of them may be read in a moment.
func (e *NamesError) Passing() bool {
	for _, err := range e.failed {
		if one, ok := errors.AsType[*Error](err); ok && one.Passing() {
			return true
		}
	}
	return false
}

// RetryAfter returns for how long the provider asked to be left alone; 0: it did
// not say.
func (e *NamesError) RetryAfter() (longest time.Duration) {
	for _, err := range e.failed {
		if one, ok := errors.AsType[*Error](err); ok {
			longest = max(longest, one.RetryAfter())
		}
	}
	return longest
}

// Of returns why a name could not be read; nil: it was.
func (e *NamesError) Of(name string) error { return e.failed[name] }

// ReadHosts returns the A, AAAA, CNAME and TXT records of names in zone, both in
// lower case and without a final dot. Names may be wildcards, which stand for
// themselves. Several are read at a time. The error is a *NamesError where some
// could be read, and what was found is theirs; otherwise it is an *Error, or that of
// ctx.
func (p *Provider) ReadHosts(ctx context.Context, zone string, names []string) ([]Host, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards the following
		found   = map[string][]Host{}
		failed  = map[string]error{}
		passing []error
	)
	slots := make(chan struct{}, readsAtOnce)
	for _, name := range names {
		slots <- struct{}{}
		mu.Lock()
		if len(passing) >= readsFail {
			failed[name] = passing[0]
			mu.Unlock()
			<-slots
			continue
		}
		mu.Unlock()
		running.Go(func() {
			defer func() { <-slots }()
			var records []Host
			err := p.onHost(ctx, opRead, zone, Host{Type: "A", Name: name}, func(ctx context.Context, h hosts) (err error) {
				records, err = h.read(ctx, zone, []string{name})
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				found[name] = records
				return
			}
			failed[name] = err
			if e, ok := errors.AsType[*Error](err); ok && e.Passing() {
				passing = append(passing, err)
			}
		})
	}
	running.Wait()
	var all []Host
	for _, name := range names {
		all = append(all, found[name]...)
	}
	switch {
	case len(failed) == 0:
		return all, nil
	case len(found) == 0:
		// One that may pass says more of the provider than of its name.
		return nil, cmp.Or(slices.Concat(passing, []error{(&NamesError{failed}).Unwrap()})...)
	}
	return all, &NamesError{failed}
}
