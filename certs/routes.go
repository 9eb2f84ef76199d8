package certs

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// NamesFromRoutes says whether routes have certificates obtained.
type NamesFromRoutes string

const (
	// FromNoRoute: only keys under domains/ do.
	FromNoRoute NamesFromRoutes = "off"
	// FromRoutesExact: for the very names that they need.
	FromRoutesExact NamesFromRoutes = "exact"
	// FromRoutesWildcard: for a name below a zone the wildcard of its parent
	// instead, which other routes share.
	FromRoutesWildcard NamesFromRoutes = "wildcards"
)

// NamesFromRoutesChoices returns all there are.
func NamesFromRoutesChoices() []NamesFromRoutes {
	return []NamesFromRoutes{FromNoRoute, FromRoutesExact, FromRoutesWildcard}
}

// routeSet is what routes need of certificates. A certificate that comes or goes
// concerns the names that it covers, and only routes that need one of these.
type routeSet struct {
	byName   map[string][]string            // of routes: what each needs
	needs    map[string]*need               // by name
	byParent map[string]map[string]*need    // exact ones, by what a wildcard would be of
	derived  map[string]map[string]struct{} // names to be obtained, and the needs that they come of
}

func newRouteSet() routeSet {
	return routeSet{map[string][]string{}, map[string]*need{}, map[string]map[string]*need{}, map[string]map[string]struct{}{}}
}

// need is a name that routes need a certificate for.
type need struct {
	name    string
	by      map[string]struct{} // the routes
	answer  answer
	derived string // the name that is obtained for it; "": none is
}

// cover is how far the certificate of a domain goes.
type cover uint8

const (
	coverNone   cover = iota // there is none, and nobody wants one
	coverFailed              // it is wanted, and attempts have failed
	coverSoon                // it is being obtained
	coverGood                // it holds
)

// answer is what becomes of a need.
type answer struct {
	cover cover
	by    string // the domain; "" where there is none
}

// Need is what one route needs of certificates, and what becomes of that.
type Need struct {
	Missing bool   // something that it needs is not there
	Text    string // for its verdict; "" where there is nothing to say
}

// Deeper is n for a route that takes hosts with more labels than its wildcards
// cover: its verdict does not promise a certificate for these.
func (n Need) Deeper() Need {
	if n.Text != "" {
		n.Text += "; hosts with further labels in the place of the asterisk need certificates of their own"
	}
	return n
}

// SetRoutes notes what routes that came or changed need of certificates: names
// in lower case, exact or wildcard, none for a route that is gone or needs
// nothing. Before it returns, Config.RouteChanged was called for those that need
// something.
func (m *Manager) SetRoutes(changed map[string][]string) {
	m.mu.Lock()
	now := time.Now()
	for name, needs := range changed {
		m.setRoute(name, needs, now)
	}
	m.finish()
	m.mu.Unlock()
	for m.tell() {
	}
}

// setRoute replaces what a route needs. m.mu is held.
func (m *Manager) setRoute(route string, needs []string, now time.Time) {
	rs := &m.routes
	for _, name := range rs.byName[route] {
		if n := rs.needs[name]; !slices.Contains(needs, name) {
			if delete(n.by, route); len(n.by) == 0 {
				m.dropNeed(n, now)
			}
		}
	}
	delete(rs.byName, route)
	delete(m.news.routes, route)
	if len(needs) == 0 {
		return
	}
	rs.byName[route] = needs
	m.news.routes[route] = true
	for _, name := range needs {
		n := rs.needs[name]
		if n == nil {
			n = m.addNeed(name, now)
		}
		n.by[route] = struct{}{}
	}
}

func (m *Manager) addNeed(name string, now time.Time) *need {
	rs := &m.routes
	n := &need{name: name, by: map[string]struct{}{}}
	rs.needs[name] = n
	if parent := parentOf(name); parent != "" {
		if rs.byParent[parent] == nil {
			rs.byParent[parent] = map[string]*need{}
		}
		rs.byParent[parent][name] = n
	}
	m.derive(n, now)
	n.answer = m.answer(name)
	return n
}

func (m *Manager) dropNeed(n *need, now time.Time) {
	rs := &m.routes
	delete(rs.needs, n.name)
	if parent := parentOf(n.name); parent != "" {
		if delete(rs.byParent[parent], n.name); len(rs.byParent[parent]) == 0 {
			delete(rs.byParent, parent)
		}
	}
	m.underive(n, now)
}

// parentOf returns what a wildcard that covers an exact name would be of, "" for
// a wildcard.
func parentOf(name string) string {
	if strings.HasPrefix(name, "*.") {
		return ""
	}
	_, parent, _ := strings.Cut(name, ".")
	return parent
}

// answer works out what becomes of the need of a name. m.mu is held.
func (m *Manager) answer(name string) (best answer) {
	candidates := [...]string{name, ""}
	if parent := parentOf(name); parent != "" {
		candidates[1] = "*." + parent
	}
	for _, c := range candidates {
		if d := m.names[c]; d != nil && d.cover > best.cover {
			best = answer{d.cover, c}
		}
	}
	return best
}

