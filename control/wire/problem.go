package wire

import "strings"

// Problem is what a request is answered with that came to nothing (RFC 9457). It
// is the error that the client returns then.
type Problem struct {
	Type   string  `json:"type" doc:"Always about:blank; code tells problems apart." example:"about:blank"`
	Title  string  `json:"title" doc:"The status in words." example:"Conflict"`
	Status int     `json:"status" doc:"The HTTP status." example:"409"`
	Code   string  `json:"code" doc:"The kind of problem, for programs; it does not change." example:"exhausted" enum:"invalid,unauthorized,forbidden,not_found,method,exists,exhausted,taken,stale,conflict,last_admin,under_way,too_large,too_many,not_applied,unavailable,internal"`
	Detail string  `json:"detail" doc:"What is wrong and what would be right, for people."`
	Field  string  `json:"field,omitempty" doc:"The field that is wrong, if one is." example:"services.ssh.port"`
	Errors []Fault `json:"errors,omitempty" doc:"All that is wrong, where there is more than one thing."`
	// Revision is that of a change that was made, though not all nodes have applied
	// it.
	Revision int64 `json:"revision,omitempty" doc:"The etcd revision of the change, where one was made (not_applied)."`
}

// The codes of a Problem.
const (
	Invalid      = "invalid"      // 400: the request, or a value in it; Field says which
	Unauthorized = "unauthorized" // 401: no token, or none that is known and has not expired
	Forbidden    = "forbidden"    // 403: the token's role or scope
	NotFound     = "not_found"    // 404: there is none, or none that the token may see
	Method       = "method"       // 405: nothing that is done there; Allow says what is
	Exists       = "exists"       // 409: there is another of that name
	Exhausted    = "exhausted"    // 409: a pool has no free port
	Taken        = "taken"        // 409: the very port that was asked for is not to be had
	Conflict     = "conflict"     // 409: somebody else's changes came first, time and again
	LastAdmin    = "last_admin"   // 409: the only token of an admin asks for its own end
	UnderWay     = "under_way"    // 409: the first request with this Idempotency-Key has not been answered yet
	Stale        = "stale"        // 412: it has changed since (If-Match), or is there (If-None-Match)
	TooLarge     = "too_large"    // 413: the request's body
	TooMany      = "too_many"     // 429: too many requests
	NotApplied   = "not_applied"  // 504: the change was made, and not all live nodes have applied it in time
	Unavailable  = "unavailable"  // 503: etcd, mostly: try again
	Internal     = "internal"     // 500: a mistake of the program's
)

// Fault is one of several things that are wrong with a request.
type Fault struct {
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
}

// Error implements error. It names the field, where Detail does not.
func (p *Problem) Error() string {
	if p.Field == "" || strings.HasPrefix(p.Detail, p.Field) {
		return p.Detail
	}
	return p.Field + ": " + p.Detail
}

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type that a problem is sent as.
func (p *Problem) ContentType(string) string { return "application/problem+json" }
