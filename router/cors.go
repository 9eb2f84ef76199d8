package router

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CORS says which pages of other origins may use a route from browsers (the
// fetch standard, "CORS protocol"). The node answers preflights by itself and is
// the only one to speak of origins: what the backend says of them is dropped.
type CORS struct {
	// Origins may ask: "https://app.x-gpu.com", "~regex" of a whole origin, or
	// "*" for all.
	Origins []string `json:"origins"`
	// Methods that they may use; empty: GET, HEAD and POST. "*": any.
	Methods []string `json:"methods"`
	// Headers that they may send besides what every page may. "*": any.
	Headers []string `json:"headers"`
	// Expose are the response headers that they may read besides what every page
	// may. "*": all.
	Expose []string `json:"expose"`
	// Credentials lets requests carry cookies and the like.
	Credentials bool `json:"credentials"`
	// MaxAge is how long a browser may go by one preflight; 0: its default, 5
	// seconds.
	MaxAge time.Duration `json:"max_age"`

	any      bool // every origin may ask
	patterns []*regexp.Regexp
	size     int // of patterns, in bytes
	lines    corsLines
}

// corsLines are field values, made once.
type corsLines struct{ methods, headers, expose, maxAge string }

var defaultCORSMethods = []string{"GET", "HEAD", "POST"}

// Allow returns what Access-Control-Allow-Origin is to say to a page of origin;
// "" for none.
func (c *CORS) Allow(origin string) string {
	switch {
	case c.any:
		return "*"
	case origin == "":
		return ""
	case slices.Contains(c.Origins, origin) && origin[0] != '~':
		return origin
	}
	for _, p := range c.patterns {
		if p.MatchString(origin) {
			return origin
		}
	}
	return ""
}

// Varies reports whether responses depend on the origin.
func (c *CORS) Varies() bool { return !c.any }

// AllowMethods, AllowHeaders, ExposeHeaders and MaxAgeSeconds return the values of
// the fields called Access-Control-..., "" for none.
func (c *CORS) AllowMethods() string  { return c.lines.methods }
func (c *CORS) AllowHeaders() string  { return c.lines.headers }
func (c *CORS) ExposeHeaders() string { return c.lines.expose }
func (c *CORS) MaxAgeSeconds() string { return c.lines.maxAge }

// check refuses what makes no sense and makes c ready for use; c may be nil.
func (c *CORS) check(path string) error {
	if c == nil {
		return nil
	}
	if len(c.Origins) == 0 {
		return fieldErrorf(join(path, "origins"), "is missing; give origins such as \"https://app.x-gpu.com\", \"~regex\", or \"*\" for all")
	}
	for i, o := range c.Origins {
		if err := c.addOrigin(fmt.Sprintf("%s[%d]", join(path, "origins"), i), o); err != nil {
			return err
		}
	}
	if c.any && len(c.Origins) > 1 {
		return fieldErrorf(join(path, "origins"), "\"*\" stands for all origins; leave the others out, or it")
	}
	if c.MaxAge%time.Second != 0 || c.MaxAge < 0 {
		return fieldErrorf(join(path, "max_age"), "must be whole seconds, not %v", c.MaxAge)
	}
	if len(c.Methods) == 0 {
		c.Methods = defaultCORSMethods
	}
	for _, list := range []struct {
		name  string
		names []string
		line  *string
	}{{"methods", c.Methods, &c.lines.methods}, {"headers", c.Headers, &c.lines.headers}, {"expose", c.Expose, &c.lines.expose}} {
		if err := c.checkNames(join(path, list.name), list.names); err != nil {
			return err
		}
		*list.line = strings.Join(list.names, ", ")
	}
	if c.MaxAge > 0 {
		c.lines.maxAge = strconv.FormatInt(int64(c.MaxAge/time.Second), 10)
	}
	return nil
}

// maxOriginExprs is how many of the origins are regular expressions at most: each
// may be matched at every request.
const maxOriginExprs = 16

func (c *CORS) addOrigin(path, origin string) error {
	if pattern, is := strings.CutPrefix(origin, "~"); is {
		// Anchored, since a pattern that is found anywhere in an origin lets in
		// https://x-gpu.com.evil.example.
		p, err := compilePattern(pattern, "^(?:", ")$")
		if err != nil {
			return under(path, err)
		}
		if len(c.patterns) == maxOriginExprs {
			return fieldErrorf(path, "is one regular expression too many; at most %d are allowed. Write several as one, with | between them", maxOriginExprs)
		}
		if c.size += len(pattern); c.size > maxExprs {
			return fieldErrorf(path, "the regular expressions have %d characters in all; at most %d are allowed", c.size, maxExprs)
		}
		c.patterns = append(c.patterns, p)
		return nil
	}
	if origin == "*" {
		if c.Credentials {
			return fieldErrorf(path, "\"*\" with credentials would have every page act as the user; name the origins, or leave credentials out")
		}
		c.any = true
		return nil
	}
	if origin == "null" {
		return fieldErrorf(path, "\"null\" is the origin of any page in a sandbox; name the origins that you mean")
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin || strings.ToLower(origin) != origin {
		return fieldErrorf(path, "%q is not an origin; write it as browsers do: \"https://app.x-gpu.com\", in lower case, without a path", origin)
	}
	if port := u.Port(); u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		return fieldErrorf(path, "%q: browsers leave the port of the scheme out, and so must this", origin)
	}
	return nil
}

// checkNames checks a list of methods or fields.
func (c *CORS) checkNames(path string, names []string) error {
	for i, name := range names {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !isToken(name) {
			return fieldErrorf(at, "%q is not a name", name)
		}
		if name == "*" && c.Credentials {
			return fieldErrorf(at, "\"*\" does not stand for all where there are credentials; name them")
		}
		if strings.HasSuffix(path, "methods") && strings.ToUpper(name) != name {
			return fieldErrorf(at, "%q is not a method; write it in capitals, such as \"GET\"", name)
		}
	}
	return nil
}
