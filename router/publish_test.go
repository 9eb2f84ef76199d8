package router_test

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

func TestPublishedNames(t *testing.T) {
	p, err := router.ParsePublishedName("edge.x-gpu.com", []byte(`{}`))
	if err != nil || p.TTL != 60 || p.Min != 1 || p.Interval != 15*time.Second || p.Name != "edge.x-gpu.com" {
		t.Errorf("{} is %+v, %v", p, err)
	}
	p, err = router.ParsePublishedName("*.x-gpu.com", []byte(`{"zone":"x-gpu.com","ttl":30,"provider":"ali","regions":["hk"],"weights":true,"min":2,"interval":"1m","dry_run":true}`))
	if err != nil || p.Zone != "x-gpu.com" || p.TTL != 30 || !p.Weights || p.Min != 2 || !p.DryRun {
		t.Errorf("it is %+v, %v", p, err)
	}
	if _, err := router.ParsePublishedName("edge.x-gpu.com", []byte(`{"sources":["dns1.example.com","dns2.example.com"],"port":443}`)); err != nil {
		t.Error(err)
	}
	long := strings.Repeat("a", 56) + ".x-gpu.com"
	for _, test := range []struct{ name, value, want string }{
		{"edge.x-gpu.com", ``, "is empty"},
		{"edge.x-gpu.com", `{"tll":60}`, `tll: unknown field; did you mean "ttl"?`},
		{"edge.x-gpu.com", `{"ttl":0}`, "ttl: must be from 1 to 86400"},
		{"edge.x-gpu.com", `{"zone":"other.com"}`, "zone: edge.x-gpu.com is not in the zone other.com"},
		{"edge.x-gpu.com", `{"zone":"gpu.com"}`, "is not in the zone gpu.com"},
		{"edge.x-gpu.com", `{"zone":"X-gpu.com."}`, "is not a zone"},
		{"edge.x-gpu.com", `{"regions":["hk","hk"]}`, "regions[1]: "},
		{"edge.x-gpu.com", `{"interval":"10ms"}`, "interval: must be from 1s to 1h"},
		{"edge.x-gpu.com", `{"sources":["a.example.com"]}`, "port: is missing"},
		{"edge.x-gpu.com", `{"port":443}`, "port: is that of sources"},
		{"edge.x-gpu.com", `{"sources":["edge.x-gpu.com"],"port":443}`, "sources[0]: edge.x-gpu.com is there twice, or the name itself"},
		{"edge.x-gpu.com", `{"sources":["*.example.com"],"port":443}`, "sources[0]: "},
		{"edge.x-gpu.com", `{"sources":["a.example.com"],"port":443,"weights":true}`, "weights: are those of nodes"},
		{long, `{}`, "at most 55"},
	} {
		if _, err := router.ParsePublishedName(test.name, []byte(test.value)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s = %s: %v, want %q", test.name, test.value, err, test.want)
		}
	}
	for key, ok := range map[string]bool{"names/edge.x-gpu.com": true, "names/*.x-gpu.com": true, "names/": false, "names/Edge.x-gpu.com": false, "names/a.*.x-gpu.com": false, "names/localhost": false} {
		if k, err := router.ParseKey(key); (err == nil) != ok || ok && k.Kind != router.KindName {
			t.Errorf("%s: %+v, %v", key, k, err)
		}
	}
}
