// Package client is the control API of Sluice for programs in Go: a method for
// each call, over the same types as the handlers (control/wire).
//
//	c, err := client.New(client.Config{URL: "https://edge-1.example.com:9443", TokenFile: "/run/secrets/sluice"})
//	...
//	env, err := c.CreateEnvironment(ctx, wire.NewEnvironment{
//		ID: "6hiflzwte2xnkroq", Backend: "10.0.3.17", Services: map[string]wire.ServiceSpec{"ssh": {}},
//	}, client.Applied(10*time.Second))
//
// What the API refuses is a *wire.Problem, whose Code tells problems apart:
//
//	if p := client.ProblemOf(err); p != nil && p.Code == wire.Exhausted { ... }
//
// A change is sent with an Idempotency-Key of its own, and sent again where the
// answer was lost or etcd was not to be had: it is done once. Each node answers
// for the whole cluster, but for flows and explanations, which are its own.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/wire"
)

// Config says which node is asked, and as whom. URL is needed.
type Config struct {
	// URL is where a node answers: https://host:port (api.listen),
	// http://127.0.0.1:9180 (the admin address), or unix:///path of a socket that
	// leads there.
	URL string
	// Token is a bearer token. TokenFile, in its place, is a file that holds one,
	// read for each request, so that it may be replaced under a running program.
	// Neither is needed where TLS has a client certificate.
	Token, TokenFile string
	// TLS is for https: roots, a client certificate; nil: the system's roots. It
	// is not to be modified afterwards.
	TLS *tls.Config
	// Attempts is how often a request is sent at most, 0 meaning 4. One that may
	// have been heard is sent again only where that does no harm.
	Attempts int
	// UserAgent names the program; empty: sluice-client.
	UserAgent string
}

// Client asks one node. It is safe for concurrent use.
type Client struct {
	cfg  Config
	base url.URL
	http *http.Client
}

const (
	// answerTime bounds one attempt, besides what it waits for nodes.
	answerTime = 30 * time.Second
	// firstPause is the pause before the second attempt, which doubles.
	firstPause = 100 * time.Millisecond
	// longestRest is the longest rest that the API may ask for that is kept: of
	// more, the caller is told.
	longestRest = 5 * time.Second
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 256 << 20
)

// New checks cfg and returns a Client, which connects when it is used. Close it.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if strings.Contains(cfg.URL, "@") && (err != nil || u.Host == "" || u.User != nil) {
		return nil, errors.New("the control API's URL has a user or a password in it, which it does not ask for and logs would have: give a token, and no more than https://host:port")
	}
	if err != nil {
		u = new(url.URL) // none, which is said below
	}
	tr := &http.Transport{TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, Proxy: http.ProxyFromEnvironment}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		path := u.Path
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		tr.Proxy = nil
		u = &url.URL{Scheme: "http", Host: "localhost"}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
	default:
		return nil, fmt.Errorf("the control API's URL %q: write https://host:port, http://127.0.0.1:9180, or unix:///path of a socket", cfg.URL)
	}
	if cfg.Token != "" && cfg.TokenFile != "" {
		return nil, errors.New("give a token or a file that holds one, not both")
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 4
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "sluice-client"
	}
	base := url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/api/v1") + "/api/v1"}
	return &Client{cfg: cfg, base: base, http: &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a token is for nobody else
	}}, nil
}

// Close closes connections that are idle. Requests under way are not touched.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// ProblemOf returns what the API said, or nil if err is of another kind.
func ProblemOf(err error) *wire.Problem {
	var p *wire.Problem
	errors.As(err, &p)
	return p
}

// call is one call of the API.
type call struct {
	method string
	path   []string // below /api/v1, to be escaped
	query  url.Values
	header http.Header
	body   any // nil: none
	// once says that the call must be sent once only: its answer is kept by nobody.
	once bool
	wait time.Duration // that nodes are waited for
}

// Option says how a change is made.
type Option func(*call)

// Applied has the answer wait until every live node has applied the change, at
// most for limit, from a second to a minute. If that is over, the error is a
// problem of the code wire.NotApplied: the change was made.
func Applied(limit time.Duration) Option {
	return func(c *call) {
		seconds := min(max(int((limit+time.Second-1)/time.Second), 1), 60)
		c.wait = time.Duration(seconds) * time.Second
		c.query.Set("wait", "applied")
		c.query.Set("timeout", strconv.Itoa(seconds))
	}
}

