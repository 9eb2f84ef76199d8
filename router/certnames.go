package router

import (
	"net/netip"
	"regexp/syntax"
	"strings"
)

// CertNames are the names that certificates have to bear for the hosts of a
// route: exact ones and wildcards, of which each covers one label (RFC 9525
// section 6.3).
type CertNames struct {
	Names []string // in lower case, each once
	// Open says that the route answers to hosts beside those of Names, which
	// cannot be told from its patterns, or which no certificate would cover.
	Open bool
	// Deeper says that an expression of the route takes hosts with further labels
	// in the place of a wildcard's one, such as a.b.x-gpu.com where Names has
	// *.x-gpu.com. Open holds, too.
	Deeper bool
}

// CertNames returns what the route needs of certificates; nothing where TLS does
// not end here, or where the route answers on none of the https listeners'
// ports.
func (r *Route) CertNames(https []int) (c CertNames) {
	if r.Passthrough() {
		return c
	}
	serves := false
	for _, port := range https {
		serves = serves || r.onPort(port, false)
	}
	if !serves {
		return c
	}
	for _, p := range r.Hosts {
		switch p.kind {
		case hostExact:
			c.add(p.name)
		case hostWildcard: // which stands for any number of labels here
			c.add("*" + p.name)
			c.Open = true
		case hostRegex:
			for _, name := range p.re.certs.Names {
				c.add(name)
			}
			c.Open = c.Open || p.re.certs.Open
			c.Deeper = c.Deeper || p.re.certs.Deeper
		case hostAny:
			c.Open = true
		}
	}
	c.Deeper = c.Deeper && len(c.Names) > 0
	return c
}

func (c *CertNames) add(name string) {
	if _, err := netip.ParseAddr(name); err == nil || !strings.Contains(strings.TrimPrefix(name, "*."), ".") {
		c.Open = true // an address, or localhost: no authority proves who has it
		return
	}
	if !contains(c.Names, name) {
		c.Names = append(c.Names, name)
	}
}

// A shape is what texts that an expression matches look like: characters of
// hosts, and these.
const (
	shapeBegin = '^'
	shapeEnd   = '$'
	shapeLabel = '*' // any number of characters that are not dots
	shapeAny   = '#' // any number of characters
)

const (
	maxShapes = 16 // of one expression; beyond that nothing is told
	maxExact  = 4  // characters of a class that are told apart
)

var anyShape = []string{string(shapeAny)}

// certNamesOf returns the names that certificates need for the hosts that re
// matches: for ^env-(?<id>[a-z0-9-]+)\.remotegpu\.com$ it is *.remotegpu.com.
func certNamesOf(re *syntax.Regexp) (c CertNames) {
	for _, s := range shapesOf(re) {
		s, begins := strings.CutPrefix(s, string(shapeBegin))
		if !begins {
			s = string(shapeAny) + s
		}
		s, ends := strings.CutSuffix(s, string(shapeEnd))
		if strings.ContainsAny(s, "^$") {
			continue // a begin within: no host is like that
		}
		if !ends {
			c.Open = true
			continue
		}
		c.addShape(s)
	}
	return c
}

func (c *CertNames) addShape(s string) {
	last := strings.LastIndexAny(s, "*#")
	if last < 0 {
		if !validName(s) {
			return // matches no host
		}
		c.add(s)
		return
	}
	dot := strings.IndexByte(s[last:], '.')
	if dot < 0 || !validName(s[last+dot+1:]) {
		c.Open = true
		return
	}
	first := s[:last+dot] // what is in the place of the first label
	switch {
	case strings.IndexByte(first, shapeAny) >= 0: // it, or more labels
		c.Open, c.Deeper = true, true
	case strings.IndexByte(first, '.') >= 0: // always more labels
		c.Open = true
		return
	}
	c.add("*" + s[last+dot:])
}

// shapesOf returns the shapes of the texts that re matches; none: it matches no
// host.
func shapesOf(re *syntax.Regexp) []string {
	switch re.Op {
	case syntax.OpNoMatch:
		return nil
	case syntax.OpBeginText:
		return []string{string(shapeBegin)}
	case syntax.OpEndText:
		return []string{string(shapeEnd)}
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return []string{""}
	case syntax.OpLiteral:
		if text, ok := literalText(re); ok {
			return []string{text}
		}
		return nil
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return classShapes(re)
	case syntax.OpCapture:
		return shapesOf(re.Sub[0])
	case syntax.OpConcat:
		all := []string{""}
		for _, sub := range re.Sub {
			all = crossShapes(all, shapesOf(sub))
		}
		return all
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			all = unionShapes(all, shapesOf(sub))
		}
		return all
	case syntax.OpQuest:
		return unionShapes([]string{""}, shapesOf(re.Sub[0]))
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		return repeatShapes(re)
	}
	return anyShape
}

// classShapes tells a few characters apart, and else only whether a dot is among
// them.
func classShapes(re *syntax.Regexp) []string {
	class, _ := classOf(re)
	var all []string
	for c := byte('-'); c <= 'z'; c++ {
		if class.has(c) && (c == '-' || c == '.' || c == '_' || c >= '0' && c <= '9' || c >= 'a') {
			all = append(all, string(rune(c)))
		}
	}
	switch {
	case len(all) <= maxExact:
		return all
	case class.has('.'):
		return anyShape
	}
	return []string{string(shapeLabel)}
}

func repeatShapes(re *syntax.Regexp) []string {
	sub := shapesOf(re.Sub[0])
	if re.Op == syntax.OpRepeat && re.Min == 1 && re.Max == 1 {
		return sub
	}
	for _, s := range sub {
		if strings.ContainsAny(s, ".#^$") {
			return anyShape
		}
	}
	return []string{string(shapeLabel)}
}

// crossShapes returns every shape of a with every one of b behind it.
func crossShapes(a, b []string) (all []string) {
	if len(a)*len(b) > maxShapes {
		return anyShape
	}
	for _, x := range a {
		for _, y := range b {
			all = unionShapes(all, []string{x + y})
		}
	}
	return all
}

func unionShapes(a, b []string) []string {
	for _, s := range b {
		if !contains(a, s) {
			a = append(a, s)
		}
	}
	if len(a) > maxShapes {
		return anyShape
	}
	return a
}
