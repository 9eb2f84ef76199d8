package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/wire"
)

// get makes a call that changes nothing.
func get[T any](ctx context.Context, c *Client, query url.Values, path ...string) (*T, error) {
	out := new(T)
	if err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// change makes a call that changes something.
func change[T any](ctx context.Context, c *Client, in call, options ...Option) (*T, error) {
	out := new(T)
	if err := c.do(ctx, in, out, options...); err != nil {
		return nil, err
	}
	return out, nil
}

// pages asks for a list part by part. Whoever stops early asks for no more.
func pages[T any](ctx context.Context, c *Client, query url.Values, path ...string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query.Set("limit", "1000")
		for {
			page, err := get[wire.Page[T]](ctx, c, query, path...)
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			query.Set("after", page.Next)
		}
	}
}

// Collect returns all that a list gives, or its first error.
func Collect[T any](list iter.Seq2[T, error]) (all []T, err error) {
	for item, err := range list {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

func text(name, value string) url.Values {
	if value == "" {
		return url.Values{}
	}
	return url.Values{name: {value}}
}

// CreateEnvironment makes an environment: its ports, mappings and routes, or
// nothing. Asked again for the same, it returns what there is. It takes Applied.
func (c *Client) CreateEnvironment(ctx context.Context, e wire.NewEnvironment, options ...Option) (*wire.Environment, error) {
	return change[wire.Environment](ctx, c, call{method: http.MethodPost, path: []string{"environments"}, body: e}, options...)
}

// Environments lists environments whose names begin with prefix.
func (c *Client) Environments(ctx context.Context, prefix string) iter.Seq2[wire.Environment, error] {
	return pages[wire.Environment](ctx, c, text("prefix", prefix), "environments")
}

// Environment returns one.
func (c *Client) Environment(ctx context.Context, id string) (*wire.Environment, error) {
	return get[wire.Environment](ctx, c, nil, "environments", id)
}

// PatchEnvironment changes one. It takes Applied and IfRevision.
func (c *Client) PatchEnvironment(ctx context.Context, id string, p wire.EnvironmentPatch, options ...Option) (*wire.Environment, error) {
	return change[wire.Environment](ctx, c, call{method: http.MethodPatch, path: []string{"environments", id}, body: p}, options...)
}

// DeleteEnvironment ends one, and returns the revision of that. It takes Applied,
// Drain and IfRevision.
func (c *Client) DeleteEnvironment(ctx context.Context, id string, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodDelete, path: []string{"environments", id}}, options...)
}

func (c *Client) done(ctx context.Context, in call, options ...Option) (rev int64, err error) {
	d, err := change[wire.Done](ctx, c, in, options...)
	if err != nil {
		return 0, err
	}
	return d.Revision, nil
}

// Access says how the services of an environment are reached, by their names; with
// what people need to log in, if secrets says so and the token is an operator's.
func (c *Client) Access(ctx context.Context, id string, secrets bool) (map[string]wire.Access, error) {
	a, err := get[wire.AccessAnswer](ctx, c, url.Values{"secrets": {strconv.FormatBool(secrets)}}, "environments", id, "access")
	if err != nil {
		return nil, err
	}
	return a.Data.AccessInfo, nil
}

// AllocatePort gives an environment a port of a pool, and no mapping.
func (c *Client) AllocatePort(ctx context.Context, r wire.PortRequest, options ...Option) (*wire.Service, error) {
	return change[wire.Service](ctx, c, call{method: http.MethodPost, path: []string{"ports"}, body: r}, options...)
}

// ReleasePort takes a service's ports away from an environment. The revision is 0
// if it had none.
func (c *Client) ReleasePort(ctx context.Context, env, service string, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodDelete, path: []string{"ports", env, service}}, options...)
}

// Ports lists ports that are held, reserved or were released, of one pool or, for
// "", of all.
func (c *Client) Ports(ctx context.Context, service string) iter.Seq2[wire.Port, error] {
	return pages[wire.Port](ctx, c, text("service", service), "ports")
}

// Reserve sets ports aside. The revision is 0 if they are already.
func (c *Client) Reserve(ctx context.Context, r wire.Reservation, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodPost, path: []string{"reservations"}, body: r}, options...)
}

// Unreserve makes ports available that were set aside, or that rest. protocol is
// tcp, udp or tcp+udp, ports one port or one range.
func (c *Client) Unreserve(ctx context.Context, protocol, ports string, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodDelete, path: []string{"reservations"}, query: url.Values{"protocol": {protocol}, "ports": {ports}}}, options...)
}

// Audit says what does not fit together of allocations, mappings and environments.
func (c *Client) Audit(ctx context.Context) ([]wire.PortFinding, error) {
	return items[wire.PortFinding](ctx, c, "audit")
}

