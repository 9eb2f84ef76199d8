package http_test

import (
	"net/http"
	"strings"
	"testing"
)

// TestPathsDoNotGetPastLists has a backend that takes dots and escaped slashes
// for ordinary characters: no spelling may reach what a route denies.
func TestPathsDoNotGetPastLists(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Area", strings.SplitN(r.URL.EscapedPath(), "/", 3)[1])
	})
	r := newRig(t, map[string]string{
		"pub":   `{"host":"app.x.test","backend":"` + up + `"}`,
		"admin": `{"host":"app.x.test","path":"/admin","backend":"` + up + `","deny":["0.0.0.0/0", "::/0"]}`,
	})
	for target, want := range map[string]int{
		"/admin/x": 403, "/%61dmin/x": 403, "//admin/x": 403, "/admin/..;/x": 403,
		"/admin/../x": 400, "/admin/users/%2e%2e/%2e%2e/x": 400, "/admin/users/..%2f..%2f": 400, "/x/..%2fadmin/y": 400,
		"/x/../y": 200, "/files/a%2Fb": 200, "/files/v1%2e0": 200, "/x": 200,
	} {
		resp := exchange1(t, r.dialClear(), "GET "+target+" HTTP/1.1\r\nHost: app.x.test\r\nConnection: close\r\n\r\n")
		resp.Body.Close()
		if resp.StatusCode != want || resp.Header.Get("X-Area") == "admin" {
			t.Errorf("%s: %d from %q, want %d", target, resp.StatusCode, resp.Header.Get("X-Area"), want)
		}
	}
}

// TestUpgradeWithBodyIsNoUpgrade sends chunks behind an offer to change
// protocols: the body's reader and the new protocol's would be one.
func TestUpgradeWithBodyIsNoUpgrade(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			w.WriteHeader(http.StatusSwitchingProtocols)
		}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + up + `"}`})
	for _, framing := range []string{"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "Content-Length: 1\r\n\r\nx"} {
		resp := exchange1(t, r.dialClear(), "POST / HTTP/1.1\r\nHost: app.x.test\r\nConnection: Upgrade\r\nUpgrade: foo\r\n"+framing)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%q: %d, want 200 from a backend that was offered nothing", framing, resp.StatusCode)
		}
	}
}
