package etcd

import (
	"slices"
	"testing"
)

func TestWatchedIsAllButTheUnwatched(t *testing.T) {
	if !slices.IsSorted(unwatched) || !slices.IsSorted(unrecorded) {
		t.Fatalf("not in key order: %v, %v", unwatched, unrecorded)
	}
	for key, want := range map[string]bool{
		"/sluice/": true, "/sluice/0": true, "/sluice/ports/tcp/1": true, "/sluice/routes/a": true, "/sluice/domains/a": true,
		"/sluice/names/a": true, "/sluice/pools/ssh": true, "/sluice/prots/tcp/1": true, "/sluice/\xff": true,
		"/sluice/acme": true, "/sluice/acme0": true, "/sluice/node": true, "/sluice/nodes": true, "/sluice/verdict/x": true, "/sluice/verdicts0": true,
		"/sluice/acme/": false, "/sluice/acme/certificates/x": false, "/sluice/allocations/tcp/1": false, "/sluice/envs/x": false,
		"/sluice/history/1": false, "/sluice/edits/last": false, "/sluice/leaders/history/1": false, "/sluice/nodes/edge-1": false, "/sluice/verdicts/edge-1/ports/tcp/1": false, "/sluice/verdicts/\xff": false,
		"/sluice": false, "/sluice0": false, "/sluicegate/ports/tcp/1": false, "/sluic": false,
	} {
		in := 0
		for _, sp := range watched("/sluice/") {
			if sp.from <= key && key < sp.end {
				in++
			}
		}
		if in > 1 || (in == 1) != want {
			t.Errorf("key %q lies in %d spans, want it watched: %v", key, in, want)
		}
	}
}

// ports/, routes/, removals/ and pools/ share a span, which keeps a transaction over them
// in one batch.
func TestTablesShareASpan(t *testing.T) {
	for _, sp := range watched("/sluice/") {
		if sp.from <= "/sluice/pools/" && "/sluice/routes0" <= sp.end && sp.from <= "/sluice/removals/" && "/sluice/removals0" <= sp.end {
			return
		}
	}
	t.Errorf("no span of %v holds pools/, ports/, removals/ and routes/", watched("/sluice/"))
}