// IfRevision has the change made only to what is as of that revision, else the
// error is a problem of the code wire.Stale.
func IfRevision(rev int64) Option {
	return func(c *call) { c.header.Set("If-Match", strconv.Quote(strconv.FormatInt(rev, 10))) }
}

// IfThere has the change made only to what there is.
func IfThere() Option { return func(c *call) { c.header.Set("If-Match", "*") } }

// Once has the change made once only, however often it is asked for with the same
// key within a day, by whatever process: with the same key it is answered as the
// first time. Without it each call has a key of its own.
func Once(key string) Option { return func(c *call) { c.header.Set("Idempotency-Key", key) } }

// Drain has the sessions of an environment that ends go on for so long, in the place
// of what its mappings say; 0: not at all.
func Drain(limit time.Duration) Option {
	return func(c *call) { c.query.Set("drain", limit.String()) }
}

// DryRun has a value checked and not written.
func DryRun() Option { return func(c *call) { c.query.Set("dry_run", "true") } }

// do makes a call and reads its answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, in call, out any, options ...Option) error {
	if in.query == nil {
		in.query = url.Values{}
	}
	in.header = http.Header{}
	for _, o := range options {
		o(&in)
	}
	var body []byte
	if in.body != nil {
		var err error
		if body, err = json.Marshal(in.body); err != nil {
			return fmt.Errorf("write the request: %w", err)
		}
		in.header.Set("Content-Type", "application/json")
	}
	if in.method != http.MethodGet && !in.once && in.header.Get("Idempotency-Key") == "" {
		in.header.Set("Idempotency-Key", rand.Text())
	}
	pause := firstPause
	for n := 1; ; n++ {
		answer, rest, err := c.attempt(ctx, in, body)
		if err == nil {
			if out == nil {
				return nil
			}
			if err := json.Unmarshal(answer, out); err != nil {
				return fmt.Errorf("read the answer of %s: %w (is it a node of this version?)", c.base.Host, err)
			}
			return nil
		}
		if n >= c.cfg.Attempts || !mayRepeat(in, err) || rest > longestRest {
			return err
		}
		if wait(ctx, max(pause, rest)) != nil {
			return err
		}
		pause *= 2
	}
}

// mayRepeat reports whether a call that has failed so may be made again.
func mayRepeat(in call, err error) bool {
	p := ProblemOf(err)
	if p == nil { // no answer, or no whole one
		return !in.once && !errors.Is(err, errSelf)
	}
	switch p.Code {
	case wire.TooMany, wire.UnderWay:
		return true
	case wire.Unavailable:
		return !in.once
	}
	return false
}

// errSelf is a failure before anything was sent.
var errSelf = errors.New("nothing was sent")

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt sends a call once and returns the answer's body. rest is how long the
// API wants to be left alone.
func (c *Client) attempt(ctx context.Context, in call, body []byte) (answer []byte, rest time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime+in.wait)
	defer cancel()
	req, err := c.request(ctx, in, bytes.NewReader(body))
	if err != nil {
		return nil, 0, errors.Join(errSelf, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, c.unreached(err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return nil, 0, c.unreached(err)
	}
	if resp.StatusCode/100 == 2 {
		return answer, 0, nil
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		rest = time.Duration(seconds) * time.Second
	}
	return nil, rest, c.problem(resp, answer)
}

// unreached says whom it was that did not answer.
func (c *Client) unreached(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("ask the control API at %s: %w", c.cfg.URL, err)
}

// problem returns what a refusal says.
func (c *Client) problem(resp *http.Response, body []byte) error {
	p := new(wire.Problem)
	if json.Unmarshal(body, p) != nil || p.Code == "" {
		return fmt.Errorf("%s answers %s, which is no answer of the control API: is it a node's address?", c.cfg.URL, resp.Status)
	}
	p.Status = resp.StatusCode
	return p
}

// request makes the request of a call.
func (c *Client) request(ctx context.Context, in call, body io.Reader) (*http.Request, error) {
	u := *c.base.JoinPath() // a copy
	raw := u.Path
	for _, part := range in.path {
		u.Path += "/" + part
		raw += "/" + url.PathEscape(part)
	}
	u.RawPath, u.RawQuery = raw, in.query.Encode()
	req, err := http.NewRequestWithContext(ctx, in.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for name, values := range in.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	token := c.cfg.Token
	if c.cfg.TokenFile != "" {
		text, err := os.ReadFile(c.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	if token != "" {
		if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, errors.New("the token is none: it has spaces or characters that tokens do not have")
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}
