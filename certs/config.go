package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

// Config says where certificates come from and where they are kept. It must not
// be modified after it was passed to New.
type Config struct {
	// Store has accounts, keys, certificates, locks, and what else the nodes of
	// the cluster share. It is needed.
	Store Store
	// Node is this node's name.
	Node string
	// Nodes returns the names of the nodes that live, of which one is to begin
	// with an order. It may take as long as ctx allows. Nil: this one is alone.
	Nodes func(ctx context.Context) ([]string, error)
	// TurnEvery is how long after it the next node begins with an order that
	// the one before it has not made. 0: 5 seconds.
	TurnEvery time.Duration
	// NamesFromRoutes says whether routes have certificates obtained for the
	// names that they need, where these lie in the zones of Providers. Empty:
	// FromNoRoute.
	NamesFromRoutes NamesFromRoutes
	// DataDir holds the development CA, ca.pem and ca.key.
	DataDir string
	// LocalCA makes the development CA sign a certificate for any name that
	// has no other.
	LocalCA bool

	// Issuers are the authorities that certificates come from; where one fails
	// or takes no more orders the next has its turn. Empty: Let's Encrypt.
	Issuers []Issuer
	// FallBackAfter is how many attempts in a row have to fail at an issuer for
	// the next one to have its turn. 0: 3.
	FallBackAfter int

	// Resolvers are asked where a zone begins and who serves it; host or
	// host:port. Empty: the system's.
	Resolvers []string
	// Propagation says when a challenge record counts as published. Empty:
	// dns01.RuleAll.
	Propagation dns01.Rule
	// PropagationDelay is waited where nobody can be asked whether the record is
	// published. 0: 30 seconds.
	PropagationDelay time.Duration
	// PropagationTimeout is how long a record may take to be published. 0: 2
	// minutes. Negative: the authority is told without looking or waiting.
	PropagationTimeout time.Duration
	// Providers are the DNS providers, by their key under `dns:`.
	Providers map[string]*dns.Provider

	// RetryMin and RetryMax bound the pause after a failed attempt, which
	// doubles every time. 0: 5 seconds, and 1 hour.
	RetryMin, RetryMax time.Duration
	// CheckEvery is how long a certificate that was just obtained is left alone,
	// whatever it says of itself. 0: 10 minutes.
	CheckEvery time.Duration

	// Changed, if set, is called after the Status of name has changed, and
	// for every name that joins the list or gets another provider, as soon as
	// Run has seen it; what is new is in Status. RouteChanged is called
	// likewise for a route whose Need has changed. Calls come one at a time, from
	// Run and SetRoutes, and must neither block nor call SetRoutes.
	Changed      func(name string)
	RouteChanged func(route string, need Need)
	checked      func(provider, zone string, err error) // nil: nobody is told of it
	// Logger gets what happens to certificates. Nil: nobody does.
	Logger *slog.Logger
	// Registerer gets the metrics. Nil: nobody does.
	Registerer prometheus.Registerer
}

// withDefaults returns c with every default filled in.
func (c Config) withDefaults() Config {
	if len(c.Issuers) == 0 {
		c.Issuers = make([]Issuer, 1)
	}
	c.Issuers = slices.Clone(c.Issuers)
	for i := range c.Issuers {
		c.Issuers[i] = c.Issuers[i].withDefaults()
	}
	if c.FallBackAfter == 0 {
		c.FallBackAfter = 3
	}
	if c.PropagationTimeout == 0 {
		c.PropagationTimeout = 2 * time.Minute
	}
	if c.PropagationDelay == 0 {
		c.PropagationDelay = 30 * time.Second
	}
	if c.Propagation == "" {
		c.Propagation = dns01.RuleAll
	}
	if c.RetryMin == 0 {
		c.RetryMin = 5 * time.Second
	}
	if c.RetryMax == 0 {
		c.RetryMax = max(time.Hour, c.RetryMin)
	}
	if c.CheckEvery == 0 {
		c.CheckEvery = 10 * time.Minute
	}
	if c.TurnEvery == 0 {
		c.TurnEvery = 5 * time.Second
	}
	if c.NamesFromRoutes == "" {
		c.NamesFromRoutes = FromNoRoute
	}
	if c.Changed == nil {
		c.Changed = func(string) {}
	}
	if c.RouteChanged == nil {
		c.RouteChanged = func(string, Need) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate returns everything that is wrong with c, in words. It reads the files
// of Issuers, writes nothing and contacts nobody.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Store == nil {
		bad("certificates: no store to keep them in")
	}
	if c.NamesFromRoutes != "" && !slices.Contains(NamesFromRoutesChoices(), c.NamesFromRoutes) {
		bad("acme.names_from_routes %q: want off, exact or wildcards", c.NamesFromRoutes)
	}
	if c.LocalCA && c.DataDir == "" {
		bad("local_ca: no place to keep it: set data to a directory")
	}
	names := map[string]bool{}
	for _, i := range c.Issuers {
		if err := i.check(); err != nil {
			errs = append(errs, err)
		}
		if names[i.Name] {
			bad("issuer %s: there are two of that name: give each its own", i.Name)
		}
		names[i.Name] = true
	}
	if c.FallBackAfter < 0 {
		bad("acme.fall_back_after %d: want 1 or more", c.FallBackAfter)
	}
	for _, r := range c.Resolvers {
		if !isHostPort(r) {
			bad("acme.resolvers %q: want a DNS server as host or host:port", r)
		}
	}
	if c.Propagation != "" && !slices.Contains(dns01.Rules(), c.Propagation) {
		bad("acme.propagation %q: want all, majority or delay", c.Propagation)
	}
	if c.PropagationDelay < 0 {
		bad("acme.propagation_delay %v: want a duration of 0s or more", c.PropagationDelay)
	}
	if c.RetryMin < 0 || c.RetryMax < 0 || c.CheckEvery < 0 || c.TurnEvery < 0 || (c.RetryMax > 0 && c.RetryMax < c.RetryMin) {
		bad("certificates: retry from %v to %v, check every %v: want durations of 0s or more, in order", c.RetryMin, c.RetryMax, c.CheckEvery)
	}
	return errors.Join(errs...)
}

// isHostPort reports whether s is a host or an address, with or without a port.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, "53"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err == nil || validHost(strings.ToLower(host))
}
