package router

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// RouteLimits bound what the requests of a route may take. Zero means no limit,
// everywhere.
type RouteLimits struct {
	Body        Bytes       `json:"body"`        // of one request
	BodyRate    Bytes       `json:"body_rate"`   // at least, per second, while the client has the node wait for it
	Rate        Rates       `json:"rate"`        // of requests
	Concurrency Concurrency `json:"concurrency"` // of requests
}

func (l *RouteLimits) empty() bool {
	return l.Body == 0 && l.BodyRate == 0 && len(l.Rate) == 0 && len(l.Concurrency) == 0
}

func (l *RouteLimits) check(at string) error {
	if err := l.Rate.check(join(at, "rate")); err != nil {
		return err
	}
	return l.Concurrency.check(join(at, "concurrency"))
}

// maxLimits bounds the limits of one kind that a request is held against.
const maxLimits = 4

// Rates are limits to the requests in a time. One may be written without its
// list.
type Rates []Rate

// Rate lets through so many requests in a time, evenly, and Burst at once after
// a pause.
type Rate struct {
	Requests int           `json:"requests" range:"1,1000000"`
	Per      time.Duration `json:"per"`                     // 0: one second
	Burst    int           `json:"burst" range:"1,1000000"` // 0: as Requests
	By       LimitBy       `json:"by"`
}

// The shortest and the longest time that Per may be, and how long a burst may
// take to come back.
const (
	minRateTime   = time.Second
	maxRateTime   = 24 * time.Hour
	maxBurstTime  = 7 * 24 * time.Hour
	rateByDefault = time.Second
)

// Every returns the time that one request takes of the limit, and Full that of a
// whole burst.
func (r *Rate) Every() time.Duration {
	per := r.Per
	if per == 0 {
		per = rateByDefault
	}
	return per / time.Duration(max(r.Requests, 1))
}

// Full returns how long a burst takes to come back.
func (r *Rate) Full() time.Duration {
	burst := r.Burst
	if burst == 0 {
		burst = r.Requests
	}
	return r.Every() * time.Duration(burst)
}

// Longhand lets one rate stand for a list of one.
func (*Rates) Longhand(raw json.RawMessage) (json.RawMessage, error) { return oneOrList(raw) }

func oneOrList(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '{':
		return json.Marshal([]json.RawMessage{raw})
	case '[':
		return raw, nil
	}
	return nil, fieldErrorf("", "must be an object in { } or a list of them, not %s", describe(raw))
}

func (l Rates) check(field string) error {
	if len(l) > maxLimits {
		return fieldErrorf(field, "has %d limits; at most %d are taken", len(l), maxLimits)
	}
	for i := range l {
		r, at := &l[i], fmt.Sprintf("%s[%d]", field, i)
		switch {
		case r.Requests == 0:
			return fieldErrorf(at+".requests", "is missing; give how many requests are let through in \"per\"")
		case r.Per != 0 && (r.Per < minRateTime || r.Per > maxRateTime):
			return fieldErrorf(at+".per", "must be from 1s to 24h, not %v", r.Per)
		case time.Duration(max(r.Burst, 1)) > maxBurstTime/r.Every():
			return fieldErrorf(at+".burst", "would take longer than %v to come back; at this rate at most %d can be", maxBurstTime, int64(maxBurstTime/r.Every()))
		}
		for j := range i {
			if l[j].By == r.By && l[j].Every()*time.Duration(l[j].Requests) == r.Every()*time.Duration(r.Requests) {
				return fieldErrorf(at, "counts by %q in the same time as %s[%d]; keep one", r.By, field, j)
			}
		}
	}
	return nil
}

// Concurrency are limits to the requests at a time. One may be written without
// its list.
type Concurrency []Concurrent

// Concurrent lets so many requests go on at a time; upgraded ones count until
// they end.
type Concurrent struct {
	Requests int     `json:"requests" range:"1,1000000"`
	By       LimitBy `json:"by"`
}

// Longhand lets one limit stand for a list of one.
func (*Concurrency) Longhand(raw json.RawMessage) (json.RawMessage, error) { return oneOrList(raw) }

func (l Concurrency) check(field string) error {
	if len(l) > maxLimits {
		return fieldErrorf(field, "has %d limits; at most %d are taken", len(l), maxLimits)
	}
	for i := range l {
		at := fmt.Sprintf("%s[%d]", field, i)
		if l[i].Requests == 0 {
			return fieldErrorf(at+".requests", "is missing; give how many requests may go on at a time")
		}
		for j := range i {
			if l[j].By == l[i].By {
				return fieldErrorf(at, "counts by %q as %s[%d] does; keep one", l[i].By, field, j)
			}
		}
	}
	return nil
}

// LimitBy says which requests a limit counts together. The zero value has all
// those of the route or mapping. Values are comparable.
type LimitBy struct {
	Kind   LimitKind
	Header string // of ByHeader, in lower case
}

// LimitKind is a kind of LimitBy.
type LimitKind uint8

// The kinds of LimitBy.
const (
	ByAll    LimitKind = iota // all requests of the route or mapping
	ByEnv                     // all requests of the environment, whichever route or mapping they come by
	ByClient                  // the route's requests from one client address (of IPv6, one /64)
	ByHeader                  // the route's requests with one value of a header; without it as ByClient
)

// UnmarshalText reads "all", "env", "client", or "header:" and a name.
func (b *LimitBy) UnmarshalText(text []byte) error {
	s := string(text)
	switch s {
	case "all":
		*b = LimitBy{}
		return nil
	case "env":
		*b = LimitBy{Kind: ByEnv}
		return nil
	case "client":
		*b = LimitBy{Kind: ByClient}
		return nil
	}
	name, ok := strings.CutPrefix(s, "header:")
	if !ok || !isToken(name) {
		return fieldErrorf("", "%q is not known; write \"all\", \"env\", \"client\", or \"header:\" and a name such as \"header:X-Api-Key\"", s)
	}
	*b = LimitBy{Kind: ByHeader, Header: strings.ToLower(name)}
	return nil
}

// String returns the value as it is written.
func (b LimitBy) String() string {
	if b.Kind == ByHeader {
		return "header:" + b.Header
	}
	return [...]string{"all", "env", "client"}[b.Kind]
}
