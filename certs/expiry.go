package certs

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"log/slog"
	"math"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// stage is how near to its end a certificate has come without being renewed.
type stage int

const (
	calm   stage = iota
	soon         // a fifth of its life is left: renewal has failed for long
	urgent       // a fifteenth is
	expired
)

const (
	soonPart   = 5
	urgentPart = 15
	// soonMost bounds soon for certificates that hold for years.
	soonMost = 30 * 24 * time.Hour
	// sayEvery is how often the log repeats that a certificate nears its end.
	sayEvery = 24 * time.Hour
)

// stageOf returns the stage of what is served for d, which is not nil: the last
// of all certificates at hand counts, since it will be served then.
func (m *Manager) stageOf(d *domain, now time.Time) stage {
	best := stage(math.MaxInt)
	for _, s := range d.stored {
		if !s.Gone || s == d.best {
			best = min(best, stageAt(s, now))
		}
	}
	return best
}

func stageAt(s *Stored, now time.Time) stage {
	soonAt, urgentAt := stagesOf(s)
	switch {
	case !now.Before(s.Certificate.Leaf.NotAfter):
		return expired
	case !now.Before(urgentAt):
		return urgent
	case !now.Before(soonAt):
		return soon
	}
	return calm
}

// stagesOf returns when the stages soon and urgent begin.
func stagesOf(s *Stored) (soonAt, urgentAt time.Time) {
	leaf := s.Certificate.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotAfter.Add(-min(life/soonPart, soonMost)), leaf.NotAfter.Add(-min(life/urgentPart, soonMost/3))
}

// warn logs that a certificate nears its end, the louder the nearer. m.mu is
// held.
func (m *Manager) warn(d *domain, s *Status, now time.Time) {
	is := calm
	if d.best != nil {
		is = m.stageOf(d, now)
	}
	if is == calm || is == d.stage && now.Sub(d.said) < sayEvery {
		d.stage = is
		return
	}
	d.stage, d.said = is, now
	level, text := slog.LevelWarn, "a certificate expires soon and is not renewed"
	switch is {
	case urgent:
		level, text = slog.LevelError, "a certificate is about to expire and is not renewed"
	case expired:
		level, text = slog.LevelError, "a certificate has expired and is not renewed"
	}
	m.log.Log(context.Background(), level, text, "domain", d.name, "until", s.NotAfter, "err", s.Err)
}

// pick returns which of the certificates that are stored for a name is served,
// nil if there is none: one that holds, one that was not deleted since, one that
// an operator brought, the newest.
func pick(all []*Stored, now time.Time) (best *Stored) {
	for _, s := range all {
		if best == nil || better(s, best, now) {
			best = s
		}
	}
	return best
}

func better(a, b *Stored, now time.Time) bool {
	la, lb := a.Certificate.Leaf, b.Certificate.Leaf
	holdsA, holdsB := holds(a, now), holds(b, now)
	switch {
	case holdsA != holdsB:
		return holdsA
	case !holdsA:
		return la.NotAfter.After(lb.NotAfter)
	case a.Gone != b.Gone:
		return b.Gone
	case (a.Issuer == Imported) != (b.Issuer == Imported):
		return a.Issuer == Imported
	case !la.NotBefore.Equal(lb.NotBefore):
		return la.NotBefore.After(lb.NotBefore)
	}
	return la.NotAfter.After(lb.NotAfter)
}

// holds reports whether the certificate is in its time.
func holds(s *Stored, now time.Time) bool {
	leaf := s.Certificate.Leaf
	return !now.Before(leaf.NotBefore) && now.Before(leaf.NotAfter)
}

// renewal returns when to renew a certificate and, if the authority is to be
// asked again before when it wants that (ARI, RFC 9773), when.
func renewal(s *Stored) (at, ask time.Time) {
	leaf := s.Certificate.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	spread := share(s.Name)
	// With a third of its life left, and the names of a cluster one after the
	// other from there on.
	at = leaf.NotAfter.Add(-life / 3).Add(part(life/12, spread))
	var meta struct {
		IssuerData acme.Certificate `json:"issuer_data"`
	}
	if json.Unmarshal(s.Meta, &meta) != nil || meta.IssuerData.RenewalInfo == nil {
		return at, time.Time{}
	}
	info := meta.IssuerData.RenewalInfo
	if !info.HasWindow() {
		return at, time.Time{}
	}
	at = info.SelectedTime // chosen at random by whoever asked, and stored
	if at.IsZero() {
		at = info.SuggestedWindow.Start.Add(part(info.SuggestedWindow.End.Sub(info.SuggestedWindow.Start), spread))
	}
	if last := leaf.NotAfter.Add(-life / 20); at.After(last) {
		at = last // whatever the authority wants
	}
	if info.RetryAfter != nil {
		ask = *info.RetryAfter
	}
	return at, ask
}

// share maps a name to a number from 0 to 1, evenly.
func share(text string) float64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return float64(mix(h.Sum64())>>11) / (1 << 53)
}

// mix spreads what differs in a few bits over all of them (the end of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func part(d time.Duration, share float64) time.Duration { return time.Duration(float64(d) * share) }
