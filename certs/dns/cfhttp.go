package dns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
)

// cfClient sends the requests of one call of libdns/cloudflare. Of everything
// but a complete reply that says success it makes an error, and keeps it.
type cfClient struct {
	client *http.Client
	failed error // the last that went wrong; nil: nothing did
}

// cfReply is how much of a reply is read. The largest, a page of records, has
// some hundred kilobytes.
const cfReply = 4 << 20

// Do implements the client interface of libdns/cloudflare.
func (c *cfClient) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.client.Do(req)
	if err != nil {
		c.failed = err
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, cfReply))
	if err != nil {
		err = fmt.Errorf("HTTP %d, and the reply ends too early: %w", resp.StatusCode, err)
	} else {
		err = cfSays(resp, body)
	}
	if err == nil && req.Method == http.MethodGet {
		err = cfList(body)
	}
	if err != nil {
		c.failed = err
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// cfSays returns what is wrong by a reply, or nil.
func cfSays(resp *http.Response, body []byte) error {
	var said struct {
		Success bool
		Errors  []cfProblem
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	broken := json.Unmarshal(body, &said)
	switch {
	case broken == nil && len(said.Errors) > 0:
		return &cfError{status: resp.StatusCode, problems: said.Errors, retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	case broken != nil && media == "application/json" && resp.StatusCode < 300:
		return fmt.Errorf("HTTP %d, and the reply is no JSON: %w", resp.StatusCode, broken)
	case broken != nil || resp.StatusCode >= 300 || !said.Success:
		return &httpError{
			status: resp.StatusCode, media: media, said: oneLine(body[:min(len(body), 300)]),
			retryAfter: retryAfter(resp.Header.Get("Retry-After")),
		}
	}
	return nil
}

// cfList says what keeps a reply from being a list of things with an id: the
// library takes it for an empty one.
func cfList(body []byte) error {
	var said struct{ Result []struct{ ID string } }
	if err := json.Unmarshal(body, &said); err != nil {
		return fmt.Errorf("the reply is no list: %w", err)
	}
	if said.Result == nil || slices.ContainsFunc(said.Result, func(r struct{ ID string }) bool { return r.ID == "" }) {
		return fmt.Errorf("the reply is no list of what has an id: %s", oneLine(body[:min(len(body), 300)]))
	}
	return nil
}

// cfError is a complaint of the API.
type cfError struct {
	status     int
	problems   []cfProblem
	retryAfter time.Duration
}

type cfProblem struct {
	Code    int
	Message string
}

func (e *cfError) Error() string {
	texts := make([]string, len(e.problems))
	for i, p := range e.problems {
		texts[i] = fmt.Sprintf("code %d: %s", p.Code, oneLine([]byte(p.Message)))
	}
	return fmt.Sprintf("HTTP %d %s", e.status, strings.Join(texts, "; "))
}

// is reports whether one of the codes is among the problems.
func (e *cfError) is(codes ...int) bool {
	return slices.ContainsFunc(e.problems, func(p cfProblem) bool { return slices.Contains(codes, p.Code) })
}

func (e *cfError) after() time.Duration { return e.retryAfter }
