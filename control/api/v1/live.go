package v1

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// Flows picks flows.
type Flows struct {
	ID       uint64 `query:"id" minimum:"0"`
	Proto    string `query:"proto" enum:"tcp,udp"`
	Port     int    `query:"port" minimum:"0" maximum:"65535"`
	Client   string `query:"client" maxLength:"64" doc:"An address or a network."`
	Env      string `query:"env" maxLength:"128"`
	Service  string `query:"service" maxLength:"128"`
	Listener string `query:"listener" maxLength:"32" example:"tcp/20022"`
	Route    string `query:"route" maxLength:"128"`
	Backend  string `query:"backend" maxLength:"300" example:"10.0.0.7:22"`
}

// filter returns what picks the same flows.
func (f Flows) filter() (api.Filter, error) {
	to := api.Filter{ID: f.ID, Proto: f.Proto, Port: f.Port, Env: f.Env, Service: f.Service, Route: f.Route}
	for _, field := range []struct{ name, value string }{{"client", f.Client}, {"listener", f.Listener}, {"backend", f.Backend}} {
		if field.value == "" {
			continue
		}
		if err := to.Set(field.name, field.value); err != nil {
			return to, invalid(field.name, err.Error())
		}
	}
	return to, nil
}

// maxFlows is how many flows an answer lists.
const maxFlows = 10000

// live registers what is asked of this node's data plane.
func (s *Server) live(to huma.API) {
	tags := []string{"node"}
	huma.Register(to, huma.Operation{
		OperationID: "list-flows", Method: http.MethodGet, Path: "/flows", Tags: tags, Summary: "List live flows of this node", Metadata: needs(tokens.Viewer),
	}, func(ctx context.Context, in *struct{ Flows }) (*struct{ Body wire.Flows }, error) {
		match, err := s.picked(ctx, in.Flows)
		if err != nil {
			return nil, err
		}
		flows, unseen := s.cfg.Live.Flows()
		out := &struct{ Body wire.Flows }{wire.Flows{Items: []api.Flow{}, Unseen: unseen}}
		for f := range flows {
			if len(out.Body.Items) == maxFlows {
				break
			}
			if match(f) {
				out.Body.Items = append(out.Body.Items, f)
			}
		}
		return out, nil
	})
	huma.Register(to, huma.Operation{
		OperationID: "cut-flows", Method: http.MethodDelete, Path: "/flows", Tags: tags, Summary: "End live flows of this node", Metadata: needs(tokens.Operator),
	}, func(ctx context.Context, in *struct {
		Flows
		All bool `query:"all" doc:"All flows; without it, say which."`
	}) (*struct{ Body wire.Cut }, error) {
		if (in.Flows == Flows{}) != in.All {
			return nil, problem(http.StatusBadRequest, wire.Invalid, "say which flows, or all=true, and not both")
		}
		match, err := s.picked(ctx, in.Flows)
		if err != nil {
			return nil, err
		}
		cut, unseen := s.cfg.Live.Cut(match)
		return &struct{ Body wire.Cut }{wire.Cut{Cut: cut, Unseen: unseen}}, nil
	})
	huma.Register(to, huma.Operation{
		OperationID: "explain", Method: http.MethodGet, Path: "/explain", Tags: tags, Summary: "Say what this node would do with a request or a connection",
		Metadata: needsAll(tokens.Viewer),
	}, s.explain)
}

// picked returns what picks the flows that are asked for, of those within the
// token's scope.
func (s *Server) picked(ctx context.Context, in Flows) (func(api.Flow) bool, error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	t := tokenOf(ctx)
	return func(flow api.Flow) bool {
		return f.Match(flow) && (t.Unscoped() || flow.Env != "" && t.HasEnv(flow.Env) && t.HasPool(flow.Service))
	}, nil
}

func (s *Server) explain(_ context.Context, in *struct {
	URL    string   `query:"url" maxLength:"8192" example:"https://env-abc.remotegpu.com/jupyter"`
	Port   string   `query:"port" maxLength:"16" example:"tcp/20022"`
	Method string   `query:"method" maxLength:"32" default:"GET"`
	Header []string `query:"header,explode" maxItems:"64" doc:"Such as Name: value."`
	Client string   `query:"client" maxLength:"64"`
}) (*struct{ Body wire.Explanation }, error) {
	query := map[string][]string{"header": in.Header}
	for name, value := range map[string]string{"url": in.URL, "port": in.Port, "method": in.Method, "client": in.Client} {
		if value != "" {
			query[name] = []string{value}
		}
	}
	q, err := api.ParseQuestion(query)
	if err != nil {
		field, _, ok := strings.Cut(err.Error(), ": ")
		if !ok {
			field = ""
		}
		return nil, invalid(field, err.Error())
	}
	return &struct{ Body wire.Explanation }{s.cfg.Live.Explain(q)}, nil
}
