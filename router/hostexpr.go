package router

import (
	"regexp/syntax"
	"strings"
)

// hostExpr is a compiled host expression. It matches hosts in the form of
// NormalizeHost, which are bytes below 0x80 without capitals, exactly as package
// regexp does, but without allocating, and knows which literals a host must
// hold to match. It is immutable.
type hostExpr struct {
	groups []string // names of the named groups, in order
	// seq is set for most expressions people write; prog for all others.
	seq   []seqStep
	prog  *program
	needs [][]literal // of each set, a host that matches holds one
	certs CertNames
}

const (
	// maxRegexLength bounds a host pattern; real ones are a tenth of it.
	maxRegexLength = 1024
	// maxRegexSize bounds what a pattern compiles to, in instructions: matching
	// takes so many steps at most for each byte of a host.
	maxRegexSize = 2048
	// maxCaptures bounds the named groups, so that Captures has room for all.
	maxCaptures = 16
	// maxHost is the longest host of all (RFC 1035 section 2.3.4).
	maxHost = 253
)

func parseHostExpr(expr string) (*hostExpr, error) {
	if len(expr) > maxRegexLength {
		return nil, fieldErrorf("", "the pattern is %d characters long; at most %d are allowed", len(expr), maxRegexLength)
	}
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, fieldErrorf("", "%q is not a regular expression (RE2): %v", "~"+expr, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	if size := regexSize(tree); size > maxRegexSize {
		return nil, fieldErrorf("", "the pattern compiles to %d steps; at most %d are allowed. Write + or * for long repetitions such as {1,200}: a host is bounded anyway", size, maxRegexSize)
	}
	onlyHostText(tree)
	re := &hostExpr{}
	for _, name := range tree.CapNames() {
		if contains(builtinVars, name) {
			return nil, fieldErrorf("", "the capture %q has the name of a built-in variable; choose another", name)
		}
		if name != "" {
			re.groups = append(re.groups, name)
		}
	}
	if len(re.groups) > maxCaptures {
		return nil, fieldErrorf("", "the pattern has %d named groups; at most %d are allowed", len(re.groups), maxCaptures)
	}
	if re.seq = parseSeq(tree); re.seq == nil {
		if re.prog, err = compileProgram(tree); err != nil {
			return nil, fieldErrorf("", "%q is not a regular expression (RE2): %v", "~"+expr, err)
		}
	}
	re.certs = certNamesOf(tree)
	re.needs = requiredLiterals(tree.Simplify())
	return re, nil
}

// onlyHostText leaves nothing in classes of characters that no host has: \PC
// would be a table of some kilobytes for each time that it is written.
func onlyHostText(re *syntax.Regexp) {
	for _, sub := range re.Sub {
		onlyHostText(sub)
	}
	if re.Op != syntax.OpCharClass {
		return
	}
	var kept []rune
	for i := 0; i < len(re.Rune) && re.Rune[i] < 0x80; i += 2 {
		kept = append(kept, re.Rune[i], min(re.Rune[i+1], 0x7f))
	}
	if re.Rune = kept; len(kept) == 0 {
		re.Op = syntax.OpNoMatch
	}
}

// regexSize returns about how many instructions re compiles to, without
// compiling it: repetitions nest.
func regexSize(re *syntax.Regexp) int {
	size := 1
	switch re.Op {
	case syntax.OpLiteral:
		return len(re.Rune)
	case syntax.OpCapture:
		size = 2
	case syntax.OpAlternate:
		size = len(re.Sub)
	case syntax.OpRepeat:
		times, sub := re.Max, regexSize(re.Sub[0])
		if times < 0 { // {n,} is n-1 times and once with +
			times = max(1, re.Min)
		}
		return size + times*sub + times - re.Min
	}
	for _, sub := range re.Sub {
		size += regexSize(sub)
	}
	return size
}

// spans are the places of groups in a host: the first group's begin and end, the
// second's, and so on; noSpan stands for a group that took no part.
type spans [2 * maxCaptures]uint8

const noSpan = 0xff // more than maxHost

// match reports whether the expression matches host, which isHostText, and fills
// at with what the named groups matched.
func (re *hostExpr) match(host string, at *spans) bool {
	if re.seq != nil {
		return matchSeq(re.seq, host, at)
	}
	for _, set := range re.needs { // which takes far less time
		if !holdsOne(host, set) {
			return false
		}
	}
	return re.prog.match(host, at)
}

// isHostText reports whether hostExprs can be asked about host.
func isHostText(host string) bool {
	if len(host) > maxHost {
		return false
	}
	for i := range len(host) {
		if c := host[i]; c >= 0x80 || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}
