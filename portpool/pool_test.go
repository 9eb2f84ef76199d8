package portpool_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct{ value, fail string }{
		{`{"ports":"20000-29999,65535","backend_port":22}`, ""},
		{``, "empty"},
		{`{}`, "ports: is missing"},
		{`{"ports":"70000-89999","backend_port":22}`, "ports: port 70000 does not exist"},
		{`{"ports":"1-2"}`, "backend_port: is missing"},
		{`{"ports":"1-2","backend_port":65536}`, "backend_port: must be from 1 to 65535, not 65536"},
		{`{"ports":"1-2","backend_port":0}`, "backend_port: must be from 1 to 65535"},
		{`{"ports":"1-2","backend_prot":22}`, `did you mean "backend_port"?`},
		{`{"ports":"3389-3400","backend_port":3389,"protocol":"tcp+udp","pick":"random","quarantine":"0s","reserved":"3389,3400"}`, ""},
		{`{"ports":"1-2","backend_port":22,"protocol":"sctp"}`, `protocol: "sctp" is none; write "tcp"`},
		{`{"ports":"1-2","backend_port":22,"pick":"highest"}`, `pick: "highest" is no way`},
		{`{"ports":"1-2","backend_port":22,"quarantine":"10"}`, `quarantine: "10" is not a duration`},
		{`{"ports":"1-2,5","backend_port":22,"reserved":"2-5"}`, `reserved: 2-5 is not all among the pool's ports (1-2,5)`},
		{`{"backend_port":80,"route":{"host":"web.x-gpu.com"}}`, "route.host: would be the same in all environments; write ${env}"},
		{`{"backend_port":80,"route":{"host":"web.x-gpu.com","path":"/${env}"}}`, ""},
		{`{"backend_port":80,"route":{"host":"${inner}--${env}.x-gpu.com"}}`, ""},
		{`{"backend_port":80,"route":{"host":"${env}${inner}.x-gpu.com"}}`, "route.host: ${inner} stands next to"},
		{`{"backend_port":80,"route":{"host":"${inner}0-${env}.x-gpu.com"}}`, "route.host: ${inner} stands next to"},
		{`{"ports":"1-2","backend_port":22,"access":{"username":"${env}"}}`, ""},
		{`{"ports":"1-2","backend_port":22,"access":{"username":"-oProxyCommand=x"}}`, `access.username: "-oProxyCommand=x" is not taken`},
		{`{"ports":"1-2","backend_port":22,"access":{"username":"root;x"}}`, `access.username: "root;x" is not taken`},
	} {
		_, err := portpool.Parse("ssh", []byte(tc.value))
		if tc.fail == "" && err != nil || tc.fail != "" && (err == nil || !strings.Contains(err.Error(), tc.fail)) {
			t.Errorf("Parse(%s): %v, want %q", tc.value, err, tc.fail)
		}
	}
}

func TestChecks(t *testing.T) {
	parse := func(service, ports string) *portpool.Pool {
		t.Helper()
		p, err := portpool.Parse(service, []byte(`{"ports":"`+ports+`","backend_port":22}`))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ranges, err := router.ParsePorts("20000-65535")
	if err != nil {
		t.Fatal(err)
	}
	if err := parse("ssh", "20000-65535").CheckWithin(ranges); err != nil {
		t.Errorf("the whole range: %v", err)
	}
	if err := parse("ssh", "19999-20001").CheckWithin(ranges); err == nil || !strings.Contains(err.Error(), "port 19999 lies outside") {
		t.Errorf("one port too low: %v", err)
	}
	ssh, jupyter := parse("ssh", "20000-20999"), parse("jupyter", "20999-21999")
	if err := jupyter.CheckApart(ssh); err == nil || !strings.Contains(err.Error(), "overlaps 20000-20999 of the pool ssh") {
		t.Errorf("overlap by one port: %v", err)
	}
	if err := ssh.CheckApart(ssh); err != nil {
		t.Errorf("a pool overlaps itself: %v", err)
	}
}

// FuzzParse wants what is accepted of a pool to make sense, and to stay so once
// it is written.
func FuzzParse(f *testing.F) {
	f.Add(`{"ports": "20000-20499", "backend_port": 22}`)
	f.Add(`{"ports": "20000-20499,20600", "backend_port": 65535}`)
	f.Add(`{"ports": "1-65535", "backend_port": 0}`)
	f.Fuzz(func(t *testing.T, value string) {
		p, err := portpool.Parse("ssh", []byte(value))
		if err != nil {
			return
		}
		if len(p.Ports) == 0 || p.BackendPort < 1 || p.BackendPort > 65535 || p.CheckWithin(p.Ports) != nil {
			t.Fatalf("%q is accepted as %+v", value, p)
		}
		other := *p
		if other.Service = "code"; p.CheckApart(&other) == nil {
			t.Errorf("%q does not overlap itself", value)
		}
		written, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := portpool.Parse("ssh", written); err != nil || again.Ports.String() != p.Ports.String() || again.BackendPort != p.BackendPort {
			t.Errorf("%q is written as %s, which is read as %+v, %v", value, written, again, err)
		}
	})
}
