package control_test

import (
	"testing"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
)

// FuzzAnyKey puts any value at any key of a node: it has a verdict on it, serves
// what it accepts and nothing else, and all is as before once the key is gone.
func FuzzAnyKey(f *testing.F) {
	for _, kv := range [][2]string{
		{"ports/tcp/20022", "10.0.0.1:22"},
		{"ports/udp/20022", `{"backend":{"targets":[{"address":"10.0.0.1:53","weight":2}]},"idle_timeout":"10s"}`},
		{"ports/tcp/20022", `{"backend":"a.test:22","http":"10.0.0.1:80","allow":["10.0.0.0/8"],"limits":{"connections":3}}`},
		{"routes/r", `{"host":["a.test","~^(?<id>.+)\\.x$"],"path":"/a","backend":"${id}:80","headers":{"set":{"X-A":"b"}}}`},
		{"routes/r", `{"host":"a.test","redirect":"https://b.test${uri}"}`},
		{"domains/*.a.test", `{"provider":"x"}`},
		{"names/edge.a.test", `{"zone":"a.test","ttl":60,"regions":["hk"],"min":2}`},
		{"names/*.a.test", `{"sources":["b.test"],"port":443}`},
		{"pools/ssh", `{"ports":"20000-20499","backend_port":22}`},
		{"removals/confirmed", "yes"},
	} {
		f.Add(kv[0], kv[1])
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		n := newNode(t, "")
		n.Load(1, []etcd.KV{{Key: "ports/tcp/20999", Value: []byte("10.0.0.9:22"), ModRev: 1}})
		if key == "ports/tcp/20999" {
			return
		}
		mappings, routes := n.table().Len()
		before := n.Fingerprint()
		n.Change(2, []etcd.Change{put(key, value, 2)})
		v := control.ParseVerdict(n.verdicts[key])
		switch {
		case v.State == control.Applied && v.Rev == 2 && n.Fingerprint() != before:
		case v.State == control.Refused && v.Rev == 0 && n.Fingerprint() == before:
		default:
			t.Errorf("%q = %q has the verdict %q, and the fingerprint went from %v to %v", key, value, v.Text, before, n.Fingerprint())
		}
		m, r := n.table().Len()
		if more := m + r - mappings - routes; more < 0 || more > 1 || more == 1 && v.State != control.Applied {
			t.Errorf("%q = %q, %s, made %d mappings and routes more", key, value, v.Text, more)
		}
		n.Change(3, []etcd.Change{del(key, 3)})
		if m, r := n.table().Len(); m != mappings || r != routes || n.Fingerprint() != before || n.verdicts[key] != "" {
			t.Errorf("%q = %q left something behind", key, value)
		}
	})
}

func FuzzParseVerdict(f *testing.F) {
	f.Add("applied@12: certificate valid until 2027")
	f.Add("refused: x (last good @3 stays in force)")
	f.Add("degraded: port_busy: x (applied@3)")
	f.Fuzz(func(t *testing.T, text string) {
		if v := control.ParseVerdict(text); v.Text != text || v.State == "" && v.Rev != 0 {
			t.Errorf("%q is read as %+v", text, v)
		}
	})
}
