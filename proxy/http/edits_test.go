package http_test

import (
	"fmt"
	"net/http"
	"testing"
)

func TestHeadersAreAdded(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Link", "</own>")
		fmt.Fprint(w, r.Header["X-Tag"], r.Header["X-Env"])
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"~^(?<id>[a-z]+)\\.x\\.test$","backend":"` + addr + `",
			"request_headers":{"add":{"X-Tag":"${id} of ${host}","X-Env":"new"},"remove":["X-Env"]},
			"response_headers":{"add":{"Link":"</${id}>","X-New":"1"}}}`})
	}, func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/", nil)
		req.Header.Set("X-Tag", "client's")
		req.Header.Set("X-Env", "client's")
		resp := p.send(t, req)
		if got, want := readAll(t, resp.Body), "[client's app of app.x.test] [new]"; got != want {
			t.Errorf("the backend saw %s, want %s", got, want)
		}
		if got, want := fmt.Sprint(resp.Header["Link"], resp.Header["X-New"]), "[</own> </app>] [1]"; got != want {
			t.Errorf("the client saw %s, want %s", got, want)
		}
	})
}

func TestRewriteAndRedirect(t *testing.T) {
	addr := backend(t, echo)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"prefix": `{"host":"app.x.test","path":"/api","rewrite":"/v2","backend":"` + addr + `"}`,
			"regex":  `{"host":"app.x.test","path":"/u","rewrite":{"regex":"^/u/([a-z]+)/(.*)$","to":"/${2}/of/${1}"},"backend":"` + addr + `"}`,
			"moved":  `{"host":"app.x.test","path":"/moved","redirect":{"to":"${uri}","status":308}}`,
			"other":  `{"host":"app.x.test","path":"/other","redirect":{"to":"https://new.x.test/","status":303}}`,
			"secure": `{"host":"secure.x.test","https_only":true,"respond":{"body":"in secret\n"}}`,
		})
	}, func(t *testing.T, p *peer) {
		for target, want := range map[string]string{
			"/api/a%20b?q=/../x&y":   "/v2/a%20b?q=/../x&y",
			"/api/../api/%2e%2e/api": "/v2",
			"/u/ann/x/y?":            "/x/y/of/ann?",
			"/u/ann":                 "/u/ann",
			"/u/..%2fu/ann/x":        "/x/of/ann",
		} {
			if _, body := p.get(t, "app.x.test", target); body != "GET "+want+" host=app.x.test body=" {
				t.Errorf("%s: %s, want %s", target, body, want)
			}
		}
		for target, want := range map[string]string{"/moved/..//moved?x": "308 /moved/..//moved?x", "/other": "303 https://new.x.test/"} {
			if resp, _ := p.get(t, "app.x.test", target); fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Location")) != want {
				t.Errorf("%s: %d %v, want %s", target, resp.StatusCode, resp.Header, want)
			}
		}
		resp, body := p.get(t, "secure.x.test", "/a?b")
		if got := fmt.Sprint(resp.StatusCode, resp.Header.Get("Location"), body); p.scheme == "http" && got != "301https://secure.x.test:8443/a?b" ||
			p.scheme == "https" && got != "200in secret\n" {
			t.Errorf("https_only: %s", got)
		}
	})
}
