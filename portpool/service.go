package portpool

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// Access is what people are told of how they reach a service: texts in which
// ${env}, ${service}, ${port}, ${host}, ${username} and ${secret.NAME} stand for
// the environment's values. Empty ones are left out.
type Access struct {
	// Host is the public name of the service, ${host} in the others.
	Host string `json:"host,omitempty"`
	// Username is who logs in, unless the environment says otherwise.
	Username string `json:"username,omitempty"`
	// Command is what to type, and URL what to open.
	Command string `json:"command,omitempty"`
	URL     string `json:"url,omitempty"`
}

// Route is a route that each environment gets for a service that is reached by
// name rather than by port. Texts are as those of Access.
type Route struct {
	// Host is such as env-${env}.remotegpu.com; with ${inner}, once, clients name
	// the port inside: ${inner}--env-${env}.remotegpu.com.
	Host string `json:"host,omitempty"`
	Path string `json:"path,omitempty"` // such as /jupyter; empty: all
	// Fields are others of the route, as below routes/.
	Fields json.RawMessage `json:"fields,omitempty"`
}

// Values are what the variables of a service's texts stand for.
type Values map[string]string

// Expand replaces the variables of a text. The error names one that is unknown,
// and those that are not.
func (v Values) Expand(text string) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		value, known := v[name]
		if !closed || !known {
			return "", fmt.Errorf("${%s is no variable; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(v)), ", "))
		}
		out.WriteString(value)
		text = after
	}
}

// sample is what the texts of a pool are tried with.
func sample(service string, texts ...string) Values {
	v := Values{"env": "env", "service": service, "port": "20000", "host": "env.example.com", "username": "root"}
	for _, text := range texts { // secrets have the names that the texts give them
		for _, part := range strings.Split(text, "${")[1:] {
			if name, _, closed := strings.Cut(part, "}"); closed && strings.HasPrefix(name, "secret.") && len(name) > len("secret.") {
				v[name] = "secret"
			}
		}
	}
	return v
}

// checkTexts refuses templates that no environment could fill in.
func (p *Pool) checkTexts() error {
	for _, text := range []struct {
		path, text string
		secrets    bool
	}{
		{"backend_host", p.BackendHost, false},
		{"access.host", p.Access.Host, false}, {"access.username", p.Access.Username, false},
		{"access.command", p.Access.Command, true}, {"access.url", p.Access.URL, true},
		{"route.host", strings.ReplaceAll(p.Route.Host, innerVar, ""), false}, {"route.path", p.Route.Path, false},
	} {
		values := sample(p.Service)
		if text.secrets {
			values = sample(p.Service, text.text)
		}
		if _, err := values.Expand(text.text); err != nil {
			return &router.FieldError{Path: text.path, Msg: err.Error()}
		}
	}
	if name, _ := sample(p.Service).Expand(p.Access.Username); name != "" {
		if err := CheckUsername(name); err != nil {
			return &router.FieldError{Path: "access.username", Msg: err.Error()}
		}
	}
	if p.Route.Host != "" && !strings.Contains(p.Route.Host+p.Route.Path, "${env}") {
		return &router.FieldError{Path: "route.host", Msg: "would be the same in all environments; write ${env} in it, or in route.path"}
	}
	return nil
}

// CheckUsername refuses what cannot be a user's name: it becomes part of commands
// that people copy.
func CheckUsername(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
	if name == "" || len(name) > 64 || !strings.Contains(letters, name[:1]) || strings.Trim(name, letters+"@+-") != "" {
		return fmt.Errorf("%q is not taken for a user's name; write up to 64 letters, digits and ._@+- (the first a letter, a digit, . or _): it becomes part of commands that people copy", name)
	}
	return nil
}

// checkFields refuses what would make no mapping or no route of any environment.
func (p *Pool) checkFields() error {
	value, err := p.MappingValue("env", "10.0.0.1:22", nil)
	if err != nil {
		return err
	}
	for _, proto := range p.Protos() {
		if _, err := router.ParseMapping(proto, 1, value); err != nil {
			return &router.FieldError{Path: "mapping", Msg: "would make mappings that are refused: " + err.Error()}
		}
	}
	if p.Route.Host == "" {
		if p.Route.Path != "" || p.Route.Fields != nil {
			return &router.FieldError{Path: "route.host", Msg: "is missing; give a name such as env-${env}.remotegpu.com"}
		}
		return nil
	}
	value, err = p.RouteValue(sample(p.Service), "10.0.0.1:8888", router.Ports{{First: 8000, Last: 8001}})
	if err != nil {
		return err
	}
	if _, err := router.ParseRoute("env", value); err != nil {
		return &router.FieldError{Path: "route", Msg: "would make routes that are refused: " + err.Error()}
	}
	return nil
}

// MappingValue returns the value of the mappings that an environment gets for a
// port of the pool, with backend as host:port. more, unless nil, are fields that
// the environment asks for besides; they go before those of the pool.
func (p *Pool) MappingValue(env, backend string, more json.RawMessage) ([]byte, error) {
	fields := map[string]any{}
	for _, from := range []struct {
		path string
		raw  json.RawMessage
	}{{"mapping", p.Mapping}, {"mapping", more}} {
		if err := addFields(fields, from.path, from.raw, "backend", "http", "env", "service", "expires_at"); err != nil {
			return nil, err
		}
	}
	to := "backend"
	if p.HTTP {
		to = "http"
	}
	fields[to], fields["env"], fields["service"] = backend, env, p.Service
	return json.Marshal(fields)
}

// RouteValue returns the value of the route that an environment gets, with
// backend as host:port. Where clients name the port inside, inner are those that
// they may, and the backend's own counts for nothing.
func (p *Pool) RouteValue(values Values, backend string, inner router.Ports) ([]byte, error) {
	fields := map[string]any{}
	if err := addFields(fields, "route.fields", p.Route.Fields, "host", "path", "backend", "env", "service"); err != nil {
		return nil, err
	}
	host, err := p.Route.hostFor(values, inner)
	if err != nil {
		return nil, &router.FieldError{Path: "route.host", Msg: err.Error()}
	}
	if p.Route.Inner() {
		name, _, err := net.SplitHostPort(backend)
		if err != nil {
			return nil, &router.FieldError{Path: "backend", Msg: err.Error()}
		}
		backend = net.JoinHostPort(name, innerVar)
	}
	path, err := values.Expand(p.Route.Path)
	if err != nil {
		return nil, &router.FieldError{Path: "route.path", Msg: err.Error()}
	}
	fields["host"], fields["backend"], fields["env"], fields["service"] = host, backend, values["env"], p.Service
	if path != "" {
		fields["path"] = path
	}
	return json.Marshal(fields)
}

// addFields adds those of raw, a JSON object or nil, but refuses those that are
// not for it to say.
func addFields(to map[string]any, path string, raw json.RawMessage, not ...string) error {
	if raw == nil {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return &router.FieldError{Path: path, Msg: "must be an object of fields"}
	}
	for name, value := range fields {
		if slices.Contains(not, name) {
			return &router.FieldError{Path: path + "." + name, Msg: "is made of the environment; leave it out"}
		}
		to[name] = value
	}
	return nil
}
