// Package dns turns the `dns:` entries of sluice.yaml into providers that can
// add and delete records, whatever company or server stands behind them.
//
// It owns what every provider's client library leaves to its caller: a limit on
// each call, retries when the API throttles or breaks, "already there" and
// "already gone" counted as success, one call at a time where the library needs
// it, errors that name the provider and say what to change, and metrics. It
// never decides which names deserve records and never looks anything up in DNS.
//
// Package certs calls it to prove control of names (DNS-01, RFC 8555 section
// 8.4). To add a provider, write one file like alidns.go, cloudflare.go and
// rfc2136.go: it registers the kind, says which settings an entry of it takes,
// builds the libdns client, and says what the client's errors mean. Nothing
// else changes but CONFIGURATION.md, which a test wants to name the settings.
package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libdns/libdns"
)

// Provider adds and deletes DNS records through one configured account. It
// implements certmagic.DNSProvider. Make one with New; the zero value is not
// usable. All methods are safe for concurrent use.
type Provider struct {
	name    string // the key under `dns:`
	kind    string
	zones   []string // in lower case, with their last dot
	servers []string // of zones, host:port
	driver  driver
	policy  policy
	metrics *Metrics

	slot  chan struct{} // holds a token while a call runs; nil: calls may overlap
	stuck atomic.Int32  // detached calls that have not returned
}

// policy bounds what one operation may cost.
type policy struct {
	limit    time.Duration           // for one call of the library
	attempts int                     // calls in one operation, the first included
	pause    func(int) time.Duration // after the n-th call failed, n from 1
}

// defaultPolicy makes an operation end within 50 s or so whatever the API does:
// four calls of at most 10 s, and pauses of 1, 2 and 4 s between them.
func defaultPolicy() policy {
	return policy{
		limit:    10 * time.Second,
		attempts: 4,
		pause:    func(n int) time.Duration { return time.Second << (n - 1) },
	}
}

// New builds the provider that sluice.yaml calls name. It contacts nobody. The
// error names the provider, the field, and what would be right. A nil m counts
// nothing.
func New(name string, cfg Config, m *Metrics) (*Provider, error) {
	k, err := kindOf(cfg)
	if err != nil {
		return nil, fmt.Errorf("dns provider %q: %w", name, err)
	}
	zones, servers, err := cfg.servers()
	if err != nil {
		return nil, fmt.Errorf("dns provider %q (%s): %w", name, cfg.Provider, err)
	}
	drv, err := k.build(cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("dns provider %q (%s): %w", name, cfg.Provider, err)
	}
	p := &Provider{
		name: name, kind: cfg.Provider, zones: zones, servers: servers,
		driver: drv, policy: defaultPolicy(), metrics: m,
	}
	if drv.oneAtATime {
		p.slot = make(chan struct{}, 1)
	}
	return p, nil
}

// NewAll builds every configured provider, keyed as in cfgs. The error joins
// the complaints about all of them.
func NewAll(cfgs map[string]Config, m *Metrics) (map[string]*Provider, error) {
	all := make(map[string]*Provider, len(cfgs))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfgs)) {
		p, err := New(name, cfgs[name], m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all[name] = p
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, nil
}

// Name returns the provider's key under `dns:` in sluice.yaml.
func (p *Provider) Name() string { return p.name }

// Kind returns what the provider is: a key of Kinds.
func (p *Provider) Kind() string { return p.kind }

// Zones returns the zones that the entry lists, in lower case and with their
// last dot; empty: it lists none. The caller must not modify them.
func (p *Provider) Zones() []string { return p.zones }

// Nameservers returns the servers, host:port, that answer for Zones; empty: DNS
// says which. The caller must not modify them.
func (p *Provider) Nameservers() []string { return p.servers }

// AppendRecords adds recs to zone (a name with its trailing dot) and returns
// them as the provider now knows them, with whatever identity its deletion
// needs. A record that is there already counts as added. After an error,
// the records returned with it were added, and the one that failed was deleted
// again if the provider left open whether it took it; the error is an *Error,
// whose Left says if that did not work.
func (p *Provider) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	var added []libdns.Record
	for _, rec := range recs {
		got, err := p.do(ctx, opAppend, zone, rec)
		if err != nil {
			if err.doubt {
				err.Left = !p.undo(ctx, zone, rec)
			}
			return added, err
		}
		added = append(added, got)
	}
	return added, nil
}

// DeleteRecords deletes recs from zone and returns them. A record that is not
// there counts as deleted. After an error, the records returned with it are gone.
func (p *Provider) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	var gone []libdns.Record
	for _, rec := range recs {
		got, err := p.do(ctx, opDelete, zone, rec)
		if err != nil {
			return gone, err
		}
		gone = append(gone, got)
	}
	return gone, nil
}

// Check finds out whether the account may be used for records of that name in
// zone, by an operation that changes nothing: the deletion of a TXT record that
// is not there. An API is asked for the zone and its records by it, and a server
// that takes updates checks the key and its update policy. The error says what
// is wrong, as those of other operations do. That an API's key may read but not
// write does not show.
func (p *Provider) Check(ctx context.Context, zone, name string) error {
	rec := libdns.RR{Type: "TXT", Name: name, Data: checkText}
	if _, err := p.do(ctx, opCheck, zone, rec); err != nil {
		return err
	}
	return nil
}

// checkText is the content of the record that Check deletes and nobody adds: no
// challenge has this form.
const checkText = "sluice looks whether it may"

// undo deletes a record whose addition ended in doubt, and reports whether that
// worked. It is a single call; the caller learns why the addition failed.
func (p *Provider) undo(ctx context.Context, zone string, rec libdns.Record) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*p.policy.limit)
	defer cancel()
	start := time.Now()
	c := p.driver.classify(p.once(ctx, opDelete, zone, rec).err)
	p.metrics.observe(p.name, opDelete, c, time.Since(start))
	return c == classOK || c == classMissing
}
