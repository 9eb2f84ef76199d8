package v1_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/control/api/client"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// withNodes puts what three nodes say: the first is well, the second has not told
// the others of itself, and the third is drained and does not run.
func (r *rig) withNodes() {
	r.put("nodes/edge-1", `{"name":"edge-1","instance":"secret","version":"1","state":"ready","addresses":["192.0.2.1"],"weight":3,"started":"2026-11-01T12:00:00Z","applied_revision":1000,"load":{"cpu":0.5,"flows":7}}`)
	r.put("members/edge-1", `{"state":"ready","addresses":["192.0.2.1"],"weight":3}`)
	r.put("health/edge-2", `{"up":["edge-1 192.0.2.1"]}`)
	r.put("nodes/edge-2", `{"name":"edge-2","instance":"secret","version":"1","state":"ready","addresses":[],"started":"2026-11-01T12:00:00Z","applied_revision":1000}`)
	r.put("drain/edge-3", `{"reason":"new disk"}`)
}

// TestNodesAsTheOthersSeeThem wants what sluice node ls shows, those nodes included
// that are drained and do not run.
func TestNodesAsTheOthersSeeThem(t *testing.T) {
	r := newRig(t)
	viewer := r.token("viewer", func(t *tokens.Token) { t.Role = tokens.Viewer })
	r.withNodes()
	r.put("nodes/edge-4", "no JSON")
	a := r.ask(viewer, "GET", "/nodes", nil)
	all := decoded[wire.Page[wire.NodeView]](t, a).Items
	if len(all) != 4 || strings.Contains(a.body, "secret") {
		t.Fatalf("nodes %s", a.body)
	}
	if v := all[0]; v.Name != "edge-1" || !v.Healthy || v.Why != "" || v.Weight != 3 || v.Addresses[0].String() != "192.0.2.1" || v.Load == nil || v.Load.Flows != 7 ||
		v.Votes["edge-2 192.0.2.1"] != "up" || v.Wanted != nil || v.Started.IsZero() {
		t.Errorf("the one that is well: %+v", v)
	}
	if v := all[1]; v.Healthy || v.Why != "it has not told the others of itself" || v.State != "ready" || v.Weight != 1 {
		t.Errorf("the one that says nothing: %+v", v)
	}
	if v := all[2]; v.Name != "edge-3" || v.State != "down" || v.Healthy || v.Wanted == nil || v.Wanted.Reason != "new disk" || !v.Started.IsZero() {
		t.Errorf("the one that does not run: %+v", v)
	}
	if v := all[3]; v.State != "unreadable" || v.Healthy {
		t.Errorf("the one with a broken record: %+v", v)
	}
	r.ask(viewer, "GET", "/nodes/edge-3", nil).want(t, 200, `"wanted":{"reason":"new disk"}`, `"addresses":[]`)
	r.ask(viewer, "GET", "/nodes/edge-5", nil).want(t, 404, "there is no node")
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Envs = tokens.Operator, "prod-" })
	r.ask(scoped, "GET", "/nodes", nil).want(t, 403, "this concerns all")
}

// TestDrainOfANode drains a node and calls it off, by whoever may.
func TestDrainOfANode(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })
	viewer := r.token("viewer", func(t *tokens.Token) { t.Role = tokens.Viewer })
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Pools = tokens.Operator, []string{"ssh"} })
	r.withNodes()
	const path = "/nodes/edge-1/drain"
	for _, method := range []string{"PUT", "DELETE"} {
		r.ask(viewer, method, path, nil).want(t, 403, "takes one of an operator")
		r.ask(scoped, method, path, nil).want(t, 403, "this concerns all")
		if a := r.ask(op, method, "/nodes/edge-5/drain", nil); a.status != 404 || a.Code != wire.NotFound {
			t.Errorf("%s of a node that there is not: %s", method, a.body)
		}
	}
	if a := r.ask(op, "DELETE", path, nil); a.status != 404 || a.Code != wire.NotFound || !strings.Contains(a.Detail, "nobody wants edge-1 drained") {
		t.Errorf("calling off what nobody wants: %s", a.body)
	}
	if a := r.ask(op, "PUT", path, `{"reason":"`+strings.Repeat("x", 201)+`"}`); a.status != 400 || a.Field != "reason" {
		t.Errorf("a reason that is too long: %s", a.body)
	}
	r.ask(op, "PUT", path, `{"why":"new disk"}`).want(t, 400)
	r.ask(viewer, "GET", "/nodes/edge-1", nil).want(t, 200, `"healthy":true`)

	made := decoded[wire.Done](t, r.ask(op, "PUT", path, `{"reason":"new disk"}`, "Idempotency-Key", "one"))
	again := decoded[wire.Done](t, r.ask(op, "PUT", path, `{"reason":"new disk"}`, "Idempotency-Key", "one"))
	same := decoded[wire.Done](t, r.ask(op, "PUT", path, `{"reason":"new disk"}`))
	if made.Revision == 0 || again != made || same.Revision != 0 {
		t.Errorf("drained at %d, by the same request at %d, and anew at %d", made.Revision, again.Revision, same.Revision)
	}
	v := decoded[wire.NodeView](t, r.ask(viewer, "GET", "/nodes/edge-1", nil))
	if v.Healthy || v.Why != "it is drained: new disk" || v.Wanted == nil || v.Wanted.Reason != "new disk" {
		t.Errorf("drained it is %+v", v)
	}
	r.ask(op, "DELETE", path, nil).want(t, 200, `"revision":`)
	r.ask(op, "PUT", path, nil).want(t, 200) // for no reason
	r.ask(viewer, "GET", "/nodes/edge-1", nil).want(t, 200, `"wanted":{}`, `"why":"it is drained"`)
	edits, err := r.raw.Get(t.Context(), "/sluice/edits/", prefixed)
	if err != nil {
		t.Fatal(err)
	}
	noted := 0
	for _, kv := range edits.Kvs {
		noted += strings.Count(string(kv.Value), "token op from")
	}
	if noted == 0 {
		t.Errorf("the history does not learn who drained: %v", edits.Kvs)
	}
	// What does not run is called off too, and is gone from the list.
	c := r.dial(op, asIs)
	if rev, err := c.UndrainNode(t.Context(), "edge-3"); err != nil || rev == 0 {
		t.Errorf("called off at %d, %v", rev, err)
	}
	if v, err := c.Node(t.Context(), "edge-3"); client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotFound {
		t.Errorf("after that it is %+v, %v", v, err)
	}
}
