package portpool_test

import (
	"errors"
	"testing"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Who asks for ports that cannot be had is told which can.
func TestPropose(t *testing.T) {
	ranges := router.Ports{{First: 20000, Last: 49999}, {First: 61000, Last: 65535}}
	ssh := pool(t, "ssh", `{"ports":"20000-24999","backend_port":22}`)
	rdp := pool(t, "rdp", `{"ports":"30000-39999,61000-65535","backend_port":3389}`)
	for _, tc := range []struct {
		value  string
		others []*portpool.Pool
		want   string
	}{
		{`{"ports":"70000-89999","backend_port":22}`, nil,
			"ports: port 70000 does not exist; ports run from 1 to 65535; 20000-39999 are free, as many as that"},
		{`{"ports":"70000-89999","backend_port":22}`, []*portpool.Pool{ssh},
			"ports: port 70000 does not exist; ports run from 1 to 65535; 25000-44999 are free, as many as that"},
		{`{"ports":"70000-89999","backend_port":22}`, []*portpool.Pool{ssh, rdp},
			"ports: port 70000 does not exist; ports run from 1 to 65535; 25000-29999,40000-49999 are free, 15000 ports in all"},
		{`{"ports":"1000-1999","backend_port":22}`, []*portpool.Pool{ssh, rdp},
			"ports: port 1000 lies outside the node's ports (20000-49999,61000-65535); 25000-25999 are free, as many as that"},
		{`{"ports":"1000-x","backend_port":22}`, []*portpool.Pool{ssh, rdp, pool(t, "a", `{"ports":"25001,25003,25005,25007","backend_port":22}`)},
			`ports: "x" is not a port; ports are plain numbers from 1 to 65535; 25000,25002,25008-29999,40000-49999 and some more are free, 14996 ports in all`},
		{`{"ports":"1","backend_port":22}`, []*portpool.Pool{pool(t, "all", `{"ports":"20000-65535","backend_port":22}`)},
			"ports: port 1 lies outside the node's ports (20000-49999,61000-65535); of the nodes' ports (20000-49999,61000-65535) other pools have each one"},
		{`{"ports":"70000","backend_prot":22}`, nil, `ports: port 70000 does not exist; ports run from 1 to 65535; 20000 are free, as many as that`},
		{`{"ports":"20000"}`, nil, "backend_port: is missing; give the port of the service inside an environment, such as 22"},
	} {
		p, err := portpool.Parse("new", []byte(tc.value))
		if err == nil {
			err = p.CheckWithin(ranges)
		}
		if got := portpool.Propose(err, []byte(tc.value), ranges, tc.others); got == nil || got.Error() != tc.want {
			t.Errorf("%s: %v, want %s", tc.value, got, tc.want)
		}
	}
	_, err := portpool.Parse("new", []byte(`{"ports":"70000-89999","backend_port":22}`))
	if got, want := portpool.Propose(err, []byte(`{"ports":"70000-89999"}`), router.Ports{{First: 1, Last: 65535}}, nil).Error(),
		"ports: port 70000 does not exist; ports run from 1 to 65535; 1024-21023 are free, as many as that, as far as other pools go; the nodes' file says which they open"; got != want {
		t.Errorf("without a node's file: %s", got)
	}
	other := errors.New("x")
	if got := portpool.Propose(other, nil, ranges, nil); got != other {
		t.Errorf("another error: %v", got)
	}
}
