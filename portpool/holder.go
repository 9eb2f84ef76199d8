package portpool

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// Holders says whose routes of a pool may answer somewhere: those of no
// environment where it is zero.
type Holders struct {
	// First and Last are the environments in whose order all lie that may; one
	// alone is both.
	First, Last string
	// Any has it that they cannot be told by where they answer.
	Any bool
}

// HoldersAt returns whose routes of the pool may answer at the exact name host, and,
// unless path is "", below that very path of it. It depends on nothing but the pool.
func (p *Pool) HoldersAt(host, path string) Holders {
	at := p.form(p.Route.Host)
	env, matches := at.envAt(host)
	if matches && env == "" && path != "" { // of a name that environments share
		env, matches = p.form(cmp.Or(p.Route.Path, "/")).envAt(path)
	}
	if !matches {
		return Holders{}
	}
	return Holders{env, env, env == ""}
}

// HoldersAmong returns whose routes of the pool, at whose names no client names a
// port, may answer where that of another pool does: Inner, of an environment whose
// values these are and which allows some ports inside.
func (p *Pool) HoldersAmong(inner Route, values Values, allowed router.Ports) Holders {
	before, after, _ := strings.Cut(inner.Host, innerVar)
	before, err := values.Expand(before)
	if err != nil {
		return Holders{}
	}
	if after, err = values.Expand(after); err != nil {
		return Holders{}
	}
	at := p.form(p.Route.Host)
	switch {
	case !begins(before, at.first) || !begins(reversed(after), reversed(at.last)):
		return Holders{}
	case !at.single || len(at.first) > len(before) || len(at.last) > len(after):
		return Holders{Any: true} // what the port is has a say
	}
	var h Holders
	for _, port := range extremes(allowed) {
		env, matches := at.envAt(before + port + after)
		switch {
		case matches && env == "":
			return Holders{Any: true}
		case matches && (h == Holders{}):
			h = Holders{First: env, Last: env}
		case matches:
			h.First, h.Last = min(h.First, env), max(h.Last, env)
		}
	}
	return h
}

// begins reports whether there is a text that begins with literal and with known
// and a number behind it, which may go on as it likes.
func begins(known, literal string) bool {
	n := min(len(known), len(literal))
	return strings.EqualFold(known[:n], literal[:n]) && (len(literal) == n || isDigit(literal[n]))
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// extremes returns numbers of ports, the first and the last of all among them in
// the order of texts.
func extremes(ports router.Ports) (all []string) {
	for _, r := range ports {
		all = append(all, strconv.Itoa(r.First), strconv.Itoa(r.Last))
		for n := 10; n <= r.Last; n *= 10 { // where numbers get longer
			for _, port := range []int{n - 1, n} {
				if port >= r.First {
					all = append(all, strconv.Itoa(port))
				}
			}
		}
	}
	return all
}

// form is what a text of a pool becomes with the values of environments.
type form struct {
	source string         // of expr, the environment being its first group
	expr   *regexp.Regexp // nil: not needed yet
	sure   bool           // which environment it is can be told, in one way only
	// single is whether nothing else stands for something.
	single      bool
	first, last string // what it always begins and ends with
}

// form returns what text, one of the pool's, becomes with the values of environments.
func (p *Pool) form(text string) *form {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "${host}", p.Access.Host), "${service}", p.Service)
	var expr strings.Builder
	envs, others, unsure := 0, 0, false
	before, rest, found := strings.Cut(text, "${")
	f := &form{first: before, last: before}
	expr.WriteString(regexp.QuoteMeta(before))
	for found {
		name, after, _ := strings.Cut(rest, "}")
		f.last, rest, found = strings.Cut(after, "${")
		switch {
		case name == "env" && envs == 0:
			expr.WriteString("([a-z0-9-]+)")
		case name == "inner" || name == "port":
			// Beside letters, digits and others it could be more than one number.
			beside := before == "" && envs+others > 0
			unsure = unsure || beside || joins(before, len(before)-1) || joins(after, 0)
			expr.WriteString("[0-9]+")
		default:
			unsure = true
			expr.WriteString(".*")
		}
		if name == "env" {
			envs++
		} else {
			others++
		}
		expr.WriteString(regexp.QuoteMeta(f.last))
		before = f.last
	}
	f.source = "(?is)^" + expr.String() + "$"
	f.sure, f.single = envs == 1 && !unsure, envs == 1 && others == 0
	return f
}

// envAt reports whether what f is of may stand for an exact text, and returns of
// which environment it is then; "": of any.
func (f *form) envAt(text string) (env string, matches bool) {
	if !begins(text, f.first) || !begins(reversed(text), reversed(f.last)) {
		return "", false
	}
	if f.expr == nil {
		f.expr = regexp.MustCompile(f.source) // of quoted text and constants
	}
	m := f.expr.FindStringSubmatch(text)
	switch {
	case m == nil:
		return "", false
	case !f.sure:
		return "", true
	}
	return strings.ToLower(m[1]), true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
