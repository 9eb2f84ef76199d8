package router

import (
	"encoding/json"
	"net/url"
	"regexp"
	"regexp/syntax"
	"strings"
)

// Rewrite changes the path that a request goes on with; its query stays. Exactly
// one of Prefix and Regex is given. It may be written as the bare prefix.
type Rewrite struct {
	// Prefix takes the place of the route's path.
	Prefix string `json:"prefix"`
	// Regex is looked for in the path, decoded and with dots resolved; where it
	// is not found the path stays.
	Regex Pattern `json:"regex"`
	// To takes the place of the whole path; ${1} and ${name} in it stand for the
	// groups of Regex.
	To string `json:"to"`
}

// Pattern is a regular expression (RE2). The zero value is none.
type Pattern struct{ re *regexp.Regexp }

// UnmarshalText reads the expression; (?<n>...) captures.
func (p *Pattern) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		return fieldErrorf("", "is empty; give an expression such as \"^/old/(.*)$\", or leave it out")
	}
	p.re, err = compilePattern(string(text), "", "")
	return err
}

// compilePattern compiles an expression that package regexp matches, between
// before and after, within the bounds of those of hosts: what it takes to read, to
// keep and to match is to be little, whoever wrote it.
func compilePattern(expr, before, after string) (*regexp.Regexp, error) {
	if len(expr) > maxRegexLength {
		return nil, fieldErrorf("", "the pattern is %d characters long; at most %d are allowed", len(expr), maxRegexLength)
	}
	tree, err := syntax.Parse(expr, syntax.Perl) // by itself, lest a ) in it end what is around it
	if err != nil {
		return nil, fieldErrorf("", "%q is not a regular expression (RE2): %v", expr, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	if size := regexSize(tree) + classSize(tree); size > maxRegexSize {
		return nil, fieldErrorf("", "the pattern compiles to %d steps; at most %d are allowed. Write + or * for long repetitions such as {1,200}, and few classes such as \\pL", size, maxRegexSize)
	}
	return regexp.Compile(before + expr + after)
}

// classSize returns what the classes of characters in re take besides, in
// instructions: \PC is a table of some kilobytes for each time that it is written
// or repeated.
func classSize(re *syntax.Regexp) int {
	size, times := len(re.Rune)/32, 1
	if re.Op != syntax.OpCharClass {
		size = 0
	}
	if re.Op == syntax.OpRepeat {
		times = max(1, re.Min, re.Max)
	}
	for _, sub := range re.Sub {
		size += classSize(sub)
	}
	return times * size
}

// Longhand lets "rewrite": "/v2" stand for "rewrite": {"prefix": "/v2"}.
func (w *Rewrite) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '"':
		return json.Marshal(map[string]json.RawMessage{"prefix": raw})
	case '{':
		return raw, nil
	}
	return nil, fieldErrorf("", "must be a path such as \"/v2\" or an object in { }, not %s", describe(raw))
}

func (w *Rewrite) check() error {
	switch {
	case w.Prefix == "" && w.Regex.re == nil:
		return fieldErrorf("rewrite", "says nothing; give prefix, or regex and to")
	case w.Prefix != "" && w.Regex.re != nil:
		return fieldErrorf("rewrite", "prefix and regex exclude each other; keep one")
	case w.Prefix != "":
		if w.To != "" {
			return fieldErrorf("rewrite.to", "belongs to regex; with prefix leave it out")
		}
		return checkPath("rewrite.prefix", w.Prefix, "such as /v2")
	}
	return w.checkTo()
}

// checkPath refuses what is no decoded path in its shortest form.
func checkPath(field, p, such string) error {
	if p == "" || p[0] != '/' || strings.ContainsAny(p, "?#%\\") || p != cleanPath(p) || !isPlainText(p) {
		return fieldErrorf(field, "%q is not a path; write it decoded and in its shortest form, %s", p, such)
	}
	return nil
}

// isPlainText reports whether s holds no control character.
func isPlainText(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

func (w *Rewrite) checkTo() error {
	const field = "rewrite.to"
	switch {
	case w.To == "":
		return fieldErrorf(field, "is missing; give the path, such as \"/new/${1}\"")
	case w.To[0] != '/':
		return fieldErrorf(field, "%q is not a path; begin it with /", w.To)
	case strings.ContainsAny(w.To, "?#%\\") || !isPlainText(w.To):
		return fieldErrorf(field, "%q is not a decoded path: the query stays as it is, and what is to be escaped will be", w.To)
	}
	groups := w.Regex.re.SubexpNames()
	for rest := w.To; ; {
		i := strings.IndexByte(rest, '$')
		if i < 0 {
			return nil
		}
		rest = rest[i+1:]
		if strings.HasPrefix(rest, "$") {
			rest = rest[1:]
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed || name == "" || name[0] != '{' {
			return fieldErrorf(field, "%q holds a $ that stands for no group; write ${1} or ${name}, or $$ for the character itself", w.To)
		}
		if name = name[1:]; !isGroup(name, groups) {
			return fieldErrorf(field, "${%s} is no group of the regular expression, which has %d", name, len(groups)-1)
		}
		rest = after
	}
}

// isGroup reports whether name is a group's name, or the number of one, with 0
// for the whole.
func isGroup(name string, groups []string) bool {
	if name != "" && contains(groups, name) {
		return true
	}
	n := 0
	for _, c := range name {
		if c < '0' || c > '9' || n > len(groups) {
			return false
		}
		n = 10*n + int(c-'0')
	}
	return name != "" && n < len(groups)
}

// RewritePath returns the path that a request goes on with, escaped. escaped is
// the path as the client wrote it, and decoded the same without escapes; r has a Rewrite.
//
// It is made of the path that the route was found by, without dots and escapes
// that a backend could read one way or another, and is escaped anew: what is
// below one prefix stays below the other.
func (r *Route) RewritePath(escaped, decoded string) string {
	w := r.Rewrite
	clean := cleanPath(decoded)
	to := clean
	if w.Regex.re == nil {
		to = joinPaths(w.Prefix, clean[len(strings.TrimSuffix(r.Path, "/")):])
	} else if at := w.Regex.re.FindStringSubmatchIndex(clean); at != nil {
		to = cleanPath(string(w.Regex.re.ExpandString(nil, w.To, clean, at)))
	}
	if to == clean && clean == escaped {
		return escaped
	}
	return (&url.URL{Path: to}).EscapedPath()
}

// joinPaths puts what is left of a path behind a prefix, with one slash between
// them where anything is left.
func joinPaths(prefix, rest string) string {
	if rest == "" {
		return prefix
	}
	return strings.TrimSuffix(prefix, "/") + "/" + strings.TrimPrefix(rest, "/")
}
