package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

// State is where a name stands.
type State string

const (
	// StateObtaining: there is no certificate yet; one is being obtained.
	StateObtaining State = "obtaining"
	// StateObtained: there is a certificate and it holds. Should its renewal
	// fail, Status.Err says why.
	StateObtained State = "obtained"
	// StateFailed: there is no certificate that holds, and Status.Err says why.
	StateFailed State = "failed"
)

// Status is how one name is doing.
type Status struct {
	Name     string
	Provider string    // chosen DNS provider; empty: none could be chosen
	State    State     // never empty
	NotAfter time.Time // until when the certificate holds; zero: there is none
	Err      error     // what the last attempt came to; nil: it succeeded, or is the first
	Retry    time.Time // when the next attempt begins; zero: no attempt failed, or none will help
	Trouble  error     // why the DNS provider cannot be used, by its last check; nil: it can, or was not checked
}

// String puts the status in a line for a verdict: "obtained until 2026-12-31T00:00:00Z",
// "obtaining", "failed: why; next attempt at ...". Where the last attempt went well
// and the next would not, it says so.
func (s Status) String() string {
	text := string(s.State)
	if s.State == StateObtained {
		text += " until " + s.NotAfter.UTC().Format(time.RFC3339)
	}
	switch {
	case s.Err == nil && s.Trouble != nil:
		return text + "; no attempt will succeed as things are: " + reason(s.Trouble)
	case s.Err == nil:
		return text
	case s.State == StateFailed:
		text += ": "
	default:
		text += "; the last attempt to renew it failed: "
	}
	text += reason(s.Err)
	if !s.Retry.IsZero() {
		text += "; next attempt at " + s.Retry.UTC().Format(time.RFC3339)
	}
	return text
}

// reason leaves out of a long chain of errors everything but the words of the
// DNS provider or of the authority, if it has any.
func reason(err error) string {
	if de, ok := errors.AsType[*dns.Error](err); ok {
		return de.Error()
	}
	if ce, ok := errors.AsType[*dns01.Error](err); ok {
		return ce.Error()
	}
	if limit, ok := errors.AsType[*LimitError](err); ok {
		return limit.Error()
	}
	if p, ok := errors.AsType[acme.Problem](err); ok {
		return fmt.Sprintf("the certificate authority says: %s (%s, status %d)", p.Detail, p.Type, p.Status)
	}
	return err.Error()
}

// domain is a name that is, or was, in the list, and its certificate.
type domain struct {
	name   string
	cert   atomic.Pointer[tls.Certificate] // nil: none yet; never modified, always with its Leaf
	status atomic.Pointer[Status]          // never nil once the domain is in an index

	// Guarded by Manager.mu.
	asked    Domain // the entry
	provider string // provider that it comes to
	refused  error  // why no attempt would help; nil: attempts are made
}

// noRetry is a pause before the next attempt that says there will be none.
const noRetry time.Duration = -1

// begin notes the certificate at hand or, if there is none that holds, that one
// is being obtained.
func (d *domain) begin(provider string) {
	s := &Status{Name: d.name, Provider: provider, State: StateObtaining}
	d.holds(s)
	d.status.Store(s)
}

// fail notes why there is no new certificate and when the next attempt begins.
func (d *domain) fail(provider string, err error, pause time.Duration) {
	s := &Status{Name: d.name, Provider: provider, State: StateFailed, Err: err}
	if pause != noRetry {
		s.Retry = time.Now().Add(pause)
	}
	d.holds(s)
	d.status.Store(s)
}

// holds completes s with the certificate at hand, if there is one that holds.
func (d *domain) holds(s *Status) {
	cert := d.cert.Load()
	if cert == nil {
		return
	}
	s.NotAfter = cert.Leaf.NotAfter
	if time.Now().Before(s.NotAfter) {
		s.State = StateObtained
	}
}

// choose returns the provider for an entry, or why there is none, or what else
// keeps the name from having a certificate.
func (m *Manager) choose(asked Domain) (string, error) {
	provider := asked.Provider
	if err := checkDomain(asked.Name); err != nil {
		return "", err
	}
	if err := m.cfg.checkIssuer(asked.Issuer); err != nil {
		return "", err
	}
	known := slices.Sorted(maps.Keys(m.cfg.Providers))
	list := strings.Join(known, ", ")
	switch {
	case len(known) == 0:
		return "", errors.New("no DNS provider is configured: add one to sluice.yaml, such as dns: {main: {provider: cloudflare, api_token: ...}}")
	case provider == "" && len(known) > 1:
		return "", fmt.Errorf("several DNS providers are configured: say which one with {\"provider\": ...}, one of %s", list)
	case provider == "":
		return known[0], nil
	case m.cfg.Providers[provider] == nil:
		return "", fmt.Errorf("DNS provider %q is not configured: use one of %s, or add it under dns in sluice.yaml", provider, list)
	}
	return provider, nil
}
