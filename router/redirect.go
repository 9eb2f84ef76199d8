package router

import (
	"encoding/json"
	"strings"
)

// Redirect is an answer that sends the client elsewhere. It may be written as
// the bare target.
type Redirect struct {
	To     Template `json:"to"`
	Status int      `json:"status"` // 301, 302, 303, 307 or 308; 0 means 302
}

// Longhand lets "redirect": "https://..." stand for "redirect": {"to": ...}.
func (r *Redirect) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '"':
		return json.Marshal(map[string]json.RawMessage{"to": raw})
	case '{':
		return raw, nil
	}
	return nil, fieldErrorf("", "must be the URL or an object in { }, not %s", describe(raw))
}

func (r *Redirect) check() error {
	switch r.Status {
	case 0, 301, 302, 303, 307, 308:
	default:
		return fieldErrorf("redirect.status", "must be 301, 302, 303, 307 or 308, not %d", r.Status)
	}
	return r.checkTo()
}

// checkTo wants a target whose host the person who wrote it chose: what a client
// chooses can make no host of it, so that nobody is sent away by a link that
// looks as if it led here.
func (r *Redirect) checkTo() error {
	const field = "redirect.to"
	to := r.To.source
	if to == "" {
		return fieldErrorf(field, "is missing; give the URL, such as \"https://${host}${uri}\"")
	}
	if !isPlainText(to) {
		return fieldErrorf(field, "holds a line break or another control character, which no URL does")
	}
	rest, absolute := strings.CutPrefix(to, "https://")
	if !absolute {
		rest, absolute = strings.CutPrefix(to, "http://")
	}
	switch {
	case absolute:
		host := rest
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			host = rest[:end]
		}
		uri := strings.Index(host, "${uri}")
		if host == "" || uri == 0 || strings.ContainsAny(host, "@\\") || uri > 0 && host[uri:] != "${uri}" {
			return fieldErrorf(field, "%q names no host of its own; write https://, a host, and then the path or ${uri}", to)
		}
		if uri > 0 {
			host = host[:uri]
		}
		if name := chosenHost(host); name != "" {
			return fieldErrorf(field, "%q leads to whichever host a client puts into ${%s}; end the host with a domain of yours, as in https://${%s}.example.com, or with ${host}", to, name, name)
		}
	case strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`):
		return fieldErrorf(field, "%q leads to another host in whichever scheme; write https:// in front, or a single /", to)
	case to[0] != '/' && !strings.HasPrefix(to, "${uri}"):
		return fieldErrorf(field, "%q is neither a URL nor a path; begin it with https://, http://, / or ${uri}", to)
	}
	return nil
}

// chosenHost returns the variable by which a client chooses where host, of a
// redirect, is: one that no domain of two labels at least follows, written out,
// nor ${host}, which is where the client is. "" where there is none.
func chosenHost(host string) (name string) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && (isDigits(host[i+1:]) || isVariable(host[i+1:])) {
		host = host[:i]
	}
	begin := strings.LastIndex(host, "${")
	if begin < 0 {
		return ""
	}
	name, domain, _ := strings.Cut(host[begin+2:], "}")
	_, domain, _ = strings.Cut(domain, ".") // its label may go on: ${id}-web.example.com
	domain = strings.TrimSuffix(domain, ".")
	before := host[:begin]
	if name == "host" && strings.Contains(before, "${") && !strings.HasSuffix(before, ".") {
		name, _, _ = strings.Cut(before[strings.LastIndex(before, "${")+2:], "}")
		return name
	}
	if name == "host" || validName(domain) && (strings.Contains(domain, ".") || IsLocalhost(domain)) {
		return ""
	}
	return name
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isVariable reports whether s is one ${name} and nothing else.
func isVariable(s string) bool {
	name, ok := strings.CutPrefix(s, "${")
	return ok && strings.IndexByte(name, '}') == len(name)-1
}

// Target returns where a flow is sent. A path stays one: slashes in front that
// would make a host of what follows are one.
func (r *Redirect) Target(v *Vars) string {
	to := r.To.Expand(v)
	if to == "" || to[0] != '/' {
		if v.URI == "*" { // of OPTIONS, which asks for no path
			to = strings.TrimSuffix(to, "*") + "/"
		}
		return to
	}
	n := 1
	for n < len(to) && (to[n] == '/' || to[n] == '\\') {
		n++
	}
	return "/" + to[n:]
}
