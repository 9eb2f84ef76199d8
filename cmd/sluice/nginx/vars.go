package nginx

import (
	"fmt"
	"regexp"
	"strings"
)

// scope is what a name such as $host stands for where a text of nginx's stands.
type scope struct {
	block    *Directive
	captures []string // groups of the host's expression
	scheme   string   // "http" or "https"
}

// maxText bounds a text with all that its variables stand for, in bytes.
const maxText = 64 << 10

var reference = regexp.MustCompile(`\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))`)

// template turns a text of nginx's into one of ours.
func (s *scope) template(text string) (string, error) {
	return s.expand(text, 0)
}

func (s *scope) expand(text string, depth int) (string, error) {
	if depth > 8 || len(text) > maxText {
		return "", fmt.Errorf("variables are set by way of each other, without end")
	}
	// Path and query, in the ways that people write them.
	for _, whole := range []string{"$uri$is_args$args", "$uri?$args", "$uri?$query_string", "$uri$is_args$query_string"} {
		text = strings.ReplaceAll(text, whole, "$request_uri")
	}
	var b strings.Builder
	for {
		at := reference.FindStringSubmatchIndex(text)
		if at == nil {
			b.WriteString(text)
			break
		}
		b.WriteString(text[:at[0]])
		name := text[at[0]+1 : at[1]]
		value, err := s.value(strings.Trim(name, "{}"), depth)
		if err != nil {
			return "", err
		}
		if b.WriteString(value); b.Len() > maxText {
			return "", fmt.Errorf("what its variables stand for is longer than %d characters", maxText)
		}
		text = text[at[1]:]
	}
	return b.String(), nil
}

// value returns what stands for $name.
func (s *scope) value(name string, depth int) (string, error) {
	switch name {
	case "host", "http_host":
		return "${host}", nil
	case "request_uri", "uri", "document_uri":
		return "${uri}", nil
	case "remote_addr", "binary_remote_addr":
		return "${client_ip}", nil
	case "server_port":
		return "${port}", nil
	case "ssl_server_name", "ssl_preread_server_name":
		return "${sni}", nil
	case "scheme":
		return s.scheme, nil
	}
	if n := strings.TrimLeft(name, "0123456789"); n == "" {
		name = "group" + name // as hostPattern calls groups without a name
	}
	for _, c := range s.captures {
		if c == name {
			return "${" + name + "}", nil
		}
	}
	for b := s.block; b != nil; b = b.parent {
		for _, d := range b.Block {
			if d.Name == "set" && d.arg(0) == "$"+name {
				d.done = true
				return s.expand(d.arg(1), depth+1)
			}
		}
	}
	return "", fmt.Errorf("$%s has no counterpart", name)
}

// near returns the directive that is in force in block: its own, or that of the
// nearest block around it. It counts as done with.
func near(block *Directive, name string) *Directive {
	if all := nearAll(block, name); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// nearAll is near for directives of which several hold together: those of the
// nearest block that has any.
func nearAll(block *Directive, name string) (all []*Directive) {
	for b := block; b != nil && len(all) == 0; b = b.parent {
		all = b.own(name)
	}
	for _, d := range all {
		d.done = true
	}
	return all
}

// own returns the directives called name right in the block of d.
func (d *Directive) own(name string) (all []*Directive) {
	for _, sub := range d.Block {
		if sub.Name == name {
			all = append(all, sub)
		}
	}
	return all
}

// hostPattern turns a server name, or the left side of a map over host names,
// into a pattern of ours, and says which groups it has.
func hostPattern(name string) (patterns, captures []string, err error) {
	switch {
	case name == "" || name == `""`:
		return nil, nil, fmt.Errorf("it stands for requests without a host, which are refused")
	case name == "_" || name == "default":
		return []string{"*"}, nil, nil
	case strings.HasPrefix(name, "~"):
		expr, groups := groupNames(strings.TrimPrefix(name[1:], "*"))
		return []string{"~" + expr}, groups, nil
	case strings.HasPrefix(name, "."):
		return []string{strings.ToLower(name[1:]), "*" + strings.ToLower(name)}, nil, nil
	case strings.HasSuffix(name, ".*"):
		return []string{"~^" + regexp.QuoteMeta(strings.ToLower(name[:len(name)-1])) + "."}, nil, nil
	}
	return []string{strings.ToLower(name)}, nil, nil
}

// groupNames gives the groups of an expression names where they have none, and
// returns all names.
func groupNames(expr string) (named string, names []string) {
	var b strings.Builder
	inClass, group := false, 0
	for i := 0; i < len(expr); i++ {
		c := expr[i]
		b.WriteByte(c)
		switch {
		case c == '\\' && i+1 < len(expr):
			i++
			b.WriteByte(expr[i])
		case c == '[':
			inClass = true
		case c == ']':
			inClass = false
		case c != '(' || inClass:
		case !strings.HasPrefix(expr[i+1:], "?"):
			group++
			name := fmt.Sprintf("group%d", group)
			b.WriteString("?<" + name + ">")
			names = append(names, name)
		default:
			for open, end := range map[string]string{"?<": ">", "?P<": ">", "?'": "'"} {
				rest, is := strings.CutPrefix(expr[i+1:], open)
				name, _, closed := strings.Cut(rest, end)
				if !is || !closed || strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, "!") {
					continue
				}
				group++
				names = append(names, name)
				b.WriteString("?<" + name + ">")
				i += len(open) + len(name) + len(end)
				break
			}
		}
	}
	return b.String(), names
}
