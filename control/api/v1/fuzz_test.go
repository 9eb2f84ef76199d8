package v1_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/control/tokens"
)

// document is what the OpenAPI document says of calls.
type document struct {
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]schema }
}

type operation struct {
	OperationID string
	Parameters  []struct {
		Name, In string
		Required bool
		Schema   schema
	}
	RequestBody struct {
		Content map[string]struct{ Schema schema }
	}
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any
	Enum                 []any
	Format               string
	Minimum, Maximum     *float64
	MinLength, MaxLength *int
	Properties           map[string]schema
	AdditionalProperties json.RawMessage
	Items                *schema
	OneOf                []schema
	Required             []string
}

// monkey makes up requests.
type monkey struct {
	doc document
	rng *rand.Rand
}

// words are values that some field somewhere takes, or stumbles over.
var words = []string{
	"", "a", "ssh", "jupyter", "tcp", "udp", "20000", "20022", "0", "-1", "70000", "10.0.0.1", "10.0.0.1:22", ":22", "127.0.0.1:22:33", "applied",
	"../../etc", "a/b", "%2e%2e", "\x00", "ü", "\u202e", "*", "*.x-gpu.com", "~^(", "${env}", "${", "null", "1e400", "2026-12-31T00:00:00Z", "0001-01-01T00:00:00Z", "99999999999999999999",
	`"1"`, "W/\"1\"", "{}", "[]", "<script>", "tcp/20022", "https://a.x-gpu.com/", "http://[::1", "mappings", "environments", "operator", strings.Repeat("x", 300),
}

// likely are values that fields of a name take, so that some requests come to
// something.
var likely = map[string][]any{
	"id": {"a", "b", "c"}, "backend": {"10.0.0.1", "env.x-gpu.com"}, "expires_at": {"2126-12-31T00:00:00Z"}, "port": {0, 20001}, "span": {0, 1, 2}, "username": {"root"},
	"mapping": {map[string]any{"idle_timeout": "10m"}, map[string]any{}}, "secrets": {nil}, "to": {1, 2, 5, 9}, "from": {1, 2, 5, 9}, "remove": {true}, "role": {"operator"}, "envs": {""}, "pools": {[]any{}},
	"name": {"a", "b"}, "proto": {"tcp", "udp"}, "service": {"ssh", "jupyter"}, "limit": {10}, "after": {0, "a"}, "timeout": {1}, "under": {"", "ports/"}, "grace": {0, 10}, "If-Match": {"*"}, "Idempotency-Key": {"k1", "k2"}, "wait": {"applied"},
	"services": {map[string]any{"ssh": map[string]any{}}, map[string]any{"ssh": map[string]any{}, "jupyter": map[string]any{"backend": ":8889"}}, map[string]any{"ssh": nil}},
}

// field makes up the value of a field.
func (m *monkey) field(name string, s schema, depth int) any {
	if values := likely[name]; len(values) > 0 && m.rng.IntN(8) > 0 {
		return values[m.rng.IntN(len(values))]
	}
	return m.value(s, depth)
}

func (m *monkey) pick(list []string) string { return list[m.rng.IntN(len(list))] }

// kinds returns the types that a schema allows.
func kinds(s schema) (all []string) {
	switch t := s.Type.(type) {
	case string:
		return []string{t}
	case []any:
		for _, one := range t {
			all = append(all, one.(string))
		}
	}
	return all
}

// value makes up a value, mostly of the type that s wants.
func (m *monkey) value(s schema, depth int) any {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		s = m.doc.Components.Schemas[name]
	}
	if len(s.OneOf) > 0 {
		s = s.OneOf[m.rng.IntN(len(s.OneOf))]
	}
	if len(s.Enum) > 0 && m.rng.IntN(4) > 0 {
		return s.Enum[m.rng.IntN(len(s.Enum))]
	}
	types := kinds(s)
	if len(types) == 0 || depth > 5 || m.rng.IntN(12) == 0 {
		types = []string{"string", "integer", "boolean", "null", "object", "array"}
	}
	switch m.pick(types) {
	case "string":
		return m.pick(words)
	case "integer", "number":
		return []any{0, 1, -1, 22, 20000, 20001, 65535, 65536, 1 << 40, 1.5, -1e300}[m.rng.IntN(11)]
	case "boolean":
		return m.rng.IntN(2) == 0
	case "array":
		var items []any
		for range m.rng.IntN(4) {
			if s.Items == nil {
				items = append(items, m.pick(words))
				continue
			}
			items = append(items, m.value(*s.Items, depth+1))
		}
		return items
	case "object":
		return m.object(s, depth)
	}
	return nil
}

func (m *monkey) object(s schema, depth int) map[string]any {
	o := map[string]any{}
	for name, field := range s.Properties {
		if slices.Contains(s.Required, name) && m.rng.IntN(10) > 0 || m.rng.IntN(2) == 0 {
			o[name] = m.field(name, field, depth+1)
		}
	}
	var more schema
	if len(s.AdditionalProperties) > 0 && json.Unmarshal(s.AdditionalProperties, &more) == nil {
		for range m.rng.IntN(3) {
			o[m.pick(words)] = m.value(more, depth+1)
		}
	}
	if m.rng.IntN(10) == 0 {
		o[m.pick(words)] = m.pick(words)
	}
	return o
}

