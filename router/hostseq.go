package router

import (
	"regexp/syntax"
	"strings"
	"unicode"
	"unique"
)

// A seqStep is one step of an expression that can be matched from left to right
// without ever going back, such as ^env-(?<id>[a-z0-9-]+)\.remotegpu\.com$: text,
// and runs of a class whose end is plain to see.
type seqStep struct {
	op       seqOp
	group    uint8  // seqOpen, seqClose: which named group
	min, max uint16 // seqRun, seqRunTo
	tail     uint16 // seqRunTo: the length of what follows
	text     string
	class    unique.Handle[asciiSet] // seqRun, seqRunTo; few are used by many
	choices  []string
}

type seqOp uint8

const (
	seqText   seqOp = iota // text
	seqChoice              // one of choices, none of which begins with another
	seqRun                 // from min to max bytes of class, as many as there are
	seqRunTo               // the same, up to where the host has tail bytes left
	seqOpen                // a group begins
	seqClose               // a group ends
	seqEnd                 // the host ends
)

// asciiSet is a set of bytes below 0x80.
type asciiSet [2]uint64

func (s *asciiSet) add(c byte)      { s[c>>6&1] |= 1 << (c & 63) }
func (s *asciiSet) has(c byte) bool { return s[c>>6&1]>>(c&63)&1 != 0 }

func (s asciiSet) meets(o asciiSet) bool { return s[0]&o[0]|s[1]&o[1] != 0 }

func matchSeq(steps []seqStep, host string, at *spans) bool {
	i := 0
	for k := range steps {
		s := &steps[k]
		switch s.op {
		case seqText:
			if !strings.HasPrefix(host[i:], s.text) {
				return false
			}
			i += len(s.text)
		case seqChoice:
			n := s.chosen(host[i:])
			if n < 0 {
				return false
			}
			i += n
		case seqRun:
			end, class := min(len(host), i+int(s.max)), s.class.Value()
			from := i
			for i < end && class.has(host[i]) {
				i++
			}
			if i-from < int(s.min) {
				return false
			}
		case seqRunTo:
			end := len(host) - int(s.tail)
			if end < i+int(s.min) || end > i+int(s.max) {
				return false
			}
			for class := s.class.Value(); i < end; i++ {
				if !class.has(host[i]) {
					return false
				}
			}
		case seqOpen:
			at[2*s.group] = uint8(i)
		case seqClose:
			at[2*s.group+1] = uint8(i)
		case seqEnd:
			if i < len(host) {
				return false
			}
		}
	}
	return true
}

// chosen returns the length of the choice that text begins with, or -1.
func (s *seqStep) chosen(text string) int {
	for _, c := range s.choices {
		if strings.HasPrefix(text, c) {
			return len(c)
		}
	}
	return -1
}

// parseSeq returns the steps of re, or nil where it is no such expression.
func parseSeq(re *syntax.Regexp) []seqStep {
	p := seqParser{}
	if !p.top(re) || !p.deterministic() {
		return nil
	}
	return p.steps
}

type seqParser struct {
	steps  []seqStep
	groups uint8
}

// top reads the whole: it must begin where the host does.
func (p *seqParser) top(re *syntax.Regexp) bool {
	if re.Op != syntax.OpConcat || re.Sub[0].Op != syntax.OpBeginText {
		return false
	}
	for i, sub := range re.Sub[1:] {
		if sub.Op == syntax.OpEndText && i == len(re.Sub)-2 {
			p.steps = append(p.steps, seqStep{op: seqEnd})
		} else if !p.read(sub) {
			return false
		}
	}
	return true
}

func (p *seqParser) read(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpEmptyMatch:
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if !p.read(sub) {
				return false
			}
		}
	case syntax.OpCapture:
		group := p.groups
		if re.Name == "" {
			return p.read(re.Sub[0])
		}
		p.groups++
		p.steps = append(p.steps, seqStep{op: seqOpen, group: group})
		if !p.read(re.Sub[0]) {
			return false
		}
		p.steps = append(p.steps, seqStep{op: seqClose, group: group})
	case syntax.OpLiteral:
		text, ok := literalText(re)
		p.steps = append(p.steps, seqStep{op: seqText, text: text})
		return ok
	case syntax.OpAlternate:
		return p.choice(re.Sub)
	case syntax.OpStar:
		return p.run(re, 0, maxHost)
	case syntax.OpPlus:
		return p.run(re, 1, maxHost)
	case syntax.OpQuest:
		return p.run(re, 0, 1)
	case syntax.OpRepeat:
		return p.run(re, re.Min, re.Max)
	default:
		class, ok := classOf(re)
		p.steps = append(p.steps, seqStep{op: seqRun, min: 1, max: 1, class: unique.Make(class)})
		return ok
	}
	return true
}

