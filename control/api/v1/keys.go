package v1

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// keyKind is a kind of keys that the API serves alike.
type keyKind struct {
	path   string // of the list, such as /mappings
	one    string // for people
	folder string // below the prefix
	names  []string
	value  string // what a value is, for people
}

var keyKinds = []keyKind{
	{"/mappings", "mapping", "ports/", []string{"proto", "port"}, `"host:port", or an object as in KEYS.md`},
	{"/routes", "route", "routes/", []string{"name"}, "an object as in KEYS.md"},
	{"/domains", "domain", "domains/", []string{"name"}, "an object as in KEYS.md; {} for a domain"},
	{"/names", "name", "names/", []string{"name"}, "an object as in KEYS.md: a DNS name that is kept true"},
	{"/pools", "pool", "pools/", []string{"service"}, "an object as in KEYS.md"},
}

// Value is the value of a key, as JSON.
type Value struct{ json.RawMessage }

// Schema implements huma.SchemaProvider.
func (Value) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Description: "What the key is to be.", OneOf: []*huma.Schema{{Type: "object", AdditionalProperties: true}, {Type: "string"}}}
}

// UnmarshalJSON keeps the value as it stands.
func (v *Value) UnmarshalJSON(text []byte) error { return v.RawMessage.UnmarshalJSON(text) }

// keyName is what the path says of a key: the fields that its kind has.
type keyName struct{ key string }

// Resolve takes the key's name from the path.
func (n *keyName) Resolve(ctx huma.Context) []error {
	kind := ctx.Operation().Metadata["kind"].(keyKind)
	parts := make([]string, len(kind.names))
	for i, name := range kind.names {
		parts[i] = ctx.Param(name)
	}
	n.key = kind.folder + strings.Join(parts, "/")
	if _, err := router.ParseKey(n.key); err != nil {
		return []error{&huma.ErrorDetail{Location: "path." + strings.Join(kind.names, "/"), Message: err.Error()}}
	}
	return nil
}

// KeyName is the name of a key in a request; OpenAPI has its parameters from the
// kind.
type KeyName struct{ keyName }

// keys registers what is done to keys, for each kind.
func (s *Server) keys(api huma.API) {
	for _, kind := range keyKinds {
		var params []*huma.Param
		item := kind.path
		for _, name := range kind.names {
			item += "/{" + name + "}"
			params = append(params, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: "string", MaxLength: new(int)}})
			*params[len(params)-1].Schema.MaxLength = 253
		}
		op := func(id, method, path, summary string, role tokens.Role) huma.Operation {
			o := huma.Operation{
				OperationID: id + "-" + kind.one, Method: method, Path: path, Tags: []string{kind.path[1:]}, Summary: summary,
				Metadata: needsAll(role),
			}
			o.Metadata["kind"] = kind
			if path == item {
				o.Parameters = params
			}
			return o
		}
		huma.Register(api, op("list", http.MethodGet, kind.path, "List "+kind.path[1:], tokens.Viewer), s.listKeys(kind))
		huma.Register(api, op("get", http.MethodGet, item, "Show a "+kind.one, tokens.Viewer), s.getKey)
		put := op("put", http.MethodPut, item, "Write a "+kind.one, tokens.Operator)
		put.Description = "The value is " + kind.value + ". It is checked against the keys that there are, and written unless nodes would refuse it."
		huma.Register(api, put, s.putKey)
		huma.Register(api, op("delete", http.MethodDelete, item, "Delete a "+kind.one, tokens.Operator), s.deleteKey)
	}
}

// keyAnswer is a key.
type keyAnswer struct {
	ETag string `header:"ETag"`
	Body wire.Key
}

func (s *Server) listKeys(kind keyKind) func(context.Context, *struct {
	Page
	Prefix string `query:"prefix" maxLength:"253" doc:"What their names begin with."`
}) (*listAnswer[wire.Key], error) {
	return func(ctx context.Context, in *struct {
		Page
		Prefix string `query:"prefix" maxLength:"253" doc:"What their names begin with."`
	}) (*listAnswer[wire.Key], error) {
		after := ""
		if in.After != "" {
			after = kind.folder + in.After
		}
		all, more, err := s.cfg.Keys.Page(ctx, kind.folder+in.Prefix, after, in.Limit)
		if err != nil {
			return nil, problemOf(err)
		}
		out := answerList([]wire.Key{})
		for _, e := range all {
			out.Body.Items = append(out.Body.Items, KeyOf(e))
		}
		if more {
			out.Body.Next = strings.TrimPrefix(all[len(all)-1].Key, kind.folder)
		}
		return out, nil
	}
}

// entry returns a key.
func (s *Server) entry(ctx context.Context, key string) (keys.Entry, error) {
	all, _, err := s.cfg.Keys.Page(ctx, key, "", 1) // of those that begin so, the first
	if err != nil {
		return keys.Entry{}, problemOf(err)
	}
	if len(all) == 0 || all[0].Key != key {
		return keys.Entry{}, noKey(key)
	}
	return all[0], nil
}

func noKey(key string) *Problem {
	return problem(http.StatusNotFound, wire.NotFound, fmt.Sprintf("there is no key %s", key))
}

