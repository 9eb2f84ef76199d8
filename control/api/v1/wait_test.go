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
				said := fmt.Sprintf("applied@%d", ev.Kv.ModRevision)
				switch {
				case strings.HasSuffix(key, "/20005"):
					said = fmt.Sprintf("degraded: port_busy: :20005 is in use by sshd (pid 812) (applied@%d)", ev.Kv.ModRevision)
				case strings.HasSuffix(key, "/30005"):
					said = "refused: ports open here: 20000-29999 (nothing is in force)"
				}
				if _, err := r.raw.Put(ctx, key, said); err != nil && ctx.Err() == nil {
					t.Errorf("put %s: %v", key, err)
				}
			}
		}
	})
	for range 2 { // what is there already has been applied
		well := r.ask(secret, "POST", "/environments?wait=applied&timeout=60", body)
		well.want(t, http.StatusCreated, `"id":"a"`)
		if strings.Contains(well.body, "answers") {
			t.Errorf("where all is well it has answers: %s", well.body)
		}
	}

	// What nodes do not serve is said, to those who may see the service.
	busy := `{"node":"n1","key":"ports/tcp/20005","verdict":{"state":"degraded",`
	refused := `{"node":"n1","key":"ports/tcp/30005","verdict":{"state":"refused",`
	body = `{"id":"dead","backend":"10.0.3.17","services":{"ssh":{"port":20005},"jupyter":{"port":30005}}}`
	for range 2 {
		r.ask(secret, "POST", "/environments?wait=applied&timeout=60", body).want(t, http.StatusCreated, busy, refused, "in use by sshd")
	}
	if plain := r.ask(secret, "GET", "/environments/dead", nil); strings.Contains(plain.body, "answers") {
		t.Errorf("whoever waits for nothing gets %s", plain.body)
	}
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Pools = tokens.Operator, []string{"ssh"} })
	r.put("nodes/n1", `{"name":"n1","state":"ready","applied_revision":1000000}`)
	patched := r.ask(scoped, "PATCH", "/environments/dead?wait=applied&timeout=60", `{"services":{"ssh":{"username":"ubuntu"}}}`)
	if patched.want(t, http.StatusOK, busy); strings.Contains(patched.body, "30005") {
		t.Errorf("a token of ssh is told of %s", patched.body)
	}

	// It is made, and nobody serves it.
	if _, err := r.raw.Delete(ctx, "/sluice/nodes/n1"); err != nil {
		t.Fatal(err)
	}
	r.ask(secret, "POST", "/environments?wait=applied", `{"id":"unserved","backend":"10.0.3.17","services":{"ssh":{}}}`).want(t, http.StatusGatewayTimeout, "not_applied", "the change was made; no node is live")
}
