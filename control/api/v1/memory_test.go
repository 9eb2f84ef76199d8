package v1_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
)

// Of each token the last requests are remembered, whatever others do.
func TestMemoryOfRequests(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	at := func(name string, age time.Duration) etcd.KV {
		value, err := json.Marshal(map[string]any{"request": "x", "began": now.Add(-age), "until": now})
		if err != nil {
			t.Fatal(err)
		}
		return etcd.KV{Key: v1.IdempotencyFolder + name, Value: value, ModRev: 7}
	}
	var flood []etcd.KV
	for i := range 10 {
		flood = append(flood, at(fmt.Sprint("flood/", i), time.Duration(i+1)*time.Minute))
	}
	m := v1.NewMemory(now, 3)
	old := m.Look(append([]etcd.KV{at("few/a", 23*time.Hour), at("few/b", 25*time.Hour), {Key: v1.IdempotencyFolder + "few/c", Value: []byte("torn")}, {Key: "envs/a"}}, flood...))
	names := func(edits []etcd.Edit) (all []string) {
		for _, e := range edits {
			if !e.Delete || e.Blind {
				t.Errorf("%+v", e)
			}
			all = append(all, e.Key[len(v1.IdempotencyFolder):])
		}
		return all
	}
	if got := names(old); !slices.Equal(got, []string{"few/b", "few/c"}) {
		t.Errorf("old are %q", got)
	}
	if got := names(m.Excess()); !slices.Equal(got, []string{"flood/9", "flood/8", "flood/7", "flood/6", "flood/5", "flood/4", "flood/3"}) {
		t.Errorf("too many are %q", got)
	}
}

// What etcd remembers of a request is no way to find out its secrets: it is the
// same for all of them.
func TestRememberedWithoutSecrets(t *testing.T) {
	r := newRig(t, func(c *envs.Config) {
		c.Seal = func(_ context.Context, _ string, plain []byte) ([]byte, error) { return plain, nil }
		c.Open = func(_ string, sealed []byte) ([]byte, error) { return sealed, nil }
	})
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	body := func(secret, user string) string {
		return `{"id":"a","backend":"10.0.0.1","services":{"ssh":{"username":"` + user + `","secrets":{"password":"` + secret + `"}}}}`
	}
	first := r.ask(op, http.MethodPost, "/environments", body("hunter2", "bob"), "Idempotency-Key", "k")
	first.want(t, 201)
	again := r.ask(op, http.MethodPost, "/environments", body("another", "bob"), "Idempotency-Key", "k")
	again.want(t, 201)
	if again.header.Get("Idempotency-Replayed") != "true" || again.body != first.body {
		t.Errorf("%v %s", again.header, again.body)
	}
	r.ask(op, http.MethodPost, "/environments", body("hunter2", "eve"), "Idempotency-Key", "k").want(t, 422)
}
