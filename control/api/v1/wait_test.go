package v1_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/tokens"
)

// An environment is there once each live node has said so of its mappings. The
// records of nodes tell the same, but of many edits, and a second later.
func TestCreateWaitsForVerdicts(t *testing.T) {
	r := newRig(t)
	secret := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	r.put("nodes/n1", `{"name":"n1","state":"ready","applied_revision":0}`)

	body := `{"id":"a","backend":"10.0.3.17","services":{"ssh":{},"jupyter":{}}}`
	late := r.ask(secret, "POST", "/environments?wait=applied&timeout=1", strings.Replace(body, `"a"`, `"late"`, 1))
	late.want(t, http.StatusGatewayTimeout, "not_applied", "n1")

	ctx, cancel := context.WithCancel(t.Context())
	var node sync.WaitGroup
	defer node.Wait()
	defer cancel()
	changes := r.raw.Watch(ctx, "/sluice/ports/", prefixed)
	node.Go(func() {
		for resp := range changes {
			for _, ev := range resp.Events {
				if ev.Type != clientv3.EventTypePut {
					continue
				}
				key := strings.Replace(string(ev.Kv.Key), "/sluice/", "/sluice/verdicts/n1/", 1)
				if _, err := r.raw.Put(ctx, key, fmt.Sprintf("applied@%d", ev.Kv.ModRevision)); err != nil && ctx.Err() == nil {
					t.Errorf("put %s: %v", key, err)
				}
			}
		}
	})
	r.ask(secret, "POST", "/environments?wait=applied&timeout=60", body).want(t, http.StatusCreated, `"id":"a"`)
	// What is there already has been applied.
	r.ask(secret, "POST", "/environments?wait=applied&timeout=60", body).want(t, http.StatusCreated, `"id":"a"`)
}
