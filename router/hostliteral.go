package router

import (
	"cmp"
	"regexp/syntax"
	"slices"
	"strings"
)

// literal is text that a host must hold: at its begin, at its end, both (it is
// the host) or anywhere.
type literal struct {
	begin, end bool
	text       string
}

const (
	maxLiterals = 16 // in a set of which a host must hold one
	maxNeeds    = 8  // sets, of one expression
)

// requiredLiterals returns sets of literals, the most telling first: a host that
// re, which is simplified, matches holds at least one of each set. It may return
// none. An empty set says that re matches nothing.
//
// The begin and the end of a host are taken for characters of their own that ^
// and $ stand for, so that every literal is found in the same way.
func requiredLiterals(re *syntax.Regexp) [][]literal {
	f := factsOf(re)
	sets := f.needs
	if f.exact != nil {
		sets = append(sets, f.exact)
	} else {
		sets = append(sets, f.prefix, f.suffix)
	}
	sets = slices.DeleteFunc(slices.Clone(sets), func(set []literal) bool { return !telling(set) })
	slices.SortStableFunc(sets, func(a, b []literal) int { return cmp.Compare(worth(b), worth(a)) })
	sets = slices.CompactFunc(sets, slices.Equal)
	return slices.Clip(sets[:min(len(sets), maxNeeds)])
}

// telling reports whether any host lacks all of set.
func telling(set []literal) bool {
	for _, l := range set {
		if l.text == "" && !(l.begin && l.end) {
			return false
		}
	}
	return true
}

// worth is a guess at how few hosts have any of set: the length of its shortest
// text, where an end of the host counts for some.
func worth(set []literal) int {
	least := 1 << 10
	for _, l := range set {
		least = min(least, l.worth())
	}
	return 4*least - len(set)
}

// in reports whether host holds l.
func (l literal) in(host string) bool {
	switch {
	case l.begin && l.end:
		return host == l.text
	case l.begin:
		return strings.HasPrefix(host, l.text)
	case l.end:
		return strings.HasSuffix(host, l.text)
	}
	return strings.Contains(host, l.text)
}

// holdsOne reports whether host holds any of set.
func holdsOne(host string, set []literal) bool {
	for _, l := range set {
		if l.in(host) {
			return true
		}
	}
	return false
}

func (l literal) worth() int {
	n := len(l.text)
	if l.begin {
		n += 4
	}
	if l.end {
		n += 4
	}
	return n
}

// facts are what is known of the texts that an expression matches.
type facts struct {
	exact          []literal // all of them; nil: they are not known
	prefix, suffix []literal // how they begin and end; not with exact
	needs          [][]literal
}

// anything is what every text begins and ends with.
var anything = []literal{{}}

func (f *facts) prefixes() []literal {
	if f.exact != nil {
		return f.exact
	}
	return f.prefix
}

func (f *facts) suffixes() []literal {
	if f.exact != nil {
		return f.exact
	}
	return f.suffix
}

func factsOf(re *syntax.Regexp) facts {
	switch re.Op {
	case syntax.OpNoMatch:
		return facts{exact: []literal{}}
	case syntax.OpBeginText:
		return facts{exact: []literal{{begin: true}}}
	case syntax.OpEndText:
		return facts{exact: []literal{{end: true}}}
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return facts{exact: anything}
	case syntax.OpLiteral:
		return literalFacts(re)
	case syntax.OpCharClass:
		return classFacts(re)
	case syntax.OpCapture:
		return factsOf(re.Sub[0])
	case syntax.OpConcat:
		f := facts{exact: anything}
		for _, sub := range re.Sub {
			f = concat(f, factsOf(sub))
		}
		return f
	case syntax.OpAlternate:
		return alternate(re.Sub)
	case syntax.OpQuest:
		return alternate([]*syntax.Regexp{re.Sub[0], {Op: syntax.OpEmptyMatch}})
	case syntax.OpPlus:
		f := factsOf(re.Sub[0])
		if f.exact != nil {
			f.needs = append(f.needs, f.exact)
		}
		return facts{prefix: f.prefixes(), suffix: f.suffixes(), needs: f.needs}
	}
	return facts{prefix: anything, suffix: anything}
}

