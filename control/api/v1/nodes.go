package v1

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// nodes registers what is asked of nodes, and wanted of them.
func (s *Server) nodes(api huma.API) {
	op := func(id, method, path, summary string, role tokens.Role) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Tags: []string{"nodes"}, Summary: summary, Metadata: needsAll(role),
		}
	}
	list := op("list-nodes", http.MethodGet, "/nodes", "List the nodes, and whether clients are sent to them", tokens.Viewer)
	list.Description = "Those that run and reach etcd, and those that are to be drained, whether they run or not. What they make of keys is in /status."
	huma.Register(api, list, s.listNodes)
	huma.Register(api, op("get-node", http.MethodGet, "/nodes/{node}", "Show a node, what it says of itself and what the others say of it", tokens.Viewer), s.getNode)
	drain := op("drain-node", http.MethodPut, "/nodes/{node}/drain", "Take a node out: of DNS first, then of service, without cutting a flow", tokens.Operator)
	drain.Description = "It stays so, over restarts too, until the drain is deleted. The answer waits for nothing: the node's drain says how far it is."
	huma.Register(api, drain, s.drainNode)
	undrain := op("undrain-node", http.MethodDelete, "/nodes/{node}/drain", "Have a node that is drained serve again", tokens.Operator)
	undrain.Description = "Where nobody wants the node drained, the answer is 404 not_found."
	huma.Register(api, undrain, s.undrainNode)
}

// NodeName is the name of a node in a request.
type NodeName struct {
	Node string `path:"node" maxLength:"128"`
}

func (s *Server) listNodes(ctx context.Context, _ *struct{}) (*listAnswer[wire.NodeView], error) {
	all, err := s.cfg.Keys.Nodes(ctx)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerList(all), nil
}

func (s *Server) getNode(ctx context.Context, in *struct{ NodeName }) (*struct{ Body *wire.NodeView }, error) {
	v, err := s.cfg.Keys.Node(ctx, in.Node)
	if err != nil {
		return nil, problemOf(err)
	}
	return &struct{ Body *wire.NodeView }{v}, nil
}

func (s *Server) drainNode(ctx context.Context, in *struct {
	NodeName
	Body *wire.Drain // nil: no reason is given
}) (*done, error) {
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}
	rev, err := s.storeOf(ctx).Drain(ctx, in.Node, reason)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), nil
}

func (s *Server) undrainNode(ctx context.Context, in *struct{ NodeName }) (*done, error) {
	rev, err := s.storeOf(ctx).Undrain(ctx, in.Node)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), nil
}