// literalText returns the text of a literal; ok is false where no host has it.
func literalText(re *syntax.Regexp) (text string, ok bool) {
	b := make([]byte, 0, len(re.Rune))
	for _, r := range re.Rune {
		if r = hostRune(r, re.Flags); r < 0 {
			return "", false
		}
		b = append(b, byte(r))
	}
	return string(b), true
}

func (p *seqParser) choice(subs []*syntax.Regexp) bool {
	s := seqStep{op: seqChoice}
	for _, sub := range subs {
		text, ok := literalText(sub)
		if !ok || sub.Op != syntax.OpLiteral {
			return false
		}
		for _, other := range s.choices {
			if strings.HasPrefix(text, other) || strings.HasPrefix(other, text) {
				return false
			}
		}
		s.choices = append(s.choices, text)
	}
	p.steps = append(p.steps, s)
	return true
}

func (p *seqParser) run(re *syntax.Regexp, least, most int) bool {
	class, ok := classOf(re.Sub[0])
	if most < 0 || most > maxHost {
		most = maxHost
	}
	if !ok || re.Flags&syntax.NonGreedy != 0 || least > maxHost {
		return false
	}
	p.steps = append(p.steps, seqStep{op: seqRun, min: uint16(least), max: uint16(most), class: unique.Make(class)})
	return true
}

// deterministic reports whether it is plain to see where each run ends: at what
// its class does not have or, where all that follows up to the host's end is of
// one length, so far from that.
func (p *seqParser) deterministic() bool {
	var next asciiSet // what the steps behind may begin with
	tail := -1        // the length of all of them; -1: it is not known
	for i := len(p.steps) - 1; i >= 0; i-- {
		s := &p.steps[i]
		switch s.op {
		case seqEnd:
			tail = 0
			continue
		case seqOpen, seqClose:
			continue
		case seqRun:
			if s.min != s.max && s.class.Value().meets(next) {
				if tail < 0 || tail > maxHost {
					return false
				}
				s.op, s.tail = seqRunTo, uint16(tail)
			}
		}
		next = s.begins(next)
		tail = s.length(tail)
	}
	return true
}

// begins returns what s may begin with, where next is what may follow it.
func (s *seqStep) begins(next asciiSet) (set asciiSet) {
	switch s.op {
	case seqText:
		set.add(s.text[0])
	case seqChoice:
		for _, c := range s.choices {
			set.add(c[0])
		}
	default:
		if set = s.class.Value(); s.min == 0 {
			set[0] |= next[0]
			set[1] |= next[1]
		}
	}
	return set
}

// length returns that of s and of what follows, whose length is tail.
func (s *seqStep) length(tail int) int {
	switch {
	case tail < 0 || s.op == seqChoice || s.op != seqText && s.min != s.max:
		return -1
	case s.op == seqText:
		return tail + len(s.text)
	}
	return tail + int(s.min)
}

// classOf returns what one byte of a host re stands for; ok is false where it
// does not stand for one byte.
func classOf(re *syntax.Regexp) (class asciiSet, ok bool) {
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		class = asciiSet{^uint64(0), ^uint64(0)}
		if re.Op == syntax.OpAnyCharNotNL {
			class[0] &^= 1 << '\n'
		}
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= min(re.Rune[i+1], 0x7f); r++ {
				class.add(byte(r))
			}
		}
	case syntax.OpLiteral:
		if len(re.Rune) != 1 {
			return class, false
		}
		if r := hostRune(re.Rune[0], re.Flags); r >= 0 {
			class.add(byte(r))
		}
	default:
		return class, false
	}
	return class, true
}

// hostRune returns the byte of a host that the rune of a literal matches, or -1
// where there is none: hosts have neither capitals nor bytes beyond ASCII.
func hostRune(r rune, flags syntax.Flags) rune {
	isOne := func(r rune) bool { return r < 0x80 && (r < 'A' || r > 'Z') }
	if isOne(r) {
		return r
	}
	if flags&syntax.FoldCase != 0 {
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			if isOne(other) {
				return other
			}
		}
	}
	return -1
}
