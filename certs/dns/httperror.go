package dns

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// jsonClient hands a library only the replies that it understands. Of an
// overloaded or broken API, and of a web page where JSON was due, it makes an
// *httpError that still has the status and what was said.
type jsonClient struct{ client http.Client }

// Do implements the client interface of libdns/cloudflare.
func (c jsonClient) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media == "application/json" && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500 {
		return resp, nil
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // a broken body still leaves the status
	return nil, &httpError{
		status:     resp.StatusCode,
		media:      media,
		said:       oneLine(said),
		retryAfter: retryAfter(resp.Header.Get("Retry-After")),
	}
}

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

// class says whether the same request may succeed later.
func (e *httpError) class() class {
	if e.status == http.StatusTooManyRequests || e.status >= 500 {
		return classTransient
	}
	return classRefused
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
