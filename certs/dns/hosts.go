package dns

import (
	"context"
	"errors"
	"time"

	"github.com/libdns/libdns"
)

// Host is a record as a provider holds it: an address, a CNAME, or a text. It says
// more than libdns has words for.
type Host struct {
	Name string // in lower case, without a final dot
	Type string // A, AAAA, CNAME or TXT
	Data string // of TXT the bare text
	TTL  int    // seconds
	// Weight is the record's share of answers, 1 to 100; 0: it has none.
	Weight int
	// ID is what the provider's API knows the record by; "": by its content.
	ID string
	// Odd says why it is no ordinary record that everybody gets; "": it is one.
	Odd string
}

// HostSwap replaces the addresses of a name, if they still are what was read.
type HostSwap struct {
	Name   string
	Marker Host   // the TXT record of its name that is to be there alone
	Found  []Host // the TXT records that this name has
	Before []Host // A and AAAA of Name
	After  []Host
}

// hosts is what a kind of provider does for records that are kept true: libdns
// has no word for one record of several, for weights, or for conditions, and its
// clients for APIs leave out all but a first page. Each method makes few requests
// and does not try again.
type hosts interface {
	read(ctx context.Context, zone string, names []string) ([]Host, error)
	add(ctx context.Context, zone string, r Host) error
	update(ctx context.Context, zone string, r Host) error
	remove(ctx context.Context, zone string, r Host) error
	// leastTTL returns the shortest TTL that a zone takes, in seconds.
	leastTTL(ctx context.Context, zone string) (int, error)
	weighted() bool
}

// swapper is hosts that change several names at once or not at all.
type swapper interface {
	swap(ctx context.Context, zone string, swaps []HostSwap) error
}

const (
	opRead   op = "read"
	opUpdate op = "update"
	opSwap   op = "swap"
)

// hostsLimit bounds each operation on hosts, and the reading of each name. Whoever calls tries again by its own
// lights, since what is wanted may be another thing by then.
const hostsLimit = 8 * time.Second

// errNoHosts is of kinds of providers that do not do this.
var errNoHosts = errors.New("this kind of provider cannot keep names; use alidns, cloudflare or rfc2136")

// AddHost adds a record. One that is there already counts as added.
func (p *Provider) AddHost(ctx context.Context, zone string, r Host) error {
	return p.onHosts(ctx, opAppend, zone, r, func(ctx context.Context, h hosts) error { return h.add(ctx, zone, r) })
}

// UpdateHost gives a record that ReadHosts returned the TTL and the weight of r.
func (p *Provider) UpdateHost(ctx context.Context, zone string, r Host) error {
	return p.onHosts(ctx, opUpdate, zone, r, func(ctx context.Context, h hosts) error { return h.update(ctx, zone, r) })
}

// RemoveHost removes a record that ReadHosts returned. One that is gone counts as
// removed.
func (p *Provider) RemoveHost(ctx context.Context, zone string, r Host) error {
	return p.onHosts(ctx, opDelete, zone, r, func(ctx context.Context, h hosts) error { return h.remove(ctx, zone, r) })
}

// LeastTTL returns the shortest TTL that a zone takes, in seconds.
func (p *Provider) LeastTTL(ctx context.Context, zone string) (seconds int, err error) {
	return seconds, p.onHosts(ctx, opCheck, zone, Host{Type: "SOA", Name: zone}, func(ctx context.Context, h hosts) error {
		seconds, err = h.leastTTL(ctx, zone)
		return err
	})
}

// Weighted reports whether answers can be weighted.
func (p *Provider) Weighted() bool { return p.driver.hosts != nil && p.driver.hosts.weighted() }

// Swaps reports whether SwapHosts can be called.
func (p *Provider) Swaps() bool {
	_, ok := p.driver.hosts.(swapper)
	return ok
}

// SwapHosts makes all of swaps in one update, or nothing where something is not
// as it was read.
func (p *Provider) SwapHosts(ctx context.Context, zone string, swaps []HostSwap) error {
	about := Host{Type: "A"}
	if len(swaps) > 0 {
		about.Name = swaps[0].Name
	}
	return p.onHosts(ctx, opSwap, zone, about, func(ctx context.Context, h hosts) error {
		s, ok := h.(swapper)
		if !ok {
			return errNoHosts
		}
		return s.swap(ctx, zone, swaps)
	})
}

// onHosts makes one operation, and says in its error what its failure means.
func (p *Provider) onHosts(ctx context.Context, o op, zone string, about Host, do func(context.Context, hosts) error) error {
	leave, err := p.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return p.onHost(ctx, o, zone, about, do)
}

// enter waits until nobody else uses a provider that takes one at a time.
func (p *Provider) enter(ctx context.Context) (leave func(), err error) {
	if p.slot == nil {
		return func() {}, nil
	}
	select {
	case p.slot <- struct{}{}:
		return func() { <-p.slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// onHost is onHosts of one who has entered.
func (p *Provider) onHost(ctx context.Context, o op, zone string, about Host, do func(context.Context, hosts) error) error {
	ctx, cancel := context.WithTimeout(ctx, hostsLimit)
	defer cancel()
	start := time.Now()
	err := errNoHosts
	if p.driver.hosts != nil {
		err = do(ctx, p.driver.hosts)
	}
	c := p.driver.classify(err)
	if errors.Is(err, errNoHosts) {
		c = classRefused
	}
	if errors.Is(err, errOvertaken) {
		c = classExists // counted as such; it is an error all the same
	}
	p.metrics.observe(p.name, o, c, time.Since(start))
	switch {
	case c == classOK, c == classExists && o == opAppend, c == classMissing && o == opDelete:
		return nil
	}
	e := &Error{
		Provider: p.name, Kind: p.kind, Attempts: 1, Hint: p.driver.explain(err, zone+"."), Err: err,
		op: o, zone: zone + ".", rec: libdns.RR{Type: about.Type, Name: about.Name, Data: about.Data}, passing: c == classTransient,
	}
	return e
}

// errOvertaken says that records are not as they were read.
var errOvertaken = errors.New("the records are not as they were read a moment before; they are read again")

// Passing reports whether the same may work in a moment, for whatever records:
// the provider is throttled, broken or out of reach.
func (e *Error) Passing() bool { return e.passing }

// RetryAfter returns for how long the provider asked to be left alone; 0: it did
// not say.
func (e *Error) RetryAfter() time.Duration {
	var asked interface{ after() time.Duration } // by Retry-After
	if errors.As(e.Err, &asked) {
		return asked.after()
	}
	return 0
}
