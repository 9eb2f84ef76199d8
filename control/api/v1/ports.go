package v1

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// ports registers what is done to ports of pools by themselves.
func (s *Server) ports(api huma.API) {
	tags := []string{"ports"}
	huma.Register(api, huma.Operation{
		OperationID: "list-ports", Method: http.MethodGet, Path: "/ports", Tags: tags, Summary: "List ports that are held, reserved or were released", Metadata: needs(tokens.Viewer),
	}, s.listPorts)
	huma.Register(api, huma.Operation{
		OperationID: "allocate-port", Method: http.MethodPost, Path: "/ports", Tags: tags, Summary: "Give an environment a port of a pool",
		Description: "The one that it had before, if that is free, else one as the pool says. Asked again, it answers with what it gave. Mappings are the caller's affair; POST /environments makes both.",
		Metadata:    needs(tokens.Operator),
	}, s.allocPort)
	huma.Register(api, huma.Operation{
		OperationID: "release-port", Method: http.MethodDelete, Path: "/ports/{env}/{service}", Tags: tags, Summary: "Take a service's ports away from an environment",
		Description: "They rest in quarantine. What is gone already is no error.", Metadata: needs(tokens.Operator),
	}, s.releasePort)
	huma.Register(api, huma.Operation{
		OperationID: "reserve-ports", Method: http.MethodPost, Path: "/reservations", Tags: tags, Summary: "Set ports aside, so that no environment gets them", Metadata: needsAll(tokens.Operator),
	}, s.reserve)
	huma.Register(api, huma.Operation{
		OperationID: "unreserve-ports", Method: http.MethodDelete, Path: "/reservations", Tags: tags,
		Summary: "Make ports available that were set aside, or that rest in quarantine", Metadata: needsAll(tokens.Operator),
	}, s.unreserve)
	huma.Register(api, huma.Operation{
		OperationID: "audit-ports", Method: http.MethodGet, Path: "/audit", Tags: tags, Summary: "Compare allocations, mappings and environments, and say what does not fit", Metadata: needsAll(tokens.Viewer),
	}, s.audit)
	huma.Register(api, huma.Operation{
		OperationID: "list-usage", Method: http.MethodGet, Path: "/usage", Tags: tags, Summary: "Count the ports of each pool by their state", Metadata: needs(tokens.Viewer),
	}, s.usage)
}

func (s *Server) listPorts(ctx context.Context, in *struct {
	Service string `query:"service" maxLength:"128" doc:"Of this pool."`
	After   string `query:"after" maxLength:"16" pattern:"^(tcp|udp)/[0-9]{1,5}$" doc:"The last one that is known, such as tcp/20022."`
	Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}) (*listAnswer[wire.Port], error) {
	held, err := s.cfg.Envs.Ports(ctx, in.Service)
	if err != nil {
		return nil, problemOf(err)
	}
	t := tokenOf(ctx)
	held = slices.DeleteFunc(held, func(h envs.Held) bool {
		return !t.Unscoped() && (h.Env == "" || !t.HasEnv(h.Env) || !t.HasPool(h.Service))
	})
	name := func(h envs.Held) string { return router.MappingKey(protoOf(h.Proto), h.Port) }
	slices.SortFunc(held, func(a, b envs.Held) int { return router.CompareKeys(name(a), name(b)) })
	out := &listAnswer[wire.Port]{}
	if in.After != "" {
		held = slices.DeleteFunc(held, func(h envs.Held) bool { return router.CompareKeys(name(h), "ports/"+in.After) <= 0 })
	}
	if len(held) > in.Limit {
		held = held[:in.Limit]
		out.Body.Next = name(held[in.Limit-1])[len("ports/"):]
	}
	out.Body.Items = PortsOf(held)
	return out, nil
}

// protoOf returns the protocol of a name that is one.
func protoOf(name string) router.Proto {
	if protos, ok := portpool.ParseProtos(name); ok {
		return protos[0]
	}
	return router.TCP
}

func (s *Server) allocPort(ctx context.Context, in *struct{ Body wire.PortRequest }) (*struct{ Body wire.Service }, error) {
	if err := mayService(tokenOf(ctx), in.Body.Env, in.Body.Service); err != nil {
		return nil, err
	}
	made, _, err := s.cfg.Envs.Alloc(ctx, portpool.Request{Env: in.Body.Env, Service: in.Body.Service, Port: in.Body.Port, Span: in.Body.Span})
	if err != nil {
		return nil, problemOf(err)
	}
	return &struct{ Body wire.Service }{*ServiceOf(made)}, nil
}

func (s *Server) releasePort(ctx context.Context, in *struct {
	Env     string `path:"env" maxLength:"63"`
	Service string `path:"service" maxLength:"128"`
}) (*done, error) {
	if err := mayService(tokenOf(ctx), in.Env, in.Service); err != nil {
		return nil, err
	}
	rev, err := s.cfg.Envs.Release(ctx, in.Env, in.Service)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), nil
}

// ReservedPorts reads which ports are meant: the protocols, and one range. The
// error is a *router.FieldError.
func ReservedPorts(protocol, ports string) ([]router.Proto, router.PortRange, error) {
	protos, ok := portpool.ParseProtos(protocol)
	if !ok {
		return nil, router.PortRange{}, &router.FieldError{Path: "protocol", Msg: "write tcp, udp or tcp+udp"}
	}
	list, err := router.ParsePorts(ports)
	switch {
	case err != nil:
		return nil, router.PortRange{}, &router.FieldError{Path: "ports", Msg: err.Error()}
	case len(list) != 1:
		return nil, router.PortRange{}, &router.FieldError{Path: "ports", Msg: "are more than one range; give one at a time"}
	}
	return protos, list[0], nil
}

func (s *Server) reserve(ctx context.Context, in *struct{ Body wire.Reservation }) (*done, error) {
	protos, ports, err := ReservedPorts(in.Body.Protocol, in.Body.Ports)
	if err != nil {
		return nil, problemOf(err)
	}
	rev, err := s.cfg.Envs.Reserve(ctx, protos, ports, in.Body.For)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), nil
}

func (s *Server) unreserve(ctx context.Context, in *struct {
	Protocol string `query:"protocol" enum:"tcp,udp,tcp+udp" default:"tcp"`
	Ports    string `query:"ports" required:"true" minLength:"1" maxLength:"11" example:"20022-20029" doc:"A port, or a range."`
}) (*done, error) {
	protos, ports, err := ReservedPorts(in.Protocol, in.Ports)
	if err != nil {
		return nil, problemOf(err)
	}
	rev, err := s.cfg.Envs.Unreserve(ctx, protos, ports)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), nil
}

func (s *Server) audit(ctx context.Context, _ *struct{}) (*listAnswer[wire.PortFinding], error) {
	found, err := s.cfg.Envs.Audit(ctx)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerList(FindingsOf(found)), nil
}

func (s *Server) usage(ctx context.Context, _ *struct{}) (*listAnswer[wire.PoolUsage], error) {
	all, err := s.cfg.Envs.Stats(ctx, time.Now())
	if err != nil {
		return nil, problemOf(err)
	}
	out := answerList(UsageOf(all))
	t := tokenOf(ctx)
	out.Body.Items = slices.DeleteFunc(out.Body.Items, func(u wire.PoolUsage) bool { return !t.HasPool(u.Service) })
	return out, nil
}