func literalFacts(re *syntax.Regexp) facts {
	text, ok := literalText(re)
	if !ok {
		return facts{exact: []literal{}}
	}
	return facts{exact: []literal{{text: text}}}
}

func classFacts(re *syntax.Regexp) facts {
	class, _ := classOf(re)
	set := []literal{}
	for c := range byte(0x80) {
		if class.has(c) && (c < 'A' || c > 'Z') {
			set = append(set, literal{text: string(rune(c))})
		}
	}
	if len(set) > maxLiterals {
		return facts{prefix: anything, suffix: anything}
	}
	return facts{exact: set}
}

// concat returns what is known of a text of x followed by one of y.
func concat(x, y facts) facts {
	z := facts{prefix: x.prefixes(), suffix: y.suffixes(), needs: append(x.needs, y.needs...)}
	if x.exact != nil && y.exact != nil {
		if exact, ok := cross(x.exact, y.exact); ok {
			return facts{exact: exact, needs: z.needs}
		}
	}
	if x.exact != nil {
		if prefix, ok := cross(x.exact, y.prefixes()); ok {
			z.prefix = prefix
		}
	}
	if y.exact != nil {
		if suffix, ok := cross(x.suffixes(), y.exact); ok {
			z.suffix = suffix
		}
	}
	if seam, ok := cross(x.suffixes(), y.prefixes()); ok {
		z.needs = append(z.needs, seam)
	} else {
		z.needs = append(z.needs, x.suffixes(), y.prefixes())
	}
	return z
}

// cross returns every literal of a with every one of b behind it; ok is false
// where they would be too many.
func cross(a, b []literal) (all []literal, ok bool) {
	if len(a)*len(b) > maxLiterals {
		return nil, false
	}
	all = []literal{}
	for _, x := range a {
		for _, y := range b {
			// Nothing can stand before the begin of a host, or behind its end.
			if y.begin && x.text != "" || x.end && y.text != "" {
				continue
			}
			l := literal{begin: x.begin || y.begin, end: x.end || y.end, text: x.text + y.text}
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	return all, true
}

// alternate returns what is known of a text of any of subs.
func alternate(subs []*syntax.Regexp) facts {
	exact, prefix, suffix, need := []literal{}, []literal{}, []literal{}, []literal{}
	for _, sub := range subs {
		f := factsOf(sub)
		prefix, suffix = union(prefix, f.prefixes()), union(suffix, f.suffixes())
		sets := append(f.needs, f.prefixes(), f.suffixes())
		need = union(need, slices.MaxFunc(sets, func(a, b []literal) int { return cmp.Compare(worthOf(a), worthOf(b)) }))
		if f.exact == nil {
			exact = nil
		} else if exact != nil {
			exact = union(exact, f.exact)
		}
	}
	if exact != nil && !(len(exact) == 1 && exact[0] == literal{}) && len(exact) <= maxLiterals {
		return facts{exact: exact}
	}
	return facts{prefix: bounded(prefix), suffix: bounded(suffix), needs: [][]literal{bounded(need)}}
}

// worthOf is worth, and nothing for a set that tells nothing.
func worthOf(set []literal) int {
	if !telling(set) {
		return -1 << 10
	}
	return worth(set)
}

func union(a, b []literal) []literal {
	a = slices.Clone(a)
	for _, l := range b {
		if len(a) <= maxLiterals && !slices.Contains(a, l) {
			a = append(a, l)
		}
	}
	return a
}

// bounded returns set, or what says nothing where set is too large.
func bounded(set []literal) []literal {
	if len(set) > maxLiterals {
		return anything
	}
	return set
}
