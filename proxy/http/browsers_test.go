package http_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

func TestHSTS(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=1")
	})
	node := &router.HSTS{IncludeSubdomains: true}
	if err := node.Check("hsts"); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, map[string]string{
		"node":    `{"host":"node.x.test","backend":"` + addr + `"}`,
		"never":   `{"host":"never.x.test","backend":"` + addr + `","hsts":false}`,
		"own":     `{"host":"own.x.test","backend":"` + addr + `","hsts":{"max_age":"24h"}}`,
		"forget":  `{"host":"forget.x.test","respond":{},"hsts":{"max_age":"0s"}}`,
		"preload": `{"host":"preload.x.test","redirect":"https://x.test/","hsts":{"preload":true,"include_subdomains":true}}`,
		"broken":  `{"host":"broken.x.test","backend":"` + deadAddr(t) + `","hsts":true}`,
	}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Policy.HSTS = node })
	for _, p := range r.peers() {
		for host, want := range map[string]string{
			"node": "max-age=31536000; includeSubDomains", "never": "max-age=1", "own": "max-age=86400", "forget": "max-age=0",
			"preload": "max-age=31536000; includeSubDomains; preload", "broken": "max-age=31536000",
		} {
			if p.scheme == "http" && host != "never" { // what comes in clear text may be anybody's word
				want = ""
			}
			resp, _ := p.get(t, host+".x.test", "/")
			if got := strings.Join(resp.Header["Strict-Transport-Security"], "|"); got != want {
				t.Errorf("%s, %s: %q, want %q", p.name, host, got, want)
			}
		}
	}
}

// TestCORS asks with and without preflight, as browsers do.
func TestCORS(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*") // which the node knows better
		w.Header().Set("Access-Control-Allow-Private-Network", "true")
		io.WriteString(w, r.Method)
	})
	const ok, sub, evil = "https://app.x.test", "https://a.sub.x.test", "https://a.sub.x.test.evil.test"
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"some": `{"host":"some.x.test","backend":"` + addr + `","cors":{"origins":["` + ok + `","~https://[a-z]+\\.sub\\.x\\.test"],
				"methods":["GET","PUT"],"headers":["Authorization","X-A"],"expose":["X-B"],"credentials":true,"max_age":"10m"}}`,
			"all":    `{"host":"all.x.test","backend":"` + addr + `","cors":{"origins":["*"],"headers":["*"]}}`,
			"broken": `{"host":"broken.x.test","backend":"` + deadAddr(t) + `","cors":{"origins":["` + ok + `"]}}`,
			"none":   `{"host":"none.x.test","backend":"` + addr + `"}`,
		})
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct{ host, origin, preflight, want string }{
			{"some", ok, "", "200 GET origin=https://app.x.test credentials=true expose=X-B vary=Origin"},
			{"some", sub, "", "200 GET origin=https://a.sub.x.test credentials=true expose=X-B vary=Origin"},
			{"some", evil, "", "200 GET vary=Origin"},
			{"some", "null", "", "200 GET vary=Origin"},
			{"some", "~https://[a-z]+\\.sub\\.x\\.test", "", "200 GET vary=Origin"},
			{"some", "", "", "200 GET vary=Origin"},
			{"some", ok, "PUT", "204 origin=https://app.x.test credentials=true methods=GET, PUT headers=Authorization, X-A max-age=600 " +
				"vary=Access-Control-Request-Method, Access-Control-Request-Headers|Origin"},
			{"some", evil, "PUT", "403 pages of this origin may not ask this route vary=Origin"},
			{"all", evil, "", "200 GET origin=*"},
			{"all", "", "", "200 GET origin=*"},
			{"all", evil, "GET", "204 origin=* methods=GET, HEAD, POST headers=* vary=Access-Control-Request-Method, Access-Control-Request-Headers"},
			{"broken", ok, "", "502 the backend cannot be reached origin=https://app.x.test vary=Origin"},
			{"none", ok, "", "200 GET origin=*"},
			{"none", ok, "PUT", "200 OPTIONS origin=*"},
		} {
			method := "GET"
			if tc.preflight != "" {
				method = "OPTIONS"
			}
			req := p.request(method, tc.host+".x.test", "/", nil)
			if tc.origin != "" {
				req.Header.Set("Origin", tc.origin)
			}
			if tc.preflight != "" {
				req.Header.Set("Access-Control-Request-Method", tc.preflight)
			}
			if got := originsTold(t, p.send(t, req)); got != tc.want {
				t.Errorf("%s asked by %q, preflight %q:\n got %s\nwant %s", tc.host, tc.origin, tc.preflight, got, tc.want)
			}
		}
	})
}

// originsTold writes what of a response concerns browsers.
func originsTold(t *testing.T, resp *http.Response) string {
	told := resp.Status[:3]
	if body := strings.TrimSpace(readAll(t, resp.Body)); body != "" {
		told += " " + body
	}
	for _, f := range []struct{ word, name string }{
		{"origin", "Access-Control-Allow-Origin"}, {"credentials", "Access-Control-Allow-Credentials"},
		{"methods", "Access-Control-Allow-Methods"}, {"headers", "Access-Control-Allow-Headers"},
		{"expose", "Access-Control-Expose-Headers"}, {"max-age", "Access-Control-Max-Age"}, {"vary", "Vary"},
	} {
		if values := resp.Header[http.CanonicalHeaderKey(f.name)]; values != nil {
			told += " " + f.word + "=" + strings.Join(values, "|")
		}
	}
	return told
}
