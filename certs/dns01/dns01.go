// Package dns01 proves control of names to an ACME authority by DNS records
// (DNS-01, RFC 8555 section 8.4): it finds where the record of a challenge has
// to be, has a provider add it, waits until the zone's servers answer with it,
// and sees that it goes again, whatever happens.
//
// It asks DNS itself. Resolvers are asked for zones and for addresses only, and
// never for the name of a challenge: what they remember of its absence would
// outlast it (RFC 2308). That name is looked up at the authoritative servers of
// its zone, where _acme-challenge may be delegated by CNAME or NS.
//
// Package certs hands For's result to certmagic, and runs Run beside it. It
// never decides which names have certificates.
package dns01

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs/dns"
)

// Rule says when a record counts as published.
type Rule string

const (
	// RuleAll: every server of the zone that answers has it.
	RuleAll Rule = "all"
	// RuleMajority: more than half of the zone's servers have it, those that do
	// not answer included.
	RuleMajority Rule = "majority"
	// RuleDelay: Config.Delay has passed. Nobody is asked.
	RuleDelay Rule = "delay"
)

// Rules are all rules.
func Rules() []Rule { return []Rule{RuleAll, RuleMajority, RuleDelay} }

// Config says whom to ask and how long to wait. It must not be modified after
// it was passed to New.
type Config struct {
	// Resolvers are asked where a zone begins and who serves it; host or
	// host:port, in this order until one answers. Empty: the system's. One that
	// answers for a zone with authority counts among the zone's servers.
	Resolvers []string
	// Rule says when a record counts as published. Empty: RuleAll.
	Rule Rule
	// Delay is waited where that cannot be found out. 0: 30 seconds.
	Delay time.Duration
	// Timeout is how long a record may take to be published. 0: 2 minutes.
	// Negative: the authority is told without looking or waiting.
	Timeout time.Duration
	// Providers are the DNS providers, by their key under `dns:`.
	Providers map[string]*dns.Provider
	// Memory keeps note of the records that are there, so that those of a node
	// that died are deleted by another. Nil: no note is kept.
	Memory Memory
	// Stale is the age at which a record in Memory belongs to nobody any more: it
	// must exceed the longest attempt to obtain a certificate. 0: an hour.
	Stale time.Duration
	// Checked, if set, is called with what became of each check of a provider; a
	// nil err says that it may be used. Calls come from one goroutine at a time
	// for each provider and must not block.
	Checked func(provider, zone string, err error)
	// Logger gets what happens to records. Nil: nobody does.
	Logger *slog.Logger
	// Registerer gets the metrics. Nil: nobody does.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	if c.Rule == "" {
		c.Rule = RuleAll
	}
	if c.Delay == 0 {
		c.Delay = 30 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.Stale == 0 {
		c.Stale = time.Hour
	}
	if c.Memory == nil {
		c.Memory = forgetful{}
	}
	if c.Checked == nil {
		c.Checked = func(string, string, error) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Solver adds and deletes the records of challenges. Make one with New; the
// zero value is not usable. All methods are safe for concurrent use.
type Solver struct {
	cfg     Config
	log     *slog.Logger
	ask     asker
	metrics *metrics
	process string // tells the notes of this process from others'
	poke    chan struct{}

	mu        sync.Mutex             // guards the following
	presented map[record]*presented  // not cleaned up yet
	ahead     map[string]time.Time   // when notes of a time to come were met, by their keys
	names     map[string]string      // providers of the names to check with, by name
	checks    map[string]checkResult // by provider and zone
}

// record is the identity of a challenge record: wildcard and apex share the
// name and differ in the value.
type record struct {
	name  string // _acme-challenge.x.test, as the authority will ask for it
	value string
}

// presented is a record that is there, or may be.
type presented struct {
	place    place
	provider *dns.Provider
	rec      libdns.Record // as the provider knows it
	key      string        // of the note in Memory
}

// New checks cfg and starts nothing. Without resolvers it reads the system's.
func New(cfg Config) (*Solver, error) {
	cfg = cfg.withDefaults()
	if !slices.Contains(Rules(), cfg.Rule) {
		return nil, fmt.Errorf("propagation %q: want all, majority or delay", cfg.Rule)
	}
	resolvers, err := resolversOf(cfg.Resolvers)
	if err != nil {
		return nil, err
	}
	return &Solver{
		cfg:       cfg,
		log:       cfg.Logger,
		ask:       asker{resolvers: resolvers, limit: answerLimit, port: "53"},
		metrics:   newMetrics(cfg.Registerer),
		process:   rand.Text(),
		poke:      make(chan struct{}, 1),
		presented: map[record]*presented{},
		ahead:     map[string]time.Time{},
		names:     map[string]string{},
		checks:    map[string]checkResult{},
	}, nil
}

// Error is a challenge that could not be met. Its text is for people.
type Error struct {
	Name string // of the challenge record
	Err  error
}

// Error returns one line, for example: challenge _acme-challenge.x.test: no
// resolver says which zone x.test is in: ...
func (e *Error) Error() string { return fmt.Sprintf("challenge %s: %v", e.Name, e.Err) }

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// certificateKey is where WithCertificate keeps the name.
type certificateKey struct{}

// WithCertificate says to Present which certificate an attempt is for, by the
// name whose lock the caller holds: nobody else is at work on it, and records
// that were left by earlier attempts for it are deleted at once.
func WithCertificate(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, certificateKey{}, name)
}

// choose returns the provider for a zone: the one whose entry lists it, that of
// the domain first, else the domain's, unless that lists others.
func (s *Solver) choose(zone, asked string) (*dns.Provider, error) {
	own := s.cfg.Providers[asked]
	if own != nil && slices.Contains(own.Zones(), zone) {
		return own, nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Providers)) {
		if p := s.cfg.Providers[name]; slices.Contains(p.Zones(), zone) {
			return p, nil
		}
	}
	switch {
	case own == nil:
		return nil, fmt.Errorf("DNS provider %q is not configured, and no other lists zone %s", asked, zone)
	case len(own.Zones()) > 0:
		return nil, fmt.Errorf("zone %s is not among the zones of DNS provider %s (%s) nor of any other: add it to the one that has it",
			zone, asked, strings.Join(own.Zones(), ", "))
	}
	return own, nil
}

// errStopped says that somebody else's context has ended, in words.
var errStopped = errors.New("called off")
