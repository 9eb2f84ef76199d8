package router

import (
	"encoding/json"
	"strconv"
	"time"
)

// HSTS has browsers come by TLS only from then on (RFC 6797). The zero value
// stands for a year, for the one host.
type HSTS struct {
	// MaxAge is how long browsers remember; nil means 8760h, a year, and 0 has
	// them forget.
	MaxAge            *time.Duration `json:"max_age"`
	IncludeSubdomains bool           `json:"include_subdomains"`
	// Preload says that browsers may ship with the host's name, which takes a
	// year at least, and subdomains.
	Preload bool `json:"preload"`

	off  bool
	line string // made by Check
}

const year = 365 * 24 * time.Hour

// Longhand lets true stand for {}, and false for what the node has being off.
func (s *HSTS) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch {
	case string(raw) == "true":
		return json.RawMessage("{}"), nil
	case string(raw) == "false":
		s.off = true
		return json.RawMessage("{}"), nil
	case raw[0] != '{':
		return nil, fieldErrorf("", "must be true, false or an object in { }, not %s", describe(raw))
	}
	return raw, nil
}

// Line returns the value of Strict-Transport-Security, or "" where there is to be
// none; s may be nil, and has been checked.
func (s *HSTS) Line() string {
	if s == nil {
		return ""
	}
	return s.line
}

// Check refuses what makes no sense and makes s ready for use; s may be nil. path
// is where s stands in its value.
func (s *HSTS) Check(path string) error {
	if s == nil || s.off {
		return nil
	}
	age := year
	if s.MaxAge != nil {
		age = *s.MaxAge
	}
	switch {
	case age%time.Second != 0:
		return fieldErrorf(join(path, "max_age"), "must be whole seconds, not %v", age)
	case s.Preload && !s.IncludeSubdomains:
		return fieldErrorf(join(path, "preload"), "takes include_subdomains: lists of preloaded hosts have no others")
	case s.Preload && age < year:
		return fieldErrorf(join(path, "preload"), "takes a max_age of 8760h at least, not %v", age)
	}
	s.line = "max-age=" + strconv.FormatInt(int64(age/time.Second), 10)
	if s.IncludeSubdomains {
		s.line += "; includeSubDomains"
	}
	if s.Preload {
		s.line += "; preload"
	}
	return nil
}