// coverOf returns how far d goes now. m.mu is held.
func (m *Manager) coverOf(d *domain, now time.Time) cover {
	if d.best != nil && now.Before(d.best.Certificate.Leaf.NotAfter) {
		return coverGood
	}
	s := d.status.Load()
	switch {
	case !d.wanted():
		return coverNone
	case s != nil && s.State == StateFailed:
		return coverFailed
	}
	return coverSoon
}

// coverChanged has the routes told that d concerns. m.mu is held.
func (m *Manager) coverChanged(d *domain) {
	m.answerAnew(m.routes.needs[d.name])
	if parent, ok := strings.CutPrefix(d.name, "*."); ok {
		for _, n := range m.routes.byParent[parent] {
			m.answerAnew(n)
		}
	}
}

func (m *Manager) answerAnew(n *need) {
	if n == nil {
		return
	}
	is := m.answer(n.name)
	if is == n.answer {
		return
	}
	n.answer = is
	for route := range n.by {
		m.news.routes[route] = true
	}
}

// saidAtMost bounds how many names a verdict spells out.
const saidAtMost = 3

// Route returns what becomes of the certificates of a route, and false if it
// needs none.
func (m *Manager) Route(name string) (Need, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	needs, ok := m.routes.byName[name]
	if !ok {
		return Need{}, false
	}
	var missing, coming, there []string
	for _, name := range needs {
		switch n := m.routes.needs[name]; {
		case n.answer.cover == coverGood:
			there = appendOnce(there, n.answer.by)
		case m.local != nil: // which signs one
		case n.answer.cover == coverNone:
			missing = append(missing, name)
		default:
			coming = appendOnce(coming, n.answer.by)
		}
	}
	switch {
	case len(missing) > 0:
		return Need{true, fmt.Sprintf("no_certificate: needs %s; put %s", some(missing, ""), some(missing, "domains/"))}, true
	case len(coming) > 0:
		return Need{true, "no_certificate: " + m.comingText(coming)}, true
	case len(there) > 0:
		return Need{false, "certificate " + some(there, "")}, true
	}
	return Need{}, true
}

// comingText says of names that are wanted how they are doing, in words that do
// not change with every attempt. m.mu is held.
func (m *Manager) comingText(names []string) string {
	failed := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return m.names[name].cover != coverFailed })
	if len(failed) == 0 {
		return some(names, "") + " is being obtained"
	}
	var listed, derived []string
	for _, name := range failed {
		if m.names[name].entry != nil {
			listed = append(listed, name)
		} else {
			derived = append(derived, name)
		}
	}
	text := some(failed, "") + " could not be obtained yet"
	if len(listed) > 0 {
		text += "; see the verdict of " + some(listed, "domains/")
	}
	if len(derived) > 0 {
		text += "; put " + some(derived, "domains/") + " to see why"
	}
	return text
}

func appendOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// some writes a list of names, each with a prefix, that is cut where it is long.
func some(names []string, prefix string) string {
	var said []string
	for _, name := range names[:min(len(names), saidAtMost)] {
		said = append(said, prefix+name)
	}
	text := strings.Join(said, ", ")
	if more := len(names) - saidAtMost; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// derivation returns the name to obtain for a need, "" if there is none: where
// routes have none obtained, outside all zones, and where a key under domains/
// covers it. m.mu is held.
func (m *Manager) derivation(name string) string {
	if m.cfg.NamesFromRoutes == FromNoRoute || checkDomain(name) != nil {
		return ""
	}
	provider, zone := m.zone(name)
	if provider == "" {
		return ""
	}
	parent := parentOf(name)
	for _, listed := range [...]string{name, "*." + parent} {
		if d := m.names[listed]; d != nil && d.entry != nil {
			return ""
		}
	}
	if inZone := strings.TrimSuffix(zone, "."); m.cfg.NamesFromRoutes == FromRoutesWildcard && parent != "" && name != inZone {
		return "*." + parent
	}
	return name
}

// derive has a certificate obtained for a need, if routes do. m.mu is held.
func (m *Manager) derive(n *need, now time.Time) {
	name := m.derivation(n.name)
	if name == n.derived {
		return
	}
	m.underive(n, now)
	if n.derived = name; name == "" {
		return
	}
	if m.routes.derived[name] == nil {
		m.routes.derived[name] = map[string]struct{}{}
		d := m.domain(name)
		d.needed = true
		m.want(d, now)
	}
	m.routes.derived[name][n.name] = struct{}{}
}

// underive lets go of what was obtained for a need, if it is the last that needs
// it. m.mu is held.
func (m *Manager) underive(n *need, now time.Time) {
	name := n.derived
	if n.derived = ""; name == "" {
		return
	}
	if delete(m.routes.derived[name], n.name); len(m.routes.derived[name]) > 0 {
		return
	}
	delete(m.routes.derived, name)
	d := m.names[name]
	d.needed = false
	m.want(d, now)
}

// deriveAll looks at all needs again, after the list has changed. m.mu is held.
func (m *Manager) deriveAll(now time.Time) {
	if m.cfg.NamesFromRoutes == FromNoRoute {
		return
	}
	for _, n := range m.routes.needs {
		m.derive(n, now)
	}
}
