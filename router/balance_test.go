package router_test

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

// TestUpstreamPolicyIsStrict gives backends that mean nothing, and wants to be
// told which field is wrong and what would be right.
func TestUpstreamPolicyIsStrict(t *testing.T) {
	for backend, want := range map[string]string{
		`"balance":"hash"`:                                      "backend.hash: is missing; give",
		`"hash":{"header":"X"}`:                                 `backend.hash: has no meaning without "balance": "hash"`,
		`"balance":"hash","hash":{}`:                            "backend.hash: goes by one thing",
		`"balance":"hash","hash":{"header":"X","cookie":"y"}`:   "backend.hash: goes by one thing",
		`"balance":"hash","hash":{"header":"X Y"}`:              `backend.hash.header: "X Y" is not a header name`,
		`"balance":"hash","hash":{"cookie":"a=b"}`:              `backend.hash.cookie: "a=b" is not a cookie's name`,
		`"balance":"hash","hash":{"cookie":"a","max_load":100}`: "backend.hash.max_load: must be",
		`"sticky":{}`:                                                "backend.sticky.cookie: is missing",
		`"sticky":{"cookie":"a b"}`:                                  `backend.sticky.cookie: "a b" is not`,
		`"sticky":{"cookie":"a","same_site":"Lax"}`:                  `backend.sticky.same_site: "Lax" is not known`,
		`"sticky":{"cookie":"a","max_age":"10ms"}`:                   "backend.sticky.max_age: must be from 1s",
		`"prefer_zone":true`:                                         "backend.prefer_zone: has nothing to go by",
		`"retry":false`:                                              "backend.retry: is on when present",
		`"retry":{"attempts":0}`:                                     "backend.retry.attempts:",
		`"retry":{"attempts":11}`:                                    "backend.retry.attempts: must be",
		`"retry":{"on":["reset","500"]}`:                             `backend.retry.on[1]: "500" is not known; known: connect, reset, 502, 503, 504`,
		`"retry":{"try_timeout":"1us"}`:                              "backend.retry.try_timeout: must be 1ms or more",
		`"retry":{"budget":101}`:                                     "backend.retry.budget: must be",
		`"retry":{"min_per_second":0}`:                               "backend.retry.min_per_second:",
		`"eject":"yes"`:                                              "backend.eject: must be true or an object",
		`"eject":{"failures":0}`:                                     "backend.eject.failures:",
		`"eject":{"time":"1ms"}`:                                     "backend.eject.time: must be 1s or more",
		`"eject":{"time":"1h","max_time":"1m"}`:                      "backend.eject.max_time: must be from time, 1h",
		`"eject":{"status_500":true}`:                                `backend.eject.status_500: unknown field; did you mean "status_5xx"?`,
		`"targets":[{"address":"a:1","zone":"a\u0000"}],"h2c":false`: "backend.targets[0].zone: holds the character",
	} {
		if !strings.HasPrefix(backend, `"targets"`) {
			backend = `"targets":["a:1"],` + backend
		}
		if _, err := router.ParseRoute("r", []byte(`{"host":"x.test","backend":{`+backend+`}}`)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", backend, err, want)
		}
	}
	if _, err := router.ParseRoute("r", []byte(`{"host":"~^(?<id>[a-z]+)$","backend":{"targets":["${id}:1"],"sticky":{"cookie":"a"}}}`)); err == nil || !strings.Contains(err.Error(), "backend.sticky: cannot be had") {
		t.Errorf("sticky with a variable: %v", err)
	}
	for _, field := range []string{`"balance":"least_requests"`, `"balance":"hash","hash":{"header":"X"}`, `"sticky":{"cookie":"a"}`, `"retry":true`, `"eject":true`} {
		_, err := router.ParseMapping(router.TCP, 22, []byte(`{"backend":{"targets":["a:1"],`+field+`}}`))
		if err == nil || !strings.Contains(err.Error(), "goes by requests") {
			t.Errorf("%s for raw bytes: %v", field, err)
		}
		if _, err = router.ParseMapping(router.TCP, 22, []byte(`{"http":{"targets":["a:1"],`+field+`}}`)); err != nil {
			t.Errorf("%s for HTTP: %v", field, err)
		}
		for _, how := range []string{`"tls":"passthrough"`, `"protocol":"tcp"`} {
			_, err := router.ParseRoute("r", []byte(`{"host":"x.test",`+how+`,"backend":{"targets":["a:1"],`+field+`}}`))
			if err == nil || !strings.Contains(err.Error(), "sees no HTTP") {
				t.Errorf("%s with %s: %v", field, how, err)
			}
		}
	}
}

func TestUpstreamPolicyDefaults(t *testing.T) {
	r, err := router.ParseRoute("r", []byte(`{"host":"x.test","backend":{"targets":["a:1"],"retry":true,"eject":{"time":"10m"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Backend.Retry.WithDefaults(); got.Attempts != 2 || got.Budget != 20 || got.MinPerSecond != 3 || r.Backend.Retry.Reasons() != router.RetryConnect|router.RetryReset {
		t.Errorf("retry: %+v on %b", got, r.Backend.Retry.Reasons())
	}
	if got := r.Backend.Eject.WithDefaults(); got != (router.Eject{Failures: 5, Time: 10 * time.Minute, MaxTime: 10 * time.Minute}) {
		t.Errorf("eject: %+v", got)
	}
	some := router.Retry{On: []string{"502", "504"}, TryTimeout: time.Second}
	if got, want := some.Reasons(), router.Retry502|router.Retry504|router.RetryTimeout; got != want {
		t.Errorf("reasons %b, want %b", got, want)
	}
}
