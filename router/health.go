package router

import (
	"encoding/json"
	"errors"
	"time"
)

// Health has the targets of a backend checked, whether or not flows try them: a
// target is up if it takes a TCP connection or, with Path, answers a request. The
// zero value stands for the defaults, which WithDefaults fills in. Values are comparable.
type Health struct {
	Interval time.Duration `json:"interval"`                                                 // from one check to the next; 0: 5s
	Timeout  time.Duration `json:"timeout"`                                                  // for one check; 0: 2s, or the interval if that is less
	Rise     int           `json:"rise" range:"1,100" zero:"; leave it out for the default"` // passed in a row after which a target is up; 0: 2
	Fall     int           `json:"fall" range:"1,100" zero:"; leave it out for the default"` // failed in a row after which it is down; 0: 3
	// Path, where not "", has targets of HTTP asked for it by Method ("": GET) with
	// Host ("": the target's address); Status are the answers of one that is up,
	// 200-399 where it is empty.
	Path   string   `json:"path"`
	Method string   `json:"method"`
	Host   string   `json:"host"`
	Status Statuses `json:"status"`
}

const (
	defaultHealthInterval = 5 * time.Second
	defaultHealthTimeout  = 2 * time.Second
	defaultRise           = 2
	defaultFall           = 3

	minHealthInterval = time.Second
	minHealthTimeout  = 100 * time.Millisecond
	maxHealthInterval = time.Hour
)

// WithDefaults returns h with defaults in place of zeros.
func (h Health) WithDefaults() Health {
	if h.Interval == 0 {
		h.Interval = max(defaultHealthInterval, h.Timeout)
	}
	if h.Timeout == 0 {
		h.Timeout = min(defaultHealthTimeout, h.Interval)
	}
	if h.Rise == 0 {
		h.Rise = defaultRise
	}
	if h.Fall == 0 {
		h.Fall = defaultFall
	}
	if h.Path != "" && h.Method == "" {
		h.Method = "GET"
	}
	if h.Path != "" && h.Status.IsZero() {
		_ = h.Status.UnmarshalText([]byte("200-399"))
	}
	return h
}

// Longhand lets "health": true stand for "health": {}.
func (h *Health) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch string(raw) {
	case "true":
		return json.RawMessage("{}"), nil
	case "false":
		return nil, errors.New("is on when present; leave it out for no checks")
	}
	if raw[0] != '{' {
		return nil, fieldErrorf("", "must be true or an object in { }, not %s", describe(raw))
	}
	return raw, nil
}

func (h Health) check(path string) error {
	full := h.WithDefaults()
	switch {
	case full.Interval < minHealthInterval || full.Interval > maxHealthInterval:
		return fieldErrorf(join(path, "interval"), "must be from %v to %v, not %v", minHealthInterval, maxHealthInterval, h.Interval)
	case full.Timeout < minHealthTimeout || full.Timeout > full.Interval:
		return fieldErrorf(join(path, "timeout"), "must be from %v to the interval, %v, not %v", minHealthTimeout, full.Interval, h.Timeout)
	}
	return h.checkHTTP(path)
}

// DiffChecked calls came for every backend with Health that is in t and not in
// old, and gone for every one of which the reverse is true, with the keys that
// they are of. A backend that was edited is another one. It costs nothing where neither table has any, and else
// follows the difference of the mappings, and all routes where those differ.
func (t *Table) DiffChecked(old *Table, came, gone func(key string, b *Backend)) {
	if t.counts.checkedMappings > 0 || old.counts.checkedMappings > 0 {
		t.DiffMappings(old, func(was, is *Mapping) {
			eachChecked(is, came)
			eachChecked(was, gone)
		})
	}
	if t.routes == old.routes || t.counts.checkedRoutes == 0 && old.counts.checkedRoutes == 0 {
		return
	}
	was, is := old.routes.all(), t.routes.all()
	for r := range is {
		if !was[r] && r.isChecked() {
			came(r.Key(), r.Backend)
		}
	}
	for r := range was {
		if !is[r] && r.isChecked() {
			gone(r.Key(), r.Backend)
		}
	}
}

func eachChecked(m *Mapping, f func(string, *Backend)) {
	if m == nil {
		return
	}
	for _, b := range []*Backend{m.Backend, m.HTTP} {
		if b != nil && b.Health != nil {
			f(m.Key(), b)
		}
	}
}

func (m *Mapping) isChecked() bool {
	return m != nil && (m.Backend != nil && m.Backend.Health != nil || m.HTTP != nil && m.HTTP.Health != nil)
}

func (r *Route) isChecked() bool { return r.Backend != nil && r.Backend.Health != nil }

// all returns every route, once each. x may be nil.
func (x *routeIndex) all() map[*Route]bool {
	all := map[*Route]bool{}
	if x == nil {
		return all
	}
	add := func(l *routeList) {
		if l != nil {
			for r := range l.routes.all() {
				all[r] = true
			}
		}
	}
	x.names.each(add)
	if x.regexes != nil {
		x.regexes.sources.each(func(g *regexRoutes) { add(&g.routes) })
	}
	add(x.any)
	return all
}
