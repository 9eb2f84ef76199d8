package router

import "fmt"

// Admission is what a route, or a mapping with HTTP, asks of a request before it
// goes on. It is part of the value that it comes from, and as immutable.
type Admission struct {
	// Name tells whose limits they are: the key of the route or the mapping.
	Name   string      `json:"-"`
	Limits RouteLimits `json:"limits"`
	// BasicAuth, where not nil, says who is let in.
	BasicAuth *BasicAuth `json:"basic_auth"`
	// ForwardAuth, where not nil, is asked then.
	ForwardAuth *ForwardAuth `json:"forward_auth"`
}

// Admission returns what r asks of requests, or nil where that is nothing.
func (r *Route) Admission() *Admission { return r.admission }

// GoesByAddress reports whether it can make a difference to a request what its
// client's address is: by r's lists or limits.
func (r *Route) GoesByAddress() bool {
	if len(r.Allow)+len(r.Deny) > 0 {
		return true
	}
	for i := range r.Limits.Rate {
		if r.Limits.Rate[i].By.byAddress() {
			return true
		}
	}
	for i := range r.Limits.Concurrency {
		if r.Limits.Concurrency[i].By.byAddress() {
			return true
		}
	}
	return false
}

// byAddress reports whether requests may count together by their client's address.
func (b LimitBy) byAddress() bool { return b.Kind == ByClient || b.Kind == ByHeader }

func (a *Admission) empty() bool {
	return a.Limits.empty() && a.BasicAuth == nil && a.ForwardAuth == nil
}

// check refuses what makes no sense; at is where a stands in the value.
func (a *Admission) check(at string, captures []string) error {
	if err := a.Limits.check(join(at, "limits")); err != nil {
		return err
	}
	if a.BasicAuth != nil {
		if err := a.BasicAuth.check(join(at, "basic_auth")); err != nil {
			return err
		}
	}
	if a.ForwardAuth != nil {
		return a.ForwardAuth.check(join(at, "forward_auth"), captures)
	}
	return nil
}

// checkAdmission checks what r asks of requests and sums it up.
func (r *Route) checkAdmission() error {
	a := &Admission{Name: "routes/" + r.Name, Limits: r.Limits, BasicAuth: r.BasicAuth, ForwardAuth: r.ForwardAuth}
	if a.empty() {
		return nil
	}
	r.admission = a
	if f := a.ForwardAuth; f != nil && f.Backend != nil {
		f.Backend.ofRoute = true
	}
	return a.check("", r.Hosts.commonCaptures())
}

// checkAdmission checks what m asks of requests.
func (m *Mapping) checkAdmission() error {
	a := m.Requests
	if a == nil {
		return nil
	}
	if m.HTTP == nil {
		return fieldErrorf("requests", "is about HTTP, and there is no http; leave it out, or bound flows by limits")
	}
	a.Name = m.Key()
	if f := a.ForwardAuth; f != nil && f.Backend != nil {
		for i, t := range f.Backend.Targets {
			if !t.Address.IsLiteral() {
				return fieldErrorf(fmt.Sprintf("requests.forward_auth.backend.targets[%d].address", i),
					"%q holds a variable; a mapping has no captures, use a route", t.Address)
			}
		}
	}
	return a.check("requests", nil)
}
