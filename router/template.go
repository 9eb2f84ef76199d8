package router

import (
	"strings"
)

// Vars gives the values that ${name} stands for while one flow is routed. The
// zero value knows no name.
type Vars struct {
	// Host, Port, SNI, ClientIP and URI are the built-in names ${host},
	// ${port}, ${sni}, ${client_ip} and ${uri} (path and query as received).
	Host, Port, SNI, ClientIP, URI string
	// Captures are the named groups of the host pattern that matched.
	Captures Captures
}

// Captures are the named groups of a regular expression and what they matched.
// The zero value is empty.
type Captures struct {
	names []string
	host  string // what at tells places of
	at    spans
}

// Get returns the value of the group called name, or "". It is a part of the
// host that was matched, not a copy.
func (c *Captures) Get(name string) string {
	for i, n := range c.names {
		if n == name {
			return c.value(i)
		}
	}
	return ""
}

// Each calls f for every named group, in the order of the pattern.
func (c *Captures) Each(f func(name, value string)) {
	for i, n := range c.names {
		f(n, c.value(i))
	}
}

func (c *Captures) value(i int) string {
	begin, end := c.at[2*i], c.at[2*i+1]
	if begin == noSpan || end == noSpan {
		return "" // the group took no part
	}
	return c.host[begin:end]
}

var builtinVars = []string{"host", "port", "sni", "client_ip", "uri"}

func (v *Vars) get(name string) string {
	switch name {
	case "host":
		return v.Host
	case "port":
		return v.Port
	case "sni":
		return v.SNI
	case "client_ip":
		return v.ClientIP
	case "uri":
		return v.URI
	}
	return v.Captures.Get(name)
}

// Template is text in which ${name} stands for a value of the flow; $${ is a
// literal ${. The zero value is the empty text. Templates are immutable.
type Template struct {
	source string
	parts  []templatePart // nil: the text is source as it stands
}

type templatePart struct {
	literal string
	name    string // a variable where it is not empty
}

// ParseTemplate reads s. Which names exist is checked later, by the value that
// the template is part of.
func ParseTemplate(s string) (Template, error) {
	t := Template{source: s}
	if !strings.Contains(s, "${") {
		return t, nil
	}
	var literal strings.Builder
	rest := s
	for {
		i := strings.Index(rest, "${")
		if i < 0 {
			literal.WriteString(rest)
			break
		}
		if i > 0 && rest[i-1] == '$' { // $${ is an escaped ${
			literal.WriteString(rest[:i-1] + "${")
			rest = rest[i+2:]
			continue
		}
		name, after, closed := strings.Cut(rest[i+2:], "}")
		if !closed || !isVarName(name) {
			return Template{}, fieldErrorf("", "%q holds a ${ that does not open a name; write ${name}, or $${ for the characters themselves", s)
		}
		literal.WriteString(rest[:i])
		if literal.Len() > 0 {
			t.parts = append(t.parts, templatePart{literal: literal.String()})
			literal.Reset()
		}
		t.parts = append(t.parts, templatePart{name: name})
		rest = after
	}
	if literal.Len() > 0 {
		t.parts = append(t.parts, templatePart{literal: literal.String()})
	}
	return t, nil
}

func isVarName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// UnmarshalText reads the template as ParseTemplate does.
func (t *Template) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTemplate(string(text))
	return err
}

// String returns the template as it was written.
func (t Template) String() string { return t.source }

// MarshalText writes the template as it was read.
func (t Template) MarshalText() ([]byte, error) { return []byte(t.source), nil }

// IsLiteral reports whether the text holds no variable.
func (t Template) IsLiteral() bool {
	return len(t.parts) == 0 || len(t.parts) == 1 && t.parts[0].name == ""
}

// Expand returns the text with every variable replaced. A name without a value
// stands for nothing.
func (t Template) Expand(v *Vars) string {
	switch {
	case len(t.parts) == 0:
		return t.source
	case t.IsLiteral():
		return t.parts[0].literal
	}
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.literal)
		} else {
			b.WriteString(v.get(p.name))
		}
	}
	return b.String()
}

// check refuses variables that are neither built in nor captured by the route's
// host patterns.
func (t Template) check(path string, captures []string) error {
	known := append(append([]string{}, builtinVars...), captures...)
	for _, p := range t.parts {
		if p.name != "" && !contains(known, p.name) {
			return fieldErrorf(path, "${%s} is neither a built-in name nor a capture of every pattern in host; known here: ${%s}",
				p.name, strings.Join(known, "} ${"))
		}
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
