package router

// Admission is what a route, or a mapping with HTTP, asks of a request before it
// goes on. It is part of the value that it comes from, and as immutable.
type Admission struct {
	// Name tells whose limits they are: the key of the route or the mapping.
	Name   string      `json:"-"`
	Limits RouteLimits `json:"limits"`
	// BasicAuth, where not nil, says who is let in.
	BasicAuth *BasicAuth `json:"basic_auth"`
}

// Admission returns what r asks of requests, or nil where that is nothing.
func (r *Route) Admission() *Admission { return r.admission }

func (a *Admission) empty() bool { return a.Limits.empty() && a.BasicAuth == nil }

// check refuses what makes no sense; at is where a stands in the value.
func (a *Admission) check(at string) error {
	if err := a.Limits.check(join(at, "limits")); err != nil {
		return err
	}
	if a.BasicAuth != nil {
		return a.BasicAuth.check(join(at, "basic_auth"))
	}
	return nil
}

// checkAdmission checks what r asks of requests and sums it up.
func (r *Route) checkAdmission() error {
	a := &Admission{Name: "routes/" + r.Name, Limits: r.Limits, BasicAuth: r.BasicAuth}
	if a.empty() {
		return nil
	}
	r.admission = a
	return a.check("")
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
	return a.check("requests")
}
