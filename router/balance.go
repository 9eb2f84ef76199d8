package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Hash says what HashBalance goes by: exactly one of Header and Cookie.
type Hash struct {
	Header string `json:"header"` // the value of this request header
	Cookie string `json:"cookie"` // the value of this cookie
	// MaxLoad bounds how far above its fair share of the requests under way a
	// target may get before what hashes to it goes to the next one, in percent
	// of that share; 0: without bound.
	MaxLoad int `json:"max_load" range:"101,1000" zero:"; leave it out for no bound"`
}

// Sticky has a client stay at a target by a cookie that the node issues. Its
// value tells nobody which target that is.
type Sticky struct {
	Cookie string `json:"cookie"` // the name
	// MaxAge is how long browsers keep it; 0: until they are closed.
	MaxAge time.Duration `json:"max_age"`
	// SameSite is "lax" (as is ""), "strict" or "none".
	SameSite string `json:"same_site"`
}

// Retry says when a request that failed at one target is sent again. The zero
// value stands for the defaults, which WithDefaults fills in.
type Retry struct {
	Attempts int      `json:"attempts" range:"1,10" zero:"; leave it out for the default"` // tries after the first; 0: 2
	On       []string `json:"on"`                                                          // of RetryReasons; empty: connect and reset
	// TryTimeout bounds the wait for the response head of each try; one that
	// takes longer counts as failed. 0: no bound but the route's.
	TryTimeout time.Duration `json:"try_timeout"`
	// Budget bounds what is sent again to this share of the requests of the last
	// ten seconds, in percent; 0: 20. MinPerSecond may be sent again in any
	// case; 0: 3.
	Budget       int `json:"budget" range:"1,100" zero:"; leave it out for the default"`
	MinPerSecond int `json:"min_per_second" range:"1,1000" zero:"; leave it out for the default"`
}

// RetryReason is a set of what a request may be sent again for.
type RetryReason uint8

// What may go wrong with a try.
const (
	RetryConnect RetryReason = 1 << iota // no connection: nothing was sent
	RetryReset                           // the connection ended before the response's head
	Retry502                             // these statuses
	Retry503
	Retry504
	RetryTimeout // TryTimeout is over
)

// RetryReasons are the names of the reasons, in their order. That a try took too
// long is no word of a value: try_timeout says it.
var RetryReasons = []string{"connect", "reset", "502", "503", "504"}

// WithDefaults returns r with defaults in place of zeros.
func (r Retry) WithDefaults() Retry {
	if r.Attempts == 0 {
		r.Attempts = 2
	}
	if r.Budget == 0 {
		r.Budget = 20
	}
	if r.MinPerSecond == 0 {
		r.MinPerSecond = 3
	}
	return r
}

// Reasons returns On, or its default, as a set.
func (r *Retry) Reasons() RetryReason {
	set := RetryReason(0)
	for _, on := range r.On {
		for i, name := range RetryReasons {
			if on == name {
				set |= 1 << i
			}
		}
	}
	if set == 0 {
		set = RetryConnect | RetryReset
	}
	if r.TryTimeout > 0 {
		set |= RetryTimeout
	}
	return set
}

// Eject has targets passed over for a while after their exchanges failed. The
// zero value stands for the defaults, which WithDefaults fills in. Values are
// comparable.
type Eject struct {
	Failures  int  `json:"failures" range:"1,100" zero:"; leave it out for the default"` // in a row; 0: 5
	Status5xx bool `json:"status_5xx"`                                                   // responses with such a status are failures too
	// Time is for how long the first time, twice as long each time after that
	// up to MaxTime; 0: 10s and 5m.
	Time    time.Duration `json:"time"`
	MaxTime time.Duration `json:"max_time"`
}

// WithDefaults returns e with defaults in place of zeros.
func (e Eject) WithDefaults() Eject {
	if e.Failures == 0 {
		e.Failures = 5
	}
	if e.Time == 0 {
		e.Time = 10 * time.Second
	}
	if e.MaxTime == 0 {
		e.MaxTime = max(5*time.Minute, e.Time)
	}
	return e
}

// orTrue lets true stand for {}.
func orTrue(raw json.RawMessage, without string) (json.RawMessage, error) {
	switch string(raw) {
	case "true":
		return json.RawMessage("{}"), nil
	case "false":
		return nil, errors.New("is on when present; leave it out for " + without)
	}
	if raw[0] != '{' {
		return nil, fieldErrorf("", "must be true or an object in { }, not %s", describe(raw))
	}
	return raw, nil
}

// Longhand lets "retry": true stand for "retry": {}.
func (r *Retry) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	return orTrue(raw, "none but those of targets that take no connection")
}

// Longhand lets "eject": true stand for "eject": {}.
func (e *Eject) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	return orTrue(raw, "none")
}