// Usage counts the ports of each pool by their state.
func (c *Client) Usage(ctx context.Context) ([]wire.PoolUsage, error) {
	return items[wire.PoolUsage](ctx, c, "usage")
}

// items returns a list that has one part.
func items[T any](ctx context.Context, c *Client, path ...string) ([]T, error) {
	page, err := get[wire.Page[T]](ctx, c, nil, path...)
	if err != nil {
		return nil, err
	}
	return page.Items, nil
}

// kinds are what keys are called by the API, by their folders.
var kinds = map[string]string{"ports": "mappings", "routes": "routes", "domains": "domains", "names": "names", "pools": "pools"}

// keyPath returns where a key is found, such as mappings/tcp/20022 for
// ports/tcp/20022.
func keyPath(key string) ([]string, error) {
	parts := strings.Split(key, "/")
	kind, ok := kinds[parts[0]]
	if !ok || len(parts) < 2 {
		return nil, fmt.Errorf("%q is no key of a mapping, route, domain, name or pool; write it as in etcd, such as ports/tcp/20022 or routes/web", key)
	}
	if parts[0] != "ports" { // one name, whatever is in it
		parts = []string{"", strings.Join(parts[1:], "/")}
	}
	return append([]string{kind}, parts[1:]...), nil
}

// Keys lists keys below a folder, ports/, routes/, domains/, names/ or pools/, whose
// names begin with what comes behind it, with what each node made of them.
func (c *Client) Keys(ctx context.Context, prefix string) iter.Seq2[wire.Key, error] {
	folder, rest, _ := strings.Cut(prefix, "/")
	kind, ok := kinds[folder]
	if !ok {
		return func(yield func(wire.Key, error) bool) {
			yield(wire.Key{}, fmt.Errorf("%q is no folder of keys; there are ports/, routes/, domains/, names/ and pools/", prefix))
		}
	}
	return pages[wire.Key](ctx, c, text("prefix", rest), kind)
}

// Key returns one, such as ports/tcp/20022.
func (c *Client) Key(ctx context.Context, key string) (*wire.Key, error) {
	path, err := keyPath(key)
	if err != nil {
		return nil, err
	}
	return get[wire.Key](ctx, c, nil, path...)
}

// PutKey writes the value of a key, as JSON (wire.ValueOf), unless nodes would
// refuse it. It takes Applied, IfRevision, IfThere and DryRun.
func (c *Client) PutKey(ctx context.Context, key string, value json.RawMessage, options ...Option) (*wire.KeyChange, error) {
	path, err := keyPath(key)
	if err != nil {
		return nil, err
	}
	return change[wire.KeyChange](ctx, c, call{method: http.MethodPut, path: path, body: value}, options...)
}

// DeleteKey deletes a key. It takes Applied, IfRevision.
func (c *Client) DeleteKey(ctx context.Context, key string, options ...Option) (*wire.KeyChange, error) {
	path, err := keyPath(key)
	if err != nil {
		return nil, err
	}
	return change[wire.KeyChange](ctx, c, call{method: http.MethodDelete, path: path}, options...)
}

// ChangeKeys changes up to 126 keys in one transaction, or none. It takes Applied.
func (c *Client) ChangeKeys(ctx context.Context, w wire.KeyWishes, options ...Option) (*wire.KeyPlan, error) {
	return change[wire.KeyPlan](ctx, c, call{method: http.MethodPost, path: []string{"changes"}, body: w}, options...)
}

// Status shows the cluster at a glance.
func (c *Client) Status(ctx context.Context) (*wire.Status, error) {
	return get[wire.Status](ctx, c, nil, "status")
}

// Nodes lists the nodes that run, and those that are to be drained.
func (c *Client) Nodes(ctx context.Context) ([]wire.NodeView, error) {
	return items[wire.NodeView](ctx, c, "nodes")
}

// Node returns one of them.
func (c *Client) Node(ctx context.Context, name string) (*wire.NodeView, error) {
	return get[wire.NodeView](ctx, c, nil, "nodes", name)
}

// DrainNode takes a node out, until UndrainNode. It does not wait for that: Node
// says how far it is. The revision is 0 if somebody wants so already for the same
// reason.
func (c *Client) DrainNode(ctx context.Context, name string, d wire.Drain, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodPut, path: []string{"nodes", name, "drain"}, body: d}, options...)
}

// UndrainNode has a node that is drained serve again. It does not wait for that.
func (c *Client) UndrainNode(ctx context.Context, name string, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodDelete, path: []string{"nodes", name, "drain"}}, options...)
}

// VerdictFilter picks verdicts: those that are like it in each field that is set.
type VerdictFilter struct {
	Under string // on keys that begin so
	Node  string
	State string // applied, refused, degraded or held
}

