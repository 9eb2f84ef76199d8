package certs

import (
	"errors"
	"fmt"
	"strings"
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
	// StateExpiring: it holds, but should have been renewed long ago.
	StateExpiring State = "expiring"
	// StateFailed: there is no certificate that holds, and Status.Err says why.
	StateFailed State = "failed"
)

// Status is how one name is doing, on every node of a cluster alike.
type Status struct {
	Name     string
	Provider string    // chosen DNS provider; empty: none could be chosen
	State    State     // never empty
	Issuer   string    // of the certificate that is served, as in Stored; empty: there is none
	NotAfter time.Time // until when it holds; zero: there is none
	Err      error     // what the last attempt came to; nil: it succeeded, or is the first
	Node     string    // the node that made that attempt, or is at one now; empty: none, or this one alone knows
	Retry    time.Time // when the next attempt begins; zero: no attempt failed, or none will help
	Staple   error     // what is wrong with the OCSP response that the certificate asks for, as this node sees it; nil: nothing, or it asks for none
	Unusable error     // why the DNS provider cannot be used, by this node's last check of it; nil: it can, or is not needed

	// Here is why this node does not use what is stored, or takes no part in
	// obtaining it, such as a key that it lacks; nil: it does. Other nodes may
	// well do.
	Here error
	// Derived says that a route needs it, and that there is no key under domains/.
	Derived bool

	left string // of StateExpiring, in words
}

// Trouble reports whether somebody should have a look.
func (s Status) Trouble() bool {
	return s.Err != nil || s.Here != nil || s.Staple != nil || s.Unusable != nil || s.State == StateExpiring
}

// String puts the status in a line for a verdict: "obtained until 2026-12-31T00:00:00Z",
// "obtaining by hk1", "failed: hk1: why; next attempt at ...", "expires in 5
// days, at ...; ...". Where the last attempt went well and the next would not, it
// says so.
func (s Status) String() string {
	text := s.words()
	if s.Here != nil {
		if s.State == StateFailed && s.Err == nil {
			text = "failed on this node: " + s.Here.Error()
		} else {
			text += "; on this node: " + s.Here.Error()
		}
	}
	if s.Staple != nil {
		text += "; " + strings.ReplaceAll(s.Staple.Error(), "\n", "; ")
	}
	return text
}

// words is String without what is so on this node alone.
func (s Status) words() string {
	text := string(s.State)
	until := s.NotAfter.UTC().Format(time.RFC3339)
	switch s.State {
	case StateObtained:
		text += " until " + until
	case StateExpiring:
		text = "expires in " + s.left + ", at " + until
	case StateObtaining:
		if s.Node != "" {
			text += " by " + s.Node
		}
	}
	switch {
	case s.Err == nil && s.Unusable != nil:
		return text + "; no attempt will succeed as things are: " + reason(s.Unusable)
	case s.Err == nil:
		return text
	case s.State == StateFailed:
		text += ": "
	case s.State == StateObtaining:
		text += "; the last attempt failed: "
	default:
		text += "; the last attempt to renew it failed: "
	}
	if s.Node != "" {
		text += s.Node + ": "
	}
	text += s.Err.Error()
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

// judge works out the status of d and notes it as news if it is one. m.mu is
// held.
func (m *Manager) judge(d *domain, now time.Time) {
	if d.wanted() {
		s := m.statusOf(d, now)
		d.status.Store(s)
		if text := s.String(); text != d.was {
			d.was = text
			m.news.domains[d.name] = true
		}
		m.warn(d, s, now)
	}
	if is := m.coverOf(d, now); d.cover != is {
		d.cover = is
		m.coverChanged(d)
	}
}

// statusOf works out the status of d, which is wanted. m.mu is held.
func (m *Manager) statusOf(d *domain, now time.Time) *Status {
	s := &Status{Name: d.name, Provider: d.provider, State: StateObtaining, Derived: d.entry == nil}
	last := d.attempt
	issued, _ := d.holding(now)
	if d.own.Ended.After(last.Ended) {
		last = d.own
	}
	switch {
	case d.refused != nil:
		s.Err, s.State = d.refused, StateFailed
	case last.Err != "" && !last.over(issued) && !d.idle(now):
		s.Err, s.Node, s.Retry = errors.New(last.Err), last.FailedAt, last.Next
		s.State = StateFailed
	case d.attempt.underWay(now):
		s.Node = d.attempt.Node
	}
	if s.Here = d.trouble; s.Here == nil {
		s.Here = m.cfg.Store.Lacking(d.name)
	}
	if d.best == nil || d.best.Issuer != Imported {
		s.Unusable = m.faults.of(d.provider, d.name)
	}
	if d.best == nil {
		if s.Here != nil {
			s.State = StateFailed
		}
		return s
	}
	if d.staple != nil {
		s.Staple = d.staple.trouble(now)
	}
	s.Issuer, s.NotAfter = d.best.Issuer, d.best.Certificate.Leaf.NotAfter
	switch stage := m.stageOf(d, now); {
	case stage == expired && s.Err == nil:
		s.Err, s.State = fmt.Errorf("its certificate expired at %s", s.NotAfter.UTC().Format(time.RFC3339)), StateFailed
	case stage == expired:
		s.State = StateFailed
	case stage == calm:
		s.State = StateObtained
	default:
		s.State, s.left = StateExpiring, inWords(s.NotAfter.Sub(now))
	}
	return s
}

// inWords writes how much time is left, so coarsely that it seldom changes.
func inWords(d time.Duration) string {
	n, unit := int(d/(24*time.Hour)), "day"
	switch {
	case d < time.Hour:
		return "less than an hour"
	case d < 48*time.Hour:
		n, unit = int(d/time.Hour), "hour"
	}
	return strings.TrimSuffix(fmt.Sprintf("%d %ss", n, unit), plural(n))
}

func plural(n int) string {
	if n == 1 {
		return "s"
	}
	return ""
}
