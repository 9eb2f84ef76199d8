package upstream

import (
	"context"
	"net/netip"
	"time"
	"weak"

	"github.com/remotegpu/sluice/router"
)

// LookupFunc stands in for name servers in tests.
type LookupFunc func(ctx context.Context, host string) ([]netip.Addr, error)

func (f LookupFunc) Lookup(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	addrs, err := f(ctx, name)
	return addrs, 5 * time.Second, err
}

// SetLookup has d resolve names by f. To be called before d is used.
func (d *Dialer) SetLookup(f LookupFunc) { d.names.dns = f }

// Turns returns the number of backends whose turns are kept.
func (d *Dialer) Turns() (n int) {
	d.groups.byBackend.Range(func(any, any) bool { n++; return true })
	return n
}

// MarkFailed has ep counted as one that failed just now.
func (d *Dialer) MarkFailed(ep Endpoint) { d.failedEndpoints.remember(ep) }

// Loads returns the flows counted for each target whose count is kept.
func (d *Dialer) Loads() map[Endpoint]int64 {
	kept := make(map[Endpoint]int64)
	d.loads.byEndpoint.Range(func(ep, x any) bool {
		if l := x.(weak.Pointer[load]).Value(); l != nil {
			kept[ep.(Endpoint)] = l.flows.Load()
		} else {
			kept[ep.(Endpoint)] = -1
		}
		return true
	})
	return kept
}

const MaxChecking = maxChecking

// Checking returns how many goroutines are checking.
func (d *Dialer) Checking() int {
	d.checks.mu.Lock()
	defer d.checks.mu.Unlock()
	return d.checks.working
}

// Targets returns the targets of b in the order to try for a flow whose client
// is not known.
func (d *Dialer) Targets(b *router.Backend, v *router.Vars) ([]Endpoint, error) {
	a, err := d.Attempt(b, v, netip.Addr{})
	if err != nil {
		return nil, err
	}
	defer a.Done()
	eps := make([]Endpoint, 0, len(b.Targets))
	for {
		ep, ok := a.NextTarget()
		if !ok {
			return eps, nil
		}
		eps = append(eps, ep)
	}
}
