package control

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"unicode/utf8"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// put takes a key's value from etcd and reports whether that is news. A value
// that is refused leaves the key's last good one in force. c.mu is held.
func (c *Controller) put(key, value string, rev int64) (news bool) {
	e := c.entries[key]
	if e == nil {
		e = &entry{}
		c.entries[key] = e
	} else if e.rev == rev && e.value == value && e.heldRev == 0 {
		return false
	}
	c.unhold(key, e)
	e.value, e.rev = value, rev
	if err := c.take(key, e); err != nil && !c.atOdds[key] { // of those, decide tells
		c.cfg.Logger.Warn("refused a value", "key", key, "rev", rev, "err", err, "last_good_rev", e.goodRev)
	}
	return true
}

// take puts e's value in force, or notes why it is refused.
func (c *Controller) take(key string, e *entry) error {
	err := c.accept(key, e.value, e.rev)
	delete(c.atOdds, key)
	delete(c.lacking, key)
	if err != nil {
		if _, odds := errors.AsType[*oddsError](err); odds {
			c.atOdds[key], c.contested = true, true
		}
		c.noteYielding(key)
		if _, lacks := errors.AsType[*lackError](err); lacks || e.kept.rev != 0 {
			c.lacking[key] = true
			select {
			case c.lacked <- struct{}{}:
			default:
			}
		}
		c.setRefused(e, err.Error())
		return err
	}
	c.took(key, e)
	return nil
}

// took notes that e's value has been put in force.
func (c *Controller) took(key string, e *entry) {
	c.setRefused(e, "")
	if p, ok := c.removed[key]; ok && e.goodRev == 0 {
		e.states = p
	}
	if e.goodRev == 0 {
		c.good++
		c.guard.came(key)
	} else if _, ok := c.contenders[key]; ok {
		c.overtaken[key] = lastGood{e.good, e.goodRev}
	}
	e.good, e.goodRev, e.kept = e.value, e.rev, lastGood{}
	c.print(key, e)
	c.noteUnsaved(key)
}

// tookOld is took of a value that is not the one in etcd, which is refused or gone.
func (c *Controller) tookOld(key string, e *entry, old lastGood) {
	now, why := lastGood{e.value, e.rev}, e.refused
	e.value, e.rev = old.value, old.rev
	c.took(key, e)
	e.value, e.rev = now.value, now.rev
	if e.heldRev == 0 {
		c.setRefused(e, why)
	}
}

// setRefused notes why e's value is refused, and counts.
func (c *Controller) setRefused(e *entry, why string) {
	if (e.refused == "") != (why == "") {
		if why != "" {
			c.metrics.refused.Inc()
		} else {
			c.metrics.refused.Dec()
		}
	}
	e.refused = why
}

// accept parses one value and puts it in force, or says why not.
func (c *Controller) accept(key, value string, rev int64) error {
	k, err := router.ParseKey(key)
	if err != nil {
		return err
	}
	if !utf8.ValidString(value) {
		return fmt.Errorf("the value is not UTF-8: %q; write it in UTF-8", aroundBadText(value))
	}
	switch k.Kind {
	case router.KindMapping:
		return c.acceptMapping(key, k, value, rev)
	case router.KindRoute:
		r, err := router.ParseRoute(k.Name, []byte(value))
		if err == nil {
			err = c.checkBackend("backend", r.Backend)
		}
		if err == nil {
			err = c.checkRouteHere(r)
		}
		if err == nil {
			err = c.checkBasicAuth("basic_auth", r.BasicAuth)
		}
		if err != nil {
			return err
		}
		r.Rev = rev
		c.builder.SetRoute(r)
		c.noteRoute(k.Name, r)
		c.dirty.table = true
	case router.KindDomain:
		d, err := router.ParseDomain(k.Name, []byte(value))
		if err != nil {
			return err
		}
		d.Rev = rev
		c.domains[key] = d
		c.dirty.domains = true
		c.dirty.table = c.builder.SetDomain(d) || c.dirty.table
	case router.KindName:
		n, err := router.ParsePublishedName(k.Name, []byte(value))
		if err != nil {
			return err
		}
		n.Rev = rev
		c.names[key] = n
		c.dirty.names = true
	case router.KindPool:
		return c.acceptPool(key, k.Name, value)
	}
	return nil
}

// aroundBadText returns what is around the first bytes of s that are no UTF-8.
func aroundBadText(s string) string {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return s[max(0, i-10):min(len(s), i+5)]
			}
		}
	}
	return s
}

func (c *Controller) acceptMapping(key string, k router.Key, value string, rev int64) error {
	if !c.cfg.Ports.Contains(k.Port) {
		return fmt.Errorf("port %d lies outside this node's ports (%v); choose one of these or widen ports in sluice.yaml", k.Port, c.cfg.Ports)
	}
	m, err := router.ParseMapping(k.Proto, k.Port, []byte(value))
	if err != nil {
		return err
	}
	if err := c.checkPrivate(m); err != nil {
		return err
	}
	if err := c.checkBackend("http", m.HTTP); err != nil {
		return err
	}
	if m.Requests != nil {
		if err := c.checkBasicAuth("requests.basic_auth", m.Requests.BasicAuth); err != nil {
			return err
		}
	}
	m.Rev = rev
	if err := c.checkLoop(m, c.builder.Mapping); err != nil {
		return err
	}
	c.setMapping(key, m)
	return nil
}

