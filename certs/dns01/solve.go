package dns01

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3/acme"

	"github.com/remotegpu/sluice/certs/dns"
)

const (
	// ttl is asked for challenge records, in case a resolver keeps one.
	ttl = time.Minute
	// cleanLimit bounds the deletion of a record, which goes on when everything
	// else has been called off. One operation of a provider ends well before.
	cleanLimit = time.Minute
)

// Challenges meets the challenges of the domains that chose one provider. It
// implements Solver and Waiter of acmez. All methods are safe for concurrent
// use.
type Challenges struct {
	s     *Solver
	asked string
}

// For returns what meets the challenges of domains that chose provider, a key
// under `dns:`. The records of names that are delegated into another provider's
// zones go there.
func (s *Solver) For(provider string) *Challenges { return &Challenges{s, provider} }

// Present adds the record of a challenge where it has to be. The error is an
// *Error, which wraps a *dns.Error where the provider refused.
func (c *Challenges) Present(ctx context.Context, ch acme.Challenge) error {
	rec := record{ch.DNS01TXTRecordName(), ch.DNS01KeyAuthorization()}
	if err := c.s.present(ctx, rec, c.asked); err != nil {
		return &Error{rec.name, err}
	}
	return nil
}

// Wait blocks until the record that Present added is published. The error is an
// *Error.
func (c *Challenges) Wait(ctx context.Context, ch acme.Challenge) error {
	s, rec := c.s, record{ch.DNS01TXTRecordName(), ch.DNS01KeyAuthorization()}
	p := s.find(rec)
	if p == nil {
		return &Error{rec.name, errors.New("its record was not added")}
	}
	start := time.Now()
	how, err := s.wait(ctx, p.place, rec.value)
	s.metrics.waited(p.provider.Name(), how, time.Since(start))
	if err != nil {
		return &Error{rec.name, err}
	}
	s.log.Debug("challenge record published", "record", p.place.name, "zone", p.place.zone, "took", time.Since(start))
	return nil
}

// CleanUp deletes the record of a challenge, whatever became of ctx, and whether
// or not Present succeeded. What cannot be deleted now is noted and deleted by
// Run later; the error, an *Error, says why.
func (c *Challenges) CleanUp(ctx context.Context, ch acme.Challenge) error {
	s, rec := c.s, record{ch.DNS01TXTRecordName(), ch.DNS01KeyAuthorization()}
	p := s.find(rec)
	if p == nil {
		return nil // it was never added, and is known not to be there
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	defer s.drop(rec)
	if _, err := p.provider.DeleteRecords(ctx, p.place.zone, []libdns.Record{p.rec}); err != nil {
		s.log.Warn("challenge record left behind; its deletion will be tried again", "record", p.place.name, "zone", p.place.zone, "err", err)
		s.metrics.left.Inc()
		return &Error{rec.name, err}
	}
	s.forget(ctx, p.key)
	return nil
}

func (s *Solver) find(rec record) *presented {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.presented[rec]
}

func (s *Solver) drop(rec record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.presented, rec)
}

// present adds rec. What is noted before is forgotten again only once the record
// is known to be gone.
func (s *Solver) present(ctx context.Context, rec record, asked string) error {
	at, err := s.locate(ctx, rec.name, asked)
	if err != nil {
		return err
	}
	provider, err := s.choose(at.zone, asked)
	if err != nil {
		return s.delegated(rec, at, err)
	}
	s.clear(ctx, at.name, certificateOf(ctx))
	rr := libdns.RR{Type: "TXT", Name: libdns.RelativeName(at.name, at.zone), Data: rec.value, TTL: ttl}
	p := &presented{place: at, provider: provider, rec: rr}
	if p.key, err = s.note(ctx, p, rec.value); err != nil {
		return fmt.Errorf("note down the record, so that it is deleted even if this node dies: %w", err)
	}
	s.log.Debug("adding challenge record", "record", at.name, "zone", at.zone, "provider", provider.Name())
	got, err := provider.AppendRecords(ctx, at.zone, []libdns.Record{rr})
	if err != nil {
		if de, ok := errors.AsType[*dns.Error](err); ok && !de.Left {
			s.forget(context.WithoutCancel(ctx), p.key)
			return s.delegated(rec, at, err)
		}
	}
	if len(got) == 1 {
		p.rec = got[0]
	}
	s.mu.Lock()
	s.presented[rec] = p // also after a failure that left it: CleanUp tries again
	s.mu.Unlock()
	if err != nil {
		return s.delegated(rec, at, err)
	}
	return nil
}

// delegated adds to an error where the name of the challenge has led, if it was
// elsewhere.
func (s *Solver) delegated(rec record, at place, err error) error {
	if same(rec.name, at.name) {
		return err
	}
	return fmt.Errorf("it is delegated to %s: %w", strings.TrimSuffix(at.name, "."), err)
}

// certificateOf returns what WithCertificate put there; empty: it was not called.
func certificateOf(ctx context.Context) string {
	name, _ := ctx.Value(certificateKey{}).(string)
	return name
}
