package router

import (
	"regexp/syntax"
	"sync"
)

// program matches any expression, by trying its ways in the order of their
// preference. No pair of an instruction and a place in the host is tried twice,
// which bounds the work by their number.
type program struct {
	inst  []syntax.Inst
	start int
	// anchored: matches begin where the host does, or nowhere.
	anchored bool
	// group is, for each slot of the instructions, the slot of the named groups,
	// or -1.
	group []int
}

func compileProgram(tree *syntax.Regexp) (*program, error) {
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	p := &program{inst: prog.Inst, start: prog.Start, anchored: prog.StartCond()&syntax.EmptyBeginText != 0}
	named := 0
	for _, name := range tree.CapNames() {
		if name == "" {
			p.group = append(p.group, -1, -1)
			continue
		}
		p.group = append(p.group, named, named+1)
		named += 2
	}
	return p, nil
}

// matcher is the room that one match needs.
type matcher struct {
	tried []uint64 // bits, by instruction and place
	todo  []matchStep
}

// matchStep is a way not taken yet or, where slot is not negative, the value
// that a slot had before the ways tried since.
type matchStep struct {
	pc, slot int32
	at, was  uint8
}

var matchers = sync.Pool{New: func() any { return new(matcher) }}

func (p *program) match(host string, at *spans) bool {
	m := matchers.Get().(*matcher)
	defer matchers.Put(m)
	words := (len(p.inst)*(len(host)+1) + 63) / 64
	if cap(m.tried) < words {
		m.tried = make([]uint64, words)
	}
	m.tried = m.tried[:words]
	clear(m.tried)
	for from := 0; from <= len(host); from++ {
		for i := range at {
			at[i] = noSpan
		}
		if p.matchFrom(m, host, from, at) {
			return true
		}
		if p.anchored {
			return false
		}
	}
	return false
}

func (p *program) matchFrom(m *matcher, host string, from int, at *spans) bool {
	m.todo = append(m.todo[:0], matchStep{pc: int32(p.start), slot: -1, at: uint8(from)})
	for len(m.todo) > 0 {
		step := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		if step.slot >= 0 {
			at[step.slot] = step.was
		} else if p.follow(m, host, step, at) {
			return true
		}
	}
	return false
}

// follow goes one way to its end, and leaves those that branch off in m.todo.
func (p *program) follow(m *matcher, host string, step matchStep, at *spans) bool {
	pc, i := int(step.pc), int(step.at)
	for {
		bit := pc*(len(host)+1) + i
		if m.tried[bit>>6]>>(bit&63)&1 != 0 {
			return false
		}
		m.tried[bit>>6] |= 1 << (bit & 63)
		inst := &p.inst[pc]
		switch inst.Op {
		case syntax.InstMatch:
			return true
		case syntax.InstFail:
			return false
		case syntax.InstAlt, syntax.InstAltMatch:
			m.todo = append(m.todo, matchStep{pc: int32(inst.Arg), slot: -1, at: uint8(i)})
		case syntax.InstCapture:
			if slot := p.group[inst.Arg]; slot >= 0 {
				m.todo = append(m.todo, matchStep{slot: int32(slot), was: at[slot]})
				at[slot] = uint8(i)
			}
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(inst.Arg)&^around(host, i) != 0 {
				return false
			}
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if i == len(host) || !takes(inst, rune(host[i])) {
				return false
			}
			i++
		}
		pc = int(inst.Out)
	}
}

func takes(inst *syntax.Inst, r rune) bool {
	switch inst.Op {
	case syntax.InstRuneAny:
		return true
	case syntax.InstRuneAnyNotNL:
		return r != '\n'
	case syntax.InstRune1:
		return r == inst.Rune[0]
	}
	return inst.MatchRune(r)
}

// around returns which empty-width conditions hold at a place of host.
func around(host string, i int) syntax.EmptyOp {
	before, behind := rune(-1), rune(-1)
	if i > 0 {
		before = rune(host[i-1])
	}
	if i < len(host) {
		behind = rune(host[i])
	}
	return syntax.EmptyOpContext(before, behind)
}
