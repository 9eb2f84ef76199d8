package router_test

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

func TestLimitsRefuse(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{`"limits":{"rate":7}`, "limits.rate: must be an object in { } or a list of them, not a number"},
		{`"limits":{"rate":{}}`, "limits.rate[0].requests: is missing"},
		{`"limits":{"rate":{"requests":0}}`, "limits.rate[0].requests: must be from 1 to 1000000, not 0"},
		{`"limits":{"rate":{"requests":1,"per":"1ms"}}`, "limits.rate[0].per: must be from 1s to 24h, not 1ms"},
		{`"limits":{"rate":{"requests":1,"per":"48h"}}`, "limits.rate[0].per: must be from 1s to 24h"},
		{`"limits":{"rate":{"requests":1,"per":"24h","burst":100}}`, "at this rate at most 7 can be"},
		{`"limits":{"rate":{"requests":1,"by":"clients"}}`, "limits.rate[0].by: \"clients\" is not known"},
		{`"limits":{"rate":{"requests":1,"by":"header:a b"}}`, "limits.rate[0].by:"},
		{`"limits":{"rate":[{"requests":1},{"requests":2,"by":"all"}]}`, "counts by \"all\" in the same time as limits.rate[0]"},
		{`"limits":{"rate":[{"requests":1},{"requests":1},{"requests":1},{"requests":1},{"requests":1}]}`, "at most 4 are taken"},
		{`"limits":{"concurrency":{}}`, "limits.concurrency[0].requests: is missing"},
		{`"limits":{"concurrency":[{"requests":1,"by":"env"},{"requests":2,"by":"env"}]}`, "counts by \"env\" as limits.concurrency[0] does"},
		{`"limits":{"body":"-1"}`, "limits.body: must be positive"},
		{`"limits":{"body":"10 apples"}`, "is not a size"},
		{`"tls":"passthrough","limits":{"body":1}`, "limits: has no meaning"},
		{`"tls":"passthrough","timeouts":{"total":"1s"}`, "timeouts.total: has no meaning"},
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"a.b","backend":"a:1",`+tc.value+`}`))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.value, err, tc.want)
		}
	}
	for _, tc := range []struct{ value, want string }{
		{`{"backend":"a:1","requests":{}}`, "requests: is about HTTP, and there is no http"},
		{`{"http":"a:1","requests":{"limits":{"rate":{}}}}`, "requests.limits.rate[0].requests: is missing"},
		{`{"http":"a:1","limits":{"rate":{}}}`, "limits.rate: unknown field"},
	} {
		_, err := router.ParseMapping(router.TCP, 20000, []byte(tc.value))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.value, err, tc.want)
		}
	}
}

func TestRates(t *testing.T) {
	r := mustRoute(t, "r", `{"host":"a.b","backend":"a:1","limits":{"rate":[{"requests":4},{"requests":60,"per":"1h","burst":2,"by":"header:X-Key"}]}}`)
	p := r.Admission()
	if p == nil || p.Name != "routes/r" || len(p.Limits.Rate) != 2 {
		t.Fatalf("policy %+v", p)
	}
	if first := p.Limits.Rate[0]; first.Every() != 250*time.Millisecond || first.Full() != time.Second || first.By.String() != "all" {
		t.Errorf("%+v: a request every %v, %v for all", first, first.Every(), first.Full())
	}
	if second := p.Limits.Rate[1]; second.Every() != time.Minute || second.Full() != 2*time.Minute || second.By.String() != "header:x-key" {
		t.Errorf("%+v: a request every %v, %v for all", second, second.Every(), second.Full())
	}
	if p := mustRoute(t, "r", `{"host":"a.b","backend":"a:1"}`).Admission(); p != nil {
		t.Errorf("a route without limits has the policy %+v", p)
	}
}
