package http_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

func template(t *testing.T, s string) router.Template {
	t.Helper()
	page, err := router.ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func TestErrorPages(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Retry-After", "7")
		w.Header().Set("Content-Type", "application/xml")
		status := 200
		fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
		io.WriteString(w, strings.Repeat("the backend's own words ", 1000))
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"dead": `{"host":"~^(?<name>[ab])-dead\\.x\\.test$","backend":"` + deadAddr(t) + `","compress":{"min_size":1},
				"error_pages":{"502":{"body":"<h1>${status} ${reason}</h1>${message} ${name} ${uri} ${host}"},"5xx":{"body":"other"}}}`,
			"live": `{"host":"live.x.test","backend":"` + addr + `","response_headers":{"set":{"X-Edited":"yes"}},
				"error_pages":{"404":{"file":"404.txt","upstream":true},"403":{"body":"not of the backend"},
				"5xx":{"body":"{\"why\":\"${uri} ${status}\"}","type":"application/problem+json","upstream":true},
				"410":{"file":"missing.html","upstream":true}}}`,
			"denied":  `{"host":"denied.x.test","backend":"` + addr + `","deny":["0.0.0.0/0"],"error_pages":{"4xx":{"body":"<p>denied</p>"}}}`,
			"respond": `{"host":"respond.x.test","respond":{"status":404,"body":"as the route has it"}}`,
		}, func(cfg *proxyhttp.Config, _ *rig) {
			cfg.Policy.ErrorPages = router.ErrorPages{"4xx": {Body: template(t, "node: ${status} at ${host}:${port}")}}
			cfg.Pages = map[string]router.Template{"404.txt": template(t, "no <${uri}> here")}
		})
	}, func(t *testing.T, p *peer) {
		port := "8080"
		if p.scheme == "https" {
			port = "8443"
		}
		for _, tc := range []struct{ host, target, accept, want string }{
			{"a-dead", "/?<b>&\"", "text/html, application/json", "502 text/html; charset=utf-8 | <h1>502 Bad Gateway</h1>the backend cannot be reached a /?&lt;b&gt;&amp;&#34; a-dead.x.test"},
			{"a-dead", "/", "application/json", `502 application/json | {"status":502,"error":"Bad Gateway","message":"the backend cannot be reached"}` + "\n"},
			{"live", "/404", "", "404 text/plain; charset=utf-8 | no </404> here"},
			{"live", "/403", "", "403 application/xml | the backend's own words "},
			{"live", "/410", "", "410 application/xml | the backend's own words "},
			{"live", "/503?\"", "application/json", `503 application/problem+json | {"why":"/503?\" 503"}`},
			{"live", "/200", "", "200 application/xml | the backend's own words "},
			{"denied", "/", "", "403 text/html; charset=utf-8 | <p>denied</p>"},
			{"nobody", "/", "", "404 text/html; charset=utf-8 | node: 404 at nobody.x.test:" + port},
			{"respond", "/", "", "404 text/plain; charset=utf-8 | as the route has it"},
			{"nobody", "/health-proxy", "", "200 text/plain; charset=utf-8 | ok\n"},
		} {
			if tc.host == "nobody" && p.scheme == "http" {
				continue // which is sent to https
			}
			want := tc.want
			req := p.request("GET", tc.host+".x.test", "/", nil)
			req.URL.Path, req.URL.RawQuery, _ = strings.Cut(tc.target, "?")
			if tc.accept != "" {
				req.Header.Set("Accept", tc.accept)
			}
			resp := p.send(t, req)
			body := readAll(t, resp.Body)
			got := fmt.Sprintf("%d %s | %s", resp.StatusCode, resp.Header.Get("Content-Type"), body[:min(len(body), len(want))])
			if !strings.HasPrefix(got, want) || !strings.HasPrefix(body, "the backend's own") && len(got) != len(want) {
				t.Errorf("%s%s:\n got %s\nwant %s", tc.host, tc.target, got, want)
			}
			replaced := tc.host == "live" && !strings.HasPrefix(body, "the backend's own")
			if h := resp.Header; replaced && (h.Get("ETag") != "" || h.Get("Retry-After") != "7" || h.Get("X-Edited") != "yes" || h.Get("Vary") != "Accept") {
				t.Errorf("%s%s: header %v", tc.host, tc.target, h)
			}
		}
		resp := p.send(t, p.request("HEAD", "live.x.test", "/404", nil))
		if resp.StatusCode != 404 || resp.ContentLength != int64(len("no </404> here")) {
			t.Errorf("HEAD: %d, length %d", resp.StatusCode, resp.ContentLength)
		}
		req := p.request("GET", "b-dead.x.test", "/", nil)
		req.Header.Set("Accept-Encoding", "gzip")
		if resp := p.send(t, req); resp.StatusCode != 502 || resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%d, header %v", resp.StatusCode, resp.Header)
		}
	})
}
