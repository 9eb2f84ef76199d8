package control

import "github.com/remotegpu/sluice/router"

// state is what somebody last said of the value in force of a key; the zero value is
// that nothing was said.
type state struct {
	text     string
	degraded bool
}

// states are what was said of a value: by SetState, and of the certificates of a
// route by SetCertificate.
type states struct {
	own, certificate state
}

// said returns what a verdict has of it: what is amiss, if anything is, else all.
func (s *states) said() (text string, degraded bool) {
	if s.own.degraded == s.certificate.degraded {
		text = s.own.text
		if text != "" && s.certificate.text != "" {
			text += "; "
		}
		return text + s.certificate.text, s.own.degraded
	}
	if s.own.degraded {
		return s.own.text, true
	}
	return s.certificate.text, true
}

// SetState records what became of the value in force of key after it was
// applied, for its verdict: degraded with "port_busy: ...", or a mere note such
// as "certificate valid until ...". An empty text clears it. It may be called
// from any goroutine, also from within Apply.
func (c *Controller) SetState(key string, degraded bool, text string) {
	c.setState(key, func(s *states) *state { return &s.own }, state{text, degraded})
}

// SetCertificate is SetState for certificates, of which a verdict speaks beside what
// becomes of the value in other ways: those that a route needs, and those that a
// domain asks its clients for. It may be called from within Config.Routes and
// Config.Domains.
func (c *Controller) SetCertificate(key string, degraded bool, text string) {
	c.setState(key, func(s *states) *state { return &s.certificate }, state{text, degraded})
}

func (c *Controller) setState(key string, which func(*states) *state, is state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil || *which(&e.states) == is {
		return
	}
	*which(&e.states) = is
	c.publish(key)
}

// noteRoute has Config.Routes told of a route, nil being one that is gone. c.mu is
// held.
func (c *Controller) noteRoute(name string, r *router.Route) {
	if c.cfg.Routes != nil {
		c.routed[name] = r
	}
}

// takeRouted returns what noteRoute was told since it was last called. c.mu is
// held.
func (c *Controller) takeRouted() map[string]*router.Route {
	if len(c.routed) == 0 {
		return nil
	}
	routed := c.routed
	c.routed = map[string]*router.Route{}
	return routed
}
