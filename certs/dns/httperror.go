package dns

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// httpError is a reply that is no answer.
type httpError struct {
	status     int
	media      string // of the body, without parameters
	said       string // the beginning of the body
	retryAfter time.Duration
}

func (e *httpError) Error() string {
	return fmt.Sprintf("HTTP %d %s (%s): %s", e.status, http.StatusText(e.status), e.media, e.said)
}

// oneLine makes text fit for an error and a log.
func oneLine(text []byte) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(string(text), "?"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
}

func (e *httpError) after() time.Duration { return e.retryAfter }

// class says whether the same request may succeed later. What is no answer and
// says success came from somebody between.
func (e *httpError) class() class {
	if e.status >= 400 && e.status < 500 && e.status != http.StatusTooManyRequests {
		return classRefused
	}
	return classTransient
}

// retryAfter reads the delay form of the header (RFC 9110 section 10.2.3), the
// only one that APIs send with 429; 0 if it is missing or a date.
func retryAfter(v string) time.Duration {
	s, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(s) * time.Second
}