// request makes up a request of an operation.
func (m *monkey) request(path string, op operation) (target string, body any, header []string) {
	target, _ = strings.CutPrefix(path, "/api/v1")
	query := url.Values{}
	for _, p := range op.Parameters {
		if p.In != "path" && !p.Required && m.rng.IntN(3) > 0 {
			continue
		}
		text := fmt.Sprint(m.field(p.Name, p.Schema, 0))
		switch p.In {
		case "path":
			if text == "" || m.rng.IntN(2) == 0 && p.Name != "id" {
				text = m.pick([]string{"a", "ssh", "tcp", "20000", "20022", "x.x-gpu.com"})
				if p.Name == "port" {
					text = m.pick([]string{"20000", "20022", "31000"})
				} else if p.Name == "proto" {
					text = "tcp"
				}
			}
			target = strings.ReplaceAll(target, "{"+p.Name+"}", url.PathEscape(text))
		case "query":
			query.Set(p.Name, text)
		case "header":
			if !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				header = append(header, p.Name, text)
			}
		}
	}
	if m.rng.IntN(20) == 0 {
		query.Set(m.pick(words), m.pick(words))
	}
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	for _, content := range op.RequestBody.Content {
		body = m.value(content.Schema, 0)
		if strings.HasPrefix(path, "/api/v1/mappings") && m.rng.IntN(2) == 0 {
			body = `"10.0.0.1:22"`
		}
		if m.rng.IntN(20) == 0 {
			body = m.pick([]string{"{", "", "null", `{"id":`, `{"id":"a","id":"b"}`, "[[[[[[[[", `"`, "\xff"})
		}
	}
	return target, body, header
}

// TestEveryFieldOfEveryCall makes up requests from the OpenAPI document. Whatever
// is wrong with them is the client's mistake and said in a problem; whatever is
// made is whole.
func TestEveryFieldOfEveryCall(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	text, err := os.ReadFile("api.json")
	if err != nil {
		t.Fatal(err)
	}
	m := &monkey{rng: rand.New(rand.NewPCG(9, 57))}
	if err := json.Unmarshal(text, &m.doc); err != nil {
		t.Fatal(err)
	}
	type call struct{ method, path string }
	var calls []call
	for path, ops := range m.doc.Paths {
		for method, op := range ops {
			switch op.OperationID {
			case "watch", "list-flows", "cut-flows", "explain": // a stream; those of a data plane
			default:
				calls = append(calls, call{strings.ToUpper(method), path})
				if strings.HasPrefix(path, "/api/v1/environments") { // what there is most of to get wrong
					calls = append(calls, calls[len(calls)-1], calls[len(calls)-1])
				}
				if op.OperationID == "patch-environment" || op.OperationID == "create-environment" { // and least that is right by chance
					calls = append(calls, calls[len(calls)-1], calls[len(calls)-1], calls[len(calls)-1])
				}
			}
		}
	}
	slices.SortFunc(calls, func(a, b call) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	seen := map[string]int{}
	byHand := map[string]bool{} // ports whose mappings were changed beside their environments, such as tcp/20001
	for i := range 3600 {
		if i%100 == 0 { // it deletes pools too
			r.put("pools/ssh", `{"ports":"20000-20009","backend_port":22,"quarantine":"0s"}`)
		}
		c := calls[m.rng.IntN(len(calls))]
		op := m.doc.Paths[c.path][strings.ToLower(c.method)]
		target, body, header := m.request(c.path, op)
		a := r.ask(admin, c.method, target, body, header...) // which wants problems to be problems
		seen[op.OperationID+" "+fmt.Sprint(a.status/100)]++
		if a.status < 300 && c.method != "GET" {
			for _, port := range mappedPort.FindAllString(target+" "+fmt.Sprint(body), -1) {
				byHand[port] = true
			}
		}
		if a.status >= 500 && a.Code != "not_applied" {
			t.Errorf("%s %s %v %v: %d %s", c.method, target, header, body, a.status, a.body)
		}
		if a.status == 429 {
			t.Fatal("too fast for the token")
		}
	}
	for _, want := range []string{"create-environment 2", "create-environment 4", "put-mapping 2", "put-mapping 4", "patch-environment 2", "create-token 2", "rollback 4"} {
		if seen[want] == 0 {
			t.Errorf("no request came to %s: %v", want, seen)
		}
	}
	for _, f := range r.audit() {
		if _, port, _ := strings.Cut(f.Key, "/"); !byHand[port] {
			t.Errorf("half-made: %+v", f)
		}
	}
}

// mappedPort is a port in the path of a mapping, or in its key.
var mappedPort = regexp.MustCompile(`\b(tcp|udp)/[0-9]+\b`)
