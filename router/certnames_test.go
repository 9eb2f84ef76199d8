package router_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/router"
)

func TestCertNames(t *testing.T) {
	for _, tt := range []struct {
		host string // JSON
		want string // names, and "+" where there are other hosts, "++" where below a wildcard
	}{
		{`"app.x-gpu.com"`, "app.x-gpu.com"},
		{`"App.X-GPU.com."`, "app.x-gpu.com"},
		{`["a.x-gpu.com", "b.x-gpu.com", "a.x-gpu.com"]`, "a.x-gpu.com b.x-gpu.com"},
		{`"*.x-gpu.com"`, "*.x-gpu.com +"},
		{`"*"`, "+"},
		{`"10.0.0.1"`, "+"},
		{`"localhost"`, "+"},
		{`"~^env-(?<id>[a-z0-9-]+)\\.remotegpu\\.com$"`, "*.remotegpu.com"},
		{`"~^env-[^.]+\\.remotegpu\\.com$"`, "*.remotegpu.com"},
		{`"~^env-[a-z]{1,20}\\.remotegpu\\.com$"`, "*.remotegpu.com"},
		{`"~^env-.*\\.remotegpu\\.com$"`, "*.remotegpu.com ++"},
		{`"~^[a-z.]+\\.remotegpu\\.com$"`, "*.remotegpu.com ++"},
		{`"~\\.remotegpu\\.com$"`, "*.remotegpu.com ++"},
		{`"~remotegpu\\.com$"`, "+"},
		{`"~remotegpu"`, "+"},
		{`"~^www\\.remotegpu\\.com$"`, "www.remotegpu.com"},
		{`"~(?i)^WWW\\.remotegpu\\.com$"`, "www.remotegpu.com"},
		{`"~^(www\\.)?remotegpu\\.com$"`, "remotegpu.com www.remotegpu.com"},
		{`"~^(a|b|c)\\.(x-gpu|remotegpu)\\.com$"`, "a.x-gpu.com a.remotegpu.com b.x-gpu.com b.remotegpu.com c.x-gpu.com c.remotegpu.com"},
		{`"~^[a-z]+\\.(?:ssh|jupyter)\\.x-gpu\\.com$"`, "*.ssh.x-gpu.com *.jupyter.x-gpu.com"},
		{`"~^[a-z]+\\.[a-z]+\\.x-gpu\\.com$"`, "+"},
		{`"~^api\\.[a-z]+\\.x-gpu\\.com$"`, "+"},
		{`"~^([a-z]+\\.)*x-gpu\\.com$"`, "+"},
		{`"~^([a-z]+\\.)+x-gpu\\.com$"`, "+"},
		{`"~^node[12]\\.x-gpu\\.com$"`, "node1.x-gpu.com node2.x-gpu.com"},
		{`"~^node[0-9]\\.x-gpu\\.com$"`, "*.x-gpu.com"},
		{`"~^[a-z]+\\.com$"`, "+"},
		{`"~^(a^)b\\.x-gpu\\.com$"`, ""},
		{`"~^(?:a|b|c|d)(?:a|b|c|d)(?:a|b|c|d)\\.x-gpu\\.com$"`, "*.x-gpu.com ++"},
	} {
		r, err := router.ParseRoute("r", fmt.Appendf(nil, `{"host": %s, "respond": {"body": "x"}}`, tt.host))
		if err != nil {
			t.Fatal(err)
		}
		got := r.CertNames([]int{443})
		text := strings.Join(got.Names, " ")
		if got.Open {
			text = strings.TrimSpace(text + " +")
		}
		if got.Deeper {
			text += "+"
		}
		if text != tt.want {
			t.Errorf("%s needs %q, want %q", tt.host, text, tt.want)
		}
	}
}

func TestCertNamesOnlyWhereTLSEnds(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  []string
	}{
		{`{"host": "a.x-gpu.com", "backend": "10.0.0.7:80"}`, []string{"a.x-gpu.com"}},
		{`{"host": "a.x-gpu.com", "backend": "10.0.0.7:22", "protocol": "tcp"}`, []string{"a.x-gpu.com"}},
		{`{"host": "a.x-gpu.com", "backend": "10.0.0.7:443", "tls": "passthrough"}`, nil},
		{`{"host": "a.x-gpu.com", "backend": "10.0.0.7:80", "ports": "80"}`, nil},
		{`{"host": "a.x-gpu.com", "backend": "10.0.0.7:80", "ports": "80,8443"}`, []string{"a.x-gpu.com"}},
	} {
		r, err := router.ParseRoute("r", []byte(tt.value))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, r.CertNames([]int{443, 8443}).Names); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.value, diff)
		}
		if got := r.CertNames(nil); len(got.Names) > 0 || got.Open {
			t.Errorf("%s needs %v of a node without https listeners", tt.value, got)
		}
	}
}

// Whatever host an expression matches is covered by one of the names, unless it
// was said that others are not.
func FuzzCertNames(f *testing.F) {
	for _, s := range [][2]string{
		{`^env-(?<id>[a-z0-9-]+)\.remotegpu\.com$`, "env-abc.remotegpu.com"},
		{`^(www\.)?x-gpu\.com$`, "www.x-gpu.com"},
		{`^[a-c]\.x-gpu\.(com|net)$`, "b.x-gpu.net"},
		{`(?i)^A+\.x\.y$`, "aaa.x.y"},
		{`^a{2}\.x\.y$`, "aa.x.y"},
		{`^(a\.){2}x\.y$`, "a.a.x.y"},
		{`^(|a)\.b\.c$`, "a.b.c"},
		{`\.b\.c$`, "a.a.b.c"},
		{`^a\.b\.c\z`, "a.b.c"},
		{`(?m)^a\.b\.c$`, "a.b.c"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, expr, host string) {
		pattern, err := json.Marshal("~" + expr)
		if err != nil {
			t.Fatal(err)
		}
		r, err := router.ParseRoute("r", fmt.Appendf(nil, `{"host": %s, "respond": {"body": "x"}}`, pattern))
		if err != nil {
			return
		}
		host, ok := router.NormalizeHost(host)
		if _, err := netip.ParseAddr(host); !ok || err == nil || !strings.Contains(host, ".") {
			return
		}
		var b router.Builder
		b.SetRoute(r)
		got, _ := b.Table(1).Match(&router.Request{Host: host, Port: 443, Method: "GET", Path: "/"})
		needs := r.CertNames([]int{443})
		if got == nil || needs.Open {
			return
		}
		_, parent, _ := strings.Cut(host, ".")
		for _, name := range needs.Names {
			if name == host || name == "*."+parent {
				return
			}
		}
		t.Errorf("~%s matches %s, which %v do not cover", expr, host, needs.Names)
	})
}