// Verdicts lists what nodes say of keys.
func (c *Client) Verdicts(ctx context.Context, f VerdictFilter) iter.Seq2[wire.NodeVerdict, error] {
	query := url.Values{}
	for name, value := range map[string]string{"under": f.Under, "node": f.Node, "state": f.State} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return pages[wire.NodeVerdict](ctx, c, query, "verdicts")
}

// WaitApplied waits until every live node has applied a revision, 0 being the
// newest, and at most for limit, from a second to a minute.
func (c *Client) WaitApplied(ctx context.Context, rev int64, limit time.Duration) (*wire.AppliedBy, error) {
	in := call{method: http.MethodGet, path: []string{"applied"}, query: url.Values{"revision": {strconv.FormatInt(rev, 10)}}}
	return change[wire.AppliedBy](ctx, c, in, Applied(limit), func(c *call) { c.query.Del("wait") })
}

// History lists the changes that were made after a revision to keys that begin
// with under, the oldest first. gap, unless nil, is set if some are missing.
func (c *Client) History(ctx context.Context, after int64, under string, gap *bool) iter.Seq2[wire.PastChange, error] {
	return func(yield func(wire.PastChange, error) bool) {
		query := text("under", under)
		query.Set("limit", "1000")
		for {
			query.Set("after", strconv.FormatInt(after, 10))
			part, err := get[wire.History](ctx, c, query, "history")
			if err != nil {
				yield(wire.PastChange{}, err)
				return
			}
			if gap != nil {
				*gap = *gap || part.Gap
			}
			for _, item := range part.Items {
				if !yield(item, nil) {
					return
				}
			}
			if after = part.Next; after == 0 {
				return
			}
		}
	}
}

// Diff says how keys that begin with under differ between two revisions; to 0 is
// now.
func (c *Client) Diff(ctx context.Context, from, to int64, under string) (*wire.Changes, error) {
	query := text("under", under)
	query.Set("from", strconv.FormatInt(from, 10))
	query.Set("to", strconv.FormatInt(to, 10))
	return get[wire.Changes](ctx, c, query, "diff")
}

// Rollback makes keys again what they were. It takes Applied.
func (c *Client) Rollback(ctx context.Context, r wire.Rollback, options ...Option) (*wire.Changes, error) {
	return change[wire.Changes](ctx, c, call{method: http.MethodPost, path: []string{"rollback"}, body: r}, options...)
}

// Flows lists the live flows of the node that is asked, those that are like filter
// (env, service, port, proto, client, listener, route, backend, id), at most 10,000.
func (c *Client) Flows(ctx context.Context, filter url.Values) (*wire.Flows, error) {
	return get[wire.Flows](ctx, c, filter, "flows")
}

// CutFlows ends flows of the node that is asked, those that are like filter or,
// with all=true in it, all, and says how many.
func (c *Client) CutFlows(ctx context.Context, filter url.Values, options ...Option) (*wire.Cut, error) {
	return change[wire.Cut](ctx, c, call{method: http.MethodDelete, path: []string{"flows"}, query: filter}, options...)
}

// Explain says what the node that is asked would do with a request (url, method,
// header, client) or a connection (port, client).
func (c *Client) Explain(ctx context.Context, question url.Values) (*wire.Explanation, error) {
	return get[wire.Explanation](ctx, c, question, "explain")
}

// Tokens lists tokens, without what they are.
func (c *Client) Tokens(ctx context.Context) ([]wire.Token, error) {
	return items[wire.Token](ctx, c, "tokens")
}

// CreateToken makes a token, which is shown this once. It is sent once only: where
// the answer is lost, remove the token and make another.
func (c *Client) CreateToken(ctx context.Context, t wire.NewToken) (*wire.MadeToken, error) {
	return change[wire.MadeToken](ctx, c, call{method: http.MethodPost, path: []string{"tokens"}, body: t, once: true})
}

// RotateToken makes another token in the place of one, which is good for grace
// besides, in whole seconds. Like CreateToken it is sent once.
func (c *Client) RotateToken(ctx context.Context, name string, grace time.Duration) (*wire.MadeToken, error) {
	query := url.Values{"grace": {strconv.Itoa(int(grace / time.Second))}}
	return change[wire.MadeToken](ctx, c, call{method: http.MethodPost, path: []string{"tokens", name, "rotate"}, query: query, once: true})
}

// DeleteToken removes a token: whoever has it is refused at once.
func (c *Client) DeleteToken(ctx context.Context, name string, options ...Option) (rev int64, err error) {
	return c.done(ctx, call{method: http.MethodDelete, path: []string{"tokens", name}}, options...)
}