// checkBalance checks how a target is chosen and kept.
func (b *Backend) checkBalance(path string) error {
	known := []string{RoundRobin, LeastConnections, LeastRequests, PowerOfTwo, SourceHash, HashBalance}
	if b.Balance != "" && !contains(known, b.Balance) {
		return fieldErrorf(join(path, "balance"), "%q is not known; known: %s", b.Balance, strings.Join(known, ", "))
	}
	switch {
	case b.Balance == HashBalance && b.Hash == nil:
		return fieldErrorf(join(path, "hash"), "is missing; give {\"header\": \"<name>\"} or {\"cookie\": \"<name>\"}, or write \"balance\": \"source_hash\" to go by the client's address")
	case b.Balance != HashBalance && b.Hash != nil:
		return fieldErrorf(join(path, "hash"), "has no meaning without \"balance\": \"hash\"; add that, or leave it out")
	}
	if err := b.Hash.check(join(path, "hash")); err != nil {
		return err
	}
	if err := b.checkSticky(join(path, "sticky")); err != nil {
		return err
	}
	return b.checkZones(path)
}

func (h *Hash) check(path string) error {
	switch {
	case h == nil:
		return nil
	case (h.Header == "") == (h.Cookie == ""):
		return fieldErrorf(path, "goes by one thing; give either header or cookie")
	case h.Header != "" && !isToken(h.Header):
		return fieldErrorf(join(path, "header"), "%q is not a header name", h.Header)
	case h.Cookie != "" && !isToken(h.Cookie):
		return fieldErrorf(join(path, "cookie"), "%q is not a cookie's name", h.Cookie)
	}
	return nil
}

func (b *Backend) checkSticky(path string) error {
	s := b.Sticky
	if s == nil {
		return nil
	}
	switch s.SameSite {
	case "", "lax", "strict", "none":
	default:
		return fieldErrorf(join(path, "same_site"), "%q is not known; write \"lax\", \"strict\" or \"none\"", s.SameSite)
	}
	switch {
	case s.Cookie == "":
		return fieldErrorf(join(path, "cookie"), "is missing; give the name of the cookie to be issued")
	case !isToken(s.Cookie):
		return fieldErrorf(join(path, "cookie"), "%q is not a cookie's name", s.Cookie)
	case s.MaxAge != 0 && (s.MaxAge < time.Second || s.MaxAge > 400*24*time.Hour):
		return fieldErrorf(join(path, "max_age"), "must be from 1s to 9600h, not %v; leave it out for as long as the browser is open", s.MaxAge)
	}
	return b.checkNoVariables(path)
}

// checkNoVariables refuses at path what needs to know the targets beforehand.
func (b *Backend) checkNoVariables(path string) error {
	for _, t := range b.Targets {
		if !t.Address.IsLiteral() {
			return fieldErrorf(path, "cannot be had for %q, which a variable makes another target for every request", t.Address)
		}
	}
	return nil
}

func (b *Backend) checkZones(path string) error {
	zoned := false
	for i, t := range b.Targets {
		if err := checkPrintable(fmt.Sprintf("%s.targets[%d].zone", path, i), t.Zone); err != nil {
			return err
		}
		zoned = zoned || t.Zone != ""
	}
	if b.PreferZone && !zoned {
		return fieldErrorf(join(path, "prefer_zone"), "has nothing to go by; give the targets their zone: {\"address\": \"10.0.0.7:80\", \"zone\": \"hk-1\"}")
	}
	return nil
}

// checkFailing checks what is done about failures.
func (b *Backend) checkFailing(path string) error {
	if r := b.Retry; r != nil {
		for i, on := range r.On {
			if !contains(RetryReasons, on) {
				return fieldErrorf(fmt.Sprintf("%s.retry.on[%d]", path, i), "%q is not known; known: %s", on, strings.Join(RetryReasons, ", "))
			}
		}
		if r.TryTimeout != 0 && r.TryTimeout < time.Millisecond {
			return fieldErrorf(join(path, "retry.try_timeout"), "must be 1ms or more, not %v", r.TryTimeout)
		}
	}
	if b.Eject != nil {
		full := b.Eject.WithDefaults()
		switch {
		case full.Time < time.Second:
			return fieldErrorf(join(path, "eject.time"), "must be 1s or more, not %v", full.Time)
		case full.MaxTime < full.Time || full.MaxTime > 24*time.Hour:
			return fieldErrorf(join(path, "eject.max_time"), "must be from time, %v, to 24h, not %v", full.Time, full.MaxTime)
		}
	}
	return nil
}

// onlyHTTP returns the first field of b that has a meaning for HTTP alone, or "".
func (b *Backend) onlyHTTP() string {
	switch {
	case b.Balance == LeastRequests || b.Balance == HashBalance:
		return "balance"
	case b.Sticky != nil:
		return "sticky"
	case b.Retry != nil:
		return "retry"
	case b.Eject != nil:
		return "eject"
	case b.Health != nil && b.Health.Path != "":
		return "health.path"
	}
	return ""
}