func (s *Server) getKey(ctx context.Context, in *struct{ KeyName }) (*keyAnswer, error) {
	e, err := s.entry(ctx, in.key)
	if err != nil {
		return nil, err
	}
	return &keyAnswer{etag(e.Rev), KeyOf(e)}, nil
}

// keyChange is the answer to a change of a key.
type keyChange struct {
	ETag string `header:"ETag"`
	Body wire.KeyChange
}

func (s *Server) putKey(ctx context.Context, in *struct {
	KeyName
	Waiting
	Conditional
	Unless
	DryRun bool `query:"dry_run" doc:"Check, and write nothing."`
	Body   Value
}) (*keyChange, error) {
	value := string(in.Body.RawMessage)
	var text string
	if json.Unmarshal(in.Body.RawMessage, &text) == nil {
		value = text
	}
	unless, err := in.Unless.rev()
	if err != nil {
		return nil, err
	}
	return s.changeKey(ctx, keys.Wish{Key: in.key, Value: value}, condition{in.Conditional, unless}, in.Waiting, in.DryRun)
}

func (s *Server) deleteKey(ctx context.Context, in *struct {
	KeyName
	Waiting
	Conditional
}) (*keyChange, error) {
	return s.changeKey(ctx, keys.Wish{Key: in.key, Delete: true}, condition{Conditional: in.Conditional}, in.Waiting, false)
}

// condition is what a change of a key depends on; unless is a revision that it
// must not be of, 0 being any.
type condition struct {
	Conditional
	unless int64
}

// check refuses a change of key, which is as of revision now; 0: there is none.
func (c condition) check(key string, want, now int64) error {
	why := ""
	switch {
	case want == whatever && now == 0:
		why = fmt.Sprintf("there is no key %s; leave If-Match out to make it", key)
	case want > 0 && now != want:
		why = fmt.Sprintf("%s is as of revision %d by now, not %d; look at it and try again", key, now, want)
	case c.unless == nothing && now != 0:
		why = fmt.Sprintf("there is %s already, as of revision %d; leave If-None-Match out to change it", key, now)
	case c.unless > 0 && now == c.unless:
		why = fmt.Sprintf("%s is as of revision %d, which If-None-Match excludes", key, now)
	default:
		return nil
	}
	return problem(http.StatusPreconditionFailed, wire.Stale, why)
}

// changeKey makes a wish true.
func (s *Server) changeKey(ctx context.Context, wish keys.Wish, c condition, w Waiting, dry bool) (*keyChange, error) {
	want, err := c.rev()
	if err != nil {
		return nil, err
	}
	plan, err := s.cfg.Keys.Plan(ctx, []keys.Wish{wish})
	if err != nil {
		return nil, problemOf(err)
	}
	if len(plan.Findings) > 0 {
		return nil, problemOfFindings(wish.Key, plan.Findings)
	}
	if len(plan.Missing) > 0 {
		return nil, noKey(wish.Key)
	}
	_, now := plan.Kept() // the revision of the key as it is; 0: there is none
	if len(plan.Changes) > 0 {
		now = plan.Changes[0].Since
	}
	if err := c.check(wish.Key, want, now); err != nil {
		return nil, err
	}
	out := new(keyChange)
	out.Body.Revision = now
	if len(plan.Changes) > 0 && !dry {
		store := s.storeOf(ctx)
		if out.Body.Revision, _, err = store.Commit(ctx, plan); err != nil {
			return nil, problemOf(err)
		}
		out.Body.Changed = true
	}
	out.ETag = etag(out.Body.Revision)
	return out, s.awaitKey(ctx, w, out, wish.Key)
}

// problemOfFindings says what nodes would refuse of a change of key, or, for it,
// of another.
func problemOfFindings(key string, found []control.Finding) *Problem {
	p := problem(http.StatusBadRequest, wire.Invalid, found[0].Why)
	if found[0].Key != key {
		p.Detail = fmt.Sprintf("nodes would refuse %s then: %s", found[0].Key, found[0].Why)
		return p
	}
	if field, _, ok := strings.Cut(found[0].Why, ": "); ok && !strings.ContainsAny(field, " \"") {
		p.Field = field
	}
	return p
}

// awaitKey waits, if that is asked for, for what the nodes make of a change.
func (s *Server) awaitKey(ctx context.Context, w Waiting, out *keyChange, key string) (err error) {
	if w.Wait == "" || !out.Body.Changed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.limit())
	defer cancel()
	out.Body.Answers, err = s.cfg.Keys.Await(ctx, out.Body.Revision, []string{key})
	return problemOf(err)
}

// status registers what is asked of the cluster as a whole.
func (s *Server) status(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "get-status", Method: http.MethodGet, Path: "/status", Tags: []string{"cluster"}, Summary: "Show nodes, and keys with troubles",
		Metadata: needsAll(tokens.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*struct{ Body wire.Status }, error) {
		st, err := s.cfg.Keys.Status(ctx)
		if err != nil {
			return nil, problemOf(err)
		}
		return &struct{ Body wire.Status }{StatusOf(st)}, nil
	})
}
