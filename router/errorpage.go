package router

import (
	"html"
	"path"
	"slices"
	"strconv"
	"strings"
)

// ErrorPages are what clients get to see of errors, by status ("404") or class of
// status ("5xx").
type ErrorPages map[string]*ErrorPage

// ErrorPage is the content of an answer that tells of an error. Exactly one of
// Body and File is given.
type ErrorPage struct {
	// Body is the content. Besides the names of a route it knows ${status},
	// ${reason} (such as Bad Gateway) and ${message}, the node's own words.
	Body Template `json:"body"`
	// File is the name of a file among the node's pages, with such content.
	File string `json:"file"`
	// Type is the content's media type; "" means text/html, or what the file's
	// name says. In HTML and JSON what a name stands for is escaped.
	Type string `json:"type"`
	// Upstream has answers of backends take the page too, and not only the
	// node's own.
	Upstream bool `json:"upstream"`
}

const maxPage = 64 << 10

var pageVars = []string{"status", "reason", "message"}

// For returns the page of a status, or nil.
func (p ErrorPages) For(status int) *ErrorPage {
	if len(p) == 0 {
		return nil
	}
	if page := p[strconv.Itoa(status)]; page != nil {
		return page
	}
	return p[[...]string{4: "4xx", 5: "5xx", 9: ""}[min(status/100, 9)]]
}

// MediaType returns the value of Content-Type.
func (p *ErrorPage) MediaType() string {
	if p.Type != "" {
		return p.Type
	}
	switch path.Ext(p.File) {
	case ".json":
		return "application/json"
	case ".txt":
		return "text/plain; charset=utf-8"
	}
	return "text/html; charset=utf-8"
}

// PageError is what a page tells of.
type PageError struct {
	Status          int
	Reason, Message string
}

// Render returns the content that t stands for in a page of the given media type.
func (t Template) Render(mediaType string, e PageError, v *Vars) string {
	escape := func(s string) string { return s }
	switch media, _, _ := strings.Cut(mediaType, ";"); {
	case strings.Contains(media, "html"), strings.Contains(media, "xml"):
		escape = html.EscapeString
	case strings.Contains(media, "json"):
		escape = escapeJSON
	}
	if len(t.parts) == 0 {
		return t.source
	}
	var b strings.Builder
	for _, p := range t.parts {
		switch p.name {
		case "":
			b.WriteString(p.literal)
		case "status":
			b.WriteString(strconv.Itoa(e.Status))
		case "reason":
			b.WriteString(escape(e.Reason))
		case "message":
			b.WriteString(escape(e.Message))
		default:
			b.WriteString(escape(v.get(p.name)))
		}
	}
	return b.String()
}

// escapeJSON returns s as it stands within the quotes of a JSON string.
func escapeJSON(s string) string {
	var b strings.Builder
	for _, r := range s { // what is not UTF-8 becomes U+FFFD
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == '<' || r == '>' || r == '&' || r == 0x7f || r == 0x2028 || r == 0x2029:
			const digits = "0123456789abcdef"
			b.WriteString(`\u`)
			for shift := 12; shift >= 0; shift -= 4 {
				b.WriteByte(digits[r>>shift&15])
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Check refuses what makes no sense. captures are names that templates may use
// besides the built-in ones, and at is where p stands in its value.
func (p ErrorPages) Check(at string, captures []string) error {
	statuses := make([]string, 0, len(p))
	for status := range p {
		statuses = append(statuses, status)
	}
	slices.Sort(statuses) // so that the same value is refused in the same words
	for _, status := range statuses {
		page, here := p[status], join(at, status)
		n, err := strconv.Atoi(status)
		if status != "4xx" && status != "5xx" && (err != nil || n < 400 || n > 599 || len(status) != 3) {
			return fieldErrorf(at, "%q is not the status of an error; write one from 400 to 599, \"4xx\" or \"5xx\"", status)
		}
		if page == nil {
			return fieldErrorf(here, "is null; give body or file, or leave it out")
		}
		if err := page.check(here, captures); err != nil {
			return err
		}
	}
	return nil
}

func (p *ErrorPage) check(at string, captures []string) error {
	switch {
	case p.Body.source == "" && p.File == "":
		return fieldErrorf(join(at, "body"), "is missing; give body or file")
	case p.Body.source != "" && p.File != "":
		return fieldErrorf(at, "body and file exclude each other; keep one")
	case p.File != "" && (p.File != path.Base(p.File) || strings.HasPrefix(p.File, ".") || strings.ContainsAny(p.File, "\\\x00")):
		return fieldErrorf(join(at, "file"), "%q is not the name of a file among the node's pages (the directory pages in sluice.yaml); write it without a path", p.File)
	case p.Type != "" && !strings.Contains(p.Type, "/"), !isFieldText(p.Type):
		return fieldErrorf(join(at, "type"), "%q is not a media type", p.Type)
	}
	return p.Body.CheckPage(join(at, "body"), captures)
}

// CheckPage refuses a page that is too large or uses names that are not known.
func (t Template) CheckPage(at string, captures []string) error {
	if len(t.source) > maxPage {
		return fieldErrorf(at, "has %d bytes; a page has at most %d", len(t.source), maxPage)
	}
	return t.check(at, append(slices.Clone(pageVars), captures...))
}

// isFieldText reports whether s can be the value of a field.
func isFieldText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
