package router

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// ForwardAuth asks an HTTP service about each request before it goes on.
type ForwardAuth struct {
	Backend *Backend `json:"backend"`
	Path    string   `json:"path"`   // with a query, if any; "" means /
	Method  string   `json:"method"` // "" means GET
	// Copy are the headers of a 2xx answer that the request goes on with. What
	// the client says in them never gets to the backend.
	Copy []string `json:"copy"`
	// Timeout bounds the asking; 0 means 5 seconds.
	Timeout time.Duration `json:"timeout"`
	// OnFailure is the status where the service does not answer; 0 means 503.
	OnFailure int        `json:"on_failure" range:"400,599"`
	Cache     *AuthCache `json:"cache"` // nil: it is asked each time

	id    string   // of what a cached answer is an answer to
	lower []string // Copy in lower case, with - for _
}

// AuthCache has 2xx answers hold for other requests to the same host with the
// same values of some headers. Requests without any of these are not cached.
type AuthCache struct {
	TTL time.Duration `json:"ttl"`
	By  []string      `json:"by"` // nil: Authorization and Cookie
}

// The times that a ForwardAuth takes.
const (
	authTimeout    = 5 * time.Second
	maxAuthTimeout = time.Minute
	maxAuthTTL     = time.Hour
)

// ID tells apart what two values ask.
func (f *ForwardAuth) ID() string { return f.id }

// Names returns Copy in lower case, with - for _.
func (f *ForwardAuth) Names() []string { return f.lower }

// EffectiveTimeout returns Timeout or its default.
func (f *ForwardAuth) EffectiveTimeout() time.Duration {
	if f.Timeout == 0 {
		return authTimeout
	}
	return f.Timeout
}

// Headers returns By or its default.
func (c *AuthCache) Headers() []string {
	if len(c.By) == 0 {
		return []string{"Authorization", "Cookie"}
	}
	return c.By
}

// Longhand lets a time stand for a cache that holds answers for so long.
func (*AuthCache) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	if raw[0] == '"' {
		return json.Marshal(map[string]json.RawMessage{"ttl": raw})
	}
	return raw, nil
}

func (f *ForwardAuth) check(at string, captures []string) error {
	b := f.Backend
	if b == nil {
		return fieldErrorf(join(at, "backend"), "is missing; give the service, such as \"127.0.0.1:9000\"")
	}
	if err := b.check(join(at, "backend"), captures); err != nil {
		return err
	}
	switch {
	case b.Health != nil:
		return fieldErrorf(join(at, "backend.health"), "is not checked here; leave it out")
	case b.Sticky != nil:
		return fieldErrorf(join(at, "backend.sticky"), "would set cookies in the name of a service that clients do not see; leave it out")
	}
	if p := f.Path; p != "" && (p[0] != '/' || strings.ContainsAny(p, "# ") || !isPlainText(p)) {
		return fieldErrorf(join(at, "path"), "%q is not a path; write it escaped, with a query if there is one, such as /verify?group=lab", p)
	}
	switch f.Method {
	case "", "GET", "HEAD", "POST":
	default:
		return fieldErrorf(join(at, "method"), "%q is not one to ask with; write \"GET\", \"HEAD\" or \"POST\"", f.Method)
	}
	if f.Timeout > maxAuthTimeout {
		return fieldErrorf(join(at, "timeout"), "must be at most %v, not %v", maxAuthTimeout, f.Timeout)
	}
	for i, name := range f.Copy {
		field := fmt.Sprintf("%s[%d]", join(at, "copy"), i)
		if err := checkCopied(field, name); err != nil {
			return err
		}
		f.lower = append(f.lower, strings.ReplaceAll(strings.ToLower(name), "_", "-"))
	}
	f.id = fmt.Sprint(b.Targets, b.TLS, f.Method, f.Path, f.lower)
	return f.Cache.check(join(at, "cache"))
}

// checkCopied refuses to copy what frames a message or is the node's own to say.
func checkCopied(field, name string) error {
	lower := strings.ToLower(name)
	switch {
	case !isToken(name):
		return fieldErrorf(field, "%q is not a header name", name)
	case contains(framingHeaders, lower) || strings.HasPrefix(lower, "content-") || lower == "host":
		return fieldErrorf(field, "%q describes the message that it stands in; it cannot be copied to another", name)
	case strings.HasPrefix(lower, "x-forwarded-") || lower == "forwarded" || lower == "x-real-ip":
		return fieldErrorf(field, "%q is the node's to say; it cannot be copied", name)
	}
	return nil
}

func (c *AuthCache) check(at string) error {
	if c == nil {
		return nil
	}
	if c.TTL <= 0 || c.TTL > maxAuthTTL {
		return fieldErrorf(join(at, "ttl"), "must be more than 0 and at most %v, not %v", maxAuthTTL, c.TTL)
	}
	for i, name := range c.By {
		if !isToken(name) {
			return fieldErrorf(fmt.Sprintf("%s[%d]", join(at, "by"), i), "%q is not a header name", name)
		}
	}
	return nil
}
