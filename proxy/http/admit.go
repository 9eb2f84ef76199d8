package http

import (
	"encoding/binary"
	"hash/maphash"
	"strconv"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

const sayRate = "too many requests; try again later\n"

// admit holds x against what its route or mapping asks of requests. It returns
// the answer that refuses x, or nil.
func (s *Server) admit(x *exchange, p *router.Admission) *answer {
	if p == nil {
		return nil
	}
	l := &p.Limits
	if len(l.Concurrency) > 0 && !s.limiter.enter(x, p) {
		return x.refuse(endConcurrency, tooMany("too many requests are under way; try again in a moment\n", time.Second))
	}
	if wait := s.limiter.takeRates(x, p); wait > 0 {
		return x.refuse(endRate, tooMany(sayRate, wait))
	}
	if l.Body > 0 && x.req.upgrade == "" && x.body.size() > int64(l.Body) {
		return x.refuse(endBodySize, plain(413, sayBodySize))
	}
	if p.BasicAuth != nil {
		if refusal := s.authenticate(x, p.BasicAuth); refusal != nil {
			return refusal
		}
	}
	if p.ForwardAuth != nil {
		if refusal := s.ask(x, p.ForwardAuth); refusal != nil {
			return refusal
		}
	}
	return nil
}

// refuse has x end by a, for a reason that log and metrics tell.
func (x *exchange) refuse(why string, a *answer) *answer {
	x.out.end = why
	return a
}

// tooMany returns an answer that asks the client to wait (RFC 6585 section 4).
func tooMany(say string, wait time.Duration) *answer {
	seconds := (wait + time.Second - 1) / time.Second
	return &answer{status: 429, body: say, fields: []field.Line{
		noStore[0], {Name: "Retry-After", Value: strconv.FormatInt(int64(max(seconds, 1)), 10)},
	}}
}

// limiter counts requests against limits. Those that a limit counts together
// share a tag, which no client can work out: it depends on a seed of the
// process. Two things with one tag would share a count, which among 2^64 tags
// does not happen.
type limiter struct {
	seed  maphash.Seed
	epoch time.Time // what buckets count time from
	rates buckets
	going slots
}

func newLimiter() *limiter {
	return &limiter{seed: maphash.MakeSeed(), epoch: time.Now()}
}

// takeRates is take, for a p that may be nil or have no rates.
func (l *limiter) takeRates(x *exchange, p *router.Admission) (wait time.Duration) {
	if p == nil || len(p.Limits.Rate) == 0 {
		return 0
	}
	return l.take(x, p)
}

// take counts x against the rates of p. Where one of them is used up it returns
// for how long, and x has been counted against none.
func (l *limiter) take(x *exchange, p *router.Admission) (wait time.Duration) {
	now := int64(x.began.Sub(l.epoch))
	rates := p.Limits.Rate
	for i := range rates {
		r := &rates[i]
		every := int64(r.Every())
		tag := l.rateTag(x, p, r)
		if wait := l.rates.take(tag, now, every, int64(r.Full())); wait > 0 {
			for j := range i {
				l.rates.giveBack(l.rateTag(x, p, &rates[j]), int64(rates[j].Every()))
			}
			return time.Duration(wait)
		}
	}
	return 0
}

// rateTag returns the tag of the bucket that r takes x out of. Within one route an
// edit of Requests or Burst goes on with the same bucket. Those of an environment
// are of one pair of numbers each: a bucket that a small limit finds empty may be
// next to full by a large one.
func (l *limiter) rateTag(x *exchange, p *router.Admission, r *router.Rate) uint64 {
	rule := [2]uint64{uint64(r.Every()) * uint64(r.Requests)}
	if r.By.Kind == router.ByEnv && x.out.env != "" {
		rule[1] = uint64(r.Requests)<<32 | uint64(r.Full()/r.Every())
	}
	return l.tag(x, p, r.By, rule)
}

// enter counts x against the concurrency of p until leave, or against nothing
// and returns false.
func (l *limiter) enter(x *exchange, p *router.Admission) bool {
	limits := p.Limits.Concurrency
	for i := range limits {
		tag := l.tag(x, p, limits[i].By, [2]uint64{})
		if !l.going.enter(tag, limits[i].Requests) {
			l.leave(x)
			return false
		}
		x.held = append(x.held, tag)
	}
	return true
}

// leave ends what enter began.
func (l *limiter) leave(x *exchange) {
	for _, tag := range x.held {
		l.going.leave(tag)
	}
	x.held = x.held[:0]
}

// tag returns what stands for those that a limit counts x together with. Limits
// whose rule differs count apart.
func (l *limiter) tag(x *exchange, p *router.Admission, by router.LimitBy, rule [2]uint64) uint64 {
	whose, value, kind := p.Name, "", by.Kind
	switch kind {
	case router.ByEnv:
		if x.out.env != "" {
			whose = x.out.env
		} else {
			kind = router.ByAll
		}
	case router.ByHeader:
		if value = x.req.header.Get(by.Header); value == "" {
			kind = router.ByClient
		}
	}
	var h maphash.Hash
	h.SetSeed(l.seed)
	h.WriteByte(byte(kind))
	h.WriteString(whose)
	switch kind {
	case router.ByClient:
		addr := x.client.Addr().Unmap()
		bytes, end := addr.As16(), 16
		if addr.Is6() {
			end = 8 // a client has a /64 at least
		}
		h.WriteByte(0)
		h.Write(bytes[:end])
	case router.ByHeader:
		h.WriteByte(0)
		h.WriteString(by.Header)
		h.WriteByte(0)
		h.WriteString(value)
	}
	var bytes [16]byte
	binary.LittleEndian.PutUint64(bytes[:8], rule[0])
	binary.LittleEndian.PutUint64(bytes[8:], rule[1])
	h.Write(bytes[:])
	return h.Sum64()
}
