package http

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "*", "/a%2fb?c=;d", "//x", "/a?", "http://h/p?q", "http://h", "h:443", "/a#b", "", "?", "/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, ok := parseTarget(s)
		if !ok {
			if target.path != "" {
				t.Errorf("%q is refused and has the path %q", s, target.path)
			}
			return
		}
		if strings.ContainsAny(target.String(), " \r\n#") || target.path == "" {
			t.Errorf("%q became %q", s, target)
		}
		if s[0] == '/' && target.String() != s {
			t.Errorf("%q became %q", s, target)
		}
		if target.query != "" && target.query[0] != '?' || strings.Contains(target.path, "?") {
			t.Errorf("%q was split into %q and %q", s, target.path, target.query)
		}
	})
}

func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a.x.test", "A.x.test:80", "[::1]", "[::1]:443", "[::1]x", "a:b", "u@a", "a:1:2", "", ":80", "1.2.3.4:", "::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, ok := parseAuthority(s)
		if !ok {
			return
		}
		if again, ok := router.NormalizeHost(host); !ok || again != host {
			t.Errorf("%q gave %q, which is not normal", s, host)
		}
		if again, ok := parseAuthority(urlHost(host)); !ok || again != host {
			t.Errorf("%q gave %q, which as a URL's host is %q, %v", s, host, again, ok)
		}
		if strings.ContainsAny(s, "\"\\ \r\n/@") {
			t.Errorf("%q passed for an authority", s)
		}
	})
}
