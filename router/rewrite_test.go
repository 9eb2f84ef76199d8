package router_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestRewritePath(t *testing.T) {
	for _, tc := range []struct{ route, path, want string }{
		{`"path":"/api","rewrite":"/v2"`, "/api", "/v2"},
		{`"path":"/api","rewrite":"/v2"`, "/api/", "/v2/"},
		{`"path":"/api","rewrite":"/v2/"`, "/api", "/v2/"},
		{`"path":"/api","rewrite":"/v2"`, "/api/a;b/c%20d/", "/v2/a;b/c%20d/"},
		{`"path":"/api/","rewrite":{"prefix":"/"}`, "/api/a", "/a"},
		{`"path":"/api","rewrite":"/v2"`, "/%61pi/a", "/v2/a"},
		{`"rewrite":"/v2"`, "/a", "/v2/a"},
		{`"rewrite":"/tenants/a"`, "/../b", "/tenants/a/b"},
		{`"rewrite":"/tenants/a"`, "/%2e%2e%2fb", "/tenants/a/b"},
		{`"path":"/api","rewrite":"/tenants/a"`, "/api/x/../../api/y", "/tenants/a/y"},
		{`"path":"/api","rewrite":"/v2"`, "/api/%252e%252e/y%3fz", "/v2/%252e%252e/y%3Fz"},
		{`"rewrite":{"regex":"^/old/(?<rest>.*)$","to":"/new/${rest}"}`, "/old/a/b", "/new/a/b"},
		{`"rewrite":{"regex":"^/old/(.*)$","to":"/new/${1}"}`, "/other", "/other"},
		{`"rewrite":{"regex":"^/old/(.*)$","to":"/new/${1}"}`, "/x/%2e%2e/other%2fa", "/other/a"},
		{`"rewrite":{"regex":"^/(.)(.)(.*)$","to":"/in/${1}./${3}"}`, "/.x/secret", "/secret"},
		{`"rewrite":{"regex":"^(.*)$","to":"/${1}"}`, "//a", "/a"},
		{`"rewrite":{"regex":"^/(.*)\\.html$","to":"/$$/${0}"}`, "/a b.html", "/$/a%20b.html"},
	} {
		r := mustRoute(t, "r", `{"host":"a.b","backend":"a:1",`+tc.route+`}`)
		decoded, err := url.PathUnescape(tc.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.RewritePath(tc.path, decoded); got != tc.want {
			t.Errorf("%s: %s becomes %s, want %s", tc.route, tc.path, got, tc.want)
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{`"rewrite":{}`, "rewrite: says nothing; give prefix, or regex and to"},
		{`"rewrite":7`, "rewrite: must be a path such as \"/v2\""},
		{`"rewrite":"v2"`, `rewrite.prefix: "v2" is not a path`},
		{`"rewrite":"/a/../b"`, `rewrite.prefix: "/a/../b" is not a path`},
		{`"rewrite":"/a?b"`, "rewrite.prefix:"},
		{`"rewrite":"/a\nb"`, "rewrite.prefix:"},
		{`"rewrite":{"prefix":"/a","to":"/b"}`, "rewrite.to: belongs to regex"},
		{`"rewrite":{"prefix":"/a","regex":"b"}`, "exclude each other"},
		{`"rewrite":{"regex":""}`, "rewrite.regex: is empty"},
		{`"rewrite":{"regex":"("}`, `rewrite.regex: "(" is not a regular expression`},
		{`"rewrite":{"regex":"a"}`, "rewrite.to: is missing"},
		{`"rewrite":{"regex":"a","to":"b"}`, "begin it with /"},
		{`"rewrite":{"regex":"a","to":"/b?c"}`, "the query stays"},
		{`"rewrite":{"regex":"a","to":"/$1"}`, "stands for no group"},
		{`"rewrite":{"regex":"a","to":"/${1}"}`, "${1} is no group of the regular expression, which has 0"},
		{`"rewrite":{"regex":"(?<x>a)","to":"/${y}"}`, "${y} is no group"},
		{`"path":"/a","strip_prefix":true,"rewrite":"/b"`, "rewrite: excludes strip_prefix"},
		{`"request_headers":{"add":{"Host":"a"}}`, `request_headers.add: "Host" has one value only; use set`},
		{`"request_headers":{"add":{"Transfer-Encoding":"a"}}`, "frames messages"},
		{`"request_headers":{"set":{"Expect":"a"}}`, "frames messages"},
		{`"request_headers":{"add":{"X Y":"a"}}`, "not a header name"},
		{`"response_headers":{"add":{"X":"a\r\nB: c"}}`, "response_headers.add.X: holds a line break"},
		{`"response_headers":{"set":{"X":"a\u0001"}}`, "response_headers.set.X: holds a control character"},
		{`"response_headers":{"add":{"X":"${nobody}"}}`, "response_headers.add.X: ${nobody} is neither"},
		{`"tls":"passthrough","rewrite":"/a"`, "rewrite: has no meaning"},
		{`"tls":"passthrough","https_only":true`, "https_only: has no meaning"},
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"a.b","backend":"a:1",`+tc.value+`}`))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.value, err, tc.want)
		}
	}
}

// TestRedirectLeadsWhereItWasWritten wants no client to choose the host that it
// is sent to.
func TestRedirectLeadsWhereItWasWritten(t *testing.T) {
	for _, tc := range []struct{ to, uri, want string }{
		{"https://${host}${uri}", "/a?b", "https://app.x.test/a?b"},
		{"https://new.x.test${uri}", "//evil.example.com", "https://new.x.test//evil.example.com"},
		{"https://new.x.test${uri}", "*", "https://new.x.test/"},
		{"${uri}", "//evil.example.com/%2f", "/evil.example.com/%2f"},
		{"${uri}", `/\/evil.example.com`, "/evil.example.com"},
		{"${uri}", "*", "/"},
		{"/${uri}", "/evil.example.com", "/evil.example.com"},
		{"/login?to=${uri}", "//evil", "/login?to=//evil"},
	} {
		r := mustRoute(t, "r", `{"host":"a.b","redirect":"`+tc.to+`"}`)
		if got := r.Redirect.Target(&router.Vars{Host: "app.x.test", URI: tc.uri}); got != tc.want {
			t.Errorf("%s with %s: %s, want %s", tc.to, tc.uri, got, tc.want)
		}
	}
	for _, tc := range []struct{ to, want string }{
		{"", "is missing"}, {"//evil.example.com/", "leads to another host"}, {`/\\evil`, "leads to another host"},
		{"${host}/x", "neither a URL nor a path"}, {"javascript:alert(1)", "neither a URL nor a path"},
		{"https://${uri}", "names no host of its own"}, {"https:///x", "names no host of its own"},
		{"https://a${uri}.example.com", "names no host of its own"}, {"https://x.test@evil/", "names no host of its own"},
		{`https://a\nb/`, "control character"},
		{"https://${x}/", "into ${x}; end the host"}, {"https://${x}", "into ${x}"}, {"https://${x}${uri}", "into ${x}"},
		{"https://${sni}/", "into ${sni}"}, {"https://${client_ip}/", "into ${client_ip}"}, {"https://${x}:8443/", "into ${x}"},
		{"https://www.${x}/", "into ${x}"}, {"https://${x}example.com/", "into ${x}"}, {"https://${x}.com/", "into ${x}"},
		{"https://${x}.com./", "into ${x}"}, {"https://${host}.${x}?a", "into ${x}"}, {"http://${x}${host}", "into ${x}"},
		{"https://${x}.${x}/", "into ${x}"}, {"https://example.com.${x}:${port}/", "into ${x}"}, {"https://${x}.example.com.${sni}/", "into ${sni}"},
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"~^(?<x>.*)\\.a\\.b$","redirect":{"to":"`+tc.to+`"}}`))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.to, err, tc.want)
		}
	}
	for _, to := range []string{
		"https://${host}/", "https://${host}:8443${uri}", "https://www.${host}/", "https://${x}.${host}/", "https://${x}.example.com/",
		"https://${x}-a.example.com.:8443/x", "https://${x}.localhost:${port}/", "https://example.com/${x}", "https://example.com:${port}?${sni}", "https://[::1]:8443/${x}",
	} {
		if _, err := router.ParseRoute("r", []byte(`{"host":"~^(?<x>.*)\\.a\\.b$","redirect":{"to":"`+to+`"}}`)); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}