func (c *Controller) setMapping(key string, m *router.Mapping) {
	c.noteLeaving(key)
	if c.canLoop(m) {
		c.contenders[key] = struct{}{}
	}
	c.builder.SetMapping(m)
	c.dirty.table = true
}

// checkBackend refuses a backend, nil being none, that this node cannot connect
// to as it is meant.
func (c *Controller) checkBackend(path string, b *router.Backend) error {
	if b == nil || c.cfg.Backend == nil {
		return nil
	}
	return lacking(path, c.cfg.Backend(b))
}

// checkBasicAuth refuses what this node has no file for.
func (c *Controller) checkBasicAuth(path string, b *router.BasicAuth) error {
	if b == nil || c.cfg.BasicAuth == nil {
		return nil
	}
	return lacking(path, c.cfg.BasicAuth(b))
}

// lacking makes of err, which may be nil, what the node lacks for the field path.
func lacking(path string, err error) error {
	if field, ok := errors.AsType[*router.FieldError](err); ok {
		err = &router.FieldError{Path: path + "." + field.Path, Msg: field.Msg}
	}
	if err != nil {
		return &lackError{err}
	}
	return nil
}

// checkPrivate refuses a mapping to what the node has for itself: through one,
// everybody would seem to come from this machine.
func (c *Controller) checkPrivate(m *router.Mapping) error {
	if m.Proto != router.TCP {
		return nil
	}
	return c.checkHere(m.Backends(), c.cfg.Private, "which a mapping would open to everybody; give the address of a service")
}

// checkRouteHere refuses a route to what the node has for itself, and one to the
// node's own listeners, from which its requests would come back.
func (c *Controller) checkRouteHere(r *router.Route) error {
	if err := c.checkHere(r.Backends(), c.cfg.Private, "which a route would open to everybody; give the address of a service"); err != nil {
		return err
	}
	return c.checkHere(r.Backends(), c.cfg.Public, "from which it would be routed again, without end; give the address at which the service itself listens")
}

// checkHere refuses backends that lead, by an address or the name localhost, to
// where the node itself is; what says what of it that is.
func (c *Controller) checkHere(backends []router.FieldBackend, what func(netip.AddrPort) string, why string) error {
	if what == nil || c.cfg.Own == nil {
		return nil
	}
	found, ok := router.Chains{Own: c.cfg.Own}.Find(backends, what)
	if !ok {
		return nil
	}
	return &router.FieldError{Path: found.Field, Msg: fmt.Sprintf("%s is %s of this node, %s", found.Target, found.What, why)}
}

func (c *Controller) acceptPool(key, service, value string) error {
	p, err := portpool.Parse(service, []byte(value))
	if err == nil {
		err = p.CheckWithin(c.cfg.Ports)
	}
	if err != nil {
		others := slices.DeleteFunc(slices.Collect(maps.Values(c.pools)), func(p *portpool.Pool) bool { return p.Service == service })
		return portpool.Propose(err, []byte(value), c.cfg.Ports, others)
	}
	if err := checkApart(p, c.pools); err != nil {
		return err
	}
	c.setPool(key, p)
	return nil
}

func (c *Controller) setPool(key string, p *portpool.Pool) {
	c.noteLeaving(key)
	c.contenders[key] = struct{}{}
	c.pools[p.Service] = p
	if e := c.entries[key]; c.cfg.Pool != nil && e != nil {
		text := c.cfg.Pool(p)
		e.own = state{text, text != ""}
	}
}

// remove takes a deleted key's value out of force. c.mu is held.
func (c *Controller) remove(key string) {
	e := c.entries[key]
	if e == nil {
		return
	}
	delete(c.entries, key)
	delete(c.atOdds, key)
	delete(c.lacking, key)
	c.unhold(key, e)
	c.setRefused(e, "")
	if e.goodRev != 0 {
		c.guard.went(key)
		c.takeOut(key, e)
	} else if e.kept.rev != 0 {
		c.noteUnsaved(key)
	}
}

// takeOut takes the value of key that is in force out of it. c.mu is held.
func (c *Controller) takeOut(key string, e *entry) {
	c.good--
	c.unprint(e)
	c.noteUnsaved(key)
	c.noteLeaving(key)
	k, err := router.ParseKey(key)
	if err != nil {
		return // was never in force
	}
	switch k.Kind {
	case router.KindMapping:
		c.builder.DeleteMapping(k.Proto, k.Port)
		c.dirty.table = true
	case router.KindRoute:
		c.builder.DeleteRoute(k.Name)
		c.noteRoute(k.Name, nil)
		c.dirty.table = true
	case router.KindDomain:
		delete(c.domains, key)
		c.dirty.domains = true
		c.dirty.table = c.builder.DeleteDomain(k.Name) || c.dirty.table
		// Put again in the same batch, it is the domain it was, and nobody is
		// going to say once more how its certificate fares.
		c.removed[key] = e.states
	case router.KindName:
		delete(c.names, key)
		c.dirty.names = true
	case router.KindPool:
		delete(c.pools, k.Name)
	}
}

// publish writes the verdict of key, or takes it back where the key is gone.
// c.mu is held. Before the first full load nothing is written: what is in force
// then came from disk, not from a revision of etcd.
func (c *Controller) publish(key string) {
	e := c.entries[key]
	switch {
	case c.rev == 0:
	case e == nil:
		c.cfg.Verdicts.Delete(key)
	default:
		c.cfg.Verdicts.Set(key, e.verdict())
	}
}
