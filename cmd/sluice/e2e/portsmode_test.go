package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// eachPortsMode runs f with a node that has a socket for each port, and with one
// that does what it does by itself: as root, that is to steer.
func eachPortsMode(t *testing.T, f func(t *testing.T, n *node), options ...nodeOption) {
	t.Parallel()
	for _, mode := range []string{"bind", "auto"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f(t, startNode(t, append(options, withYAML("ports_mode: "+mode))...))
		})
	}
}

// TestPortsModeIsSaid wants a node to say which mode it took wherever somebody
// may look, and not to start where it cannot have what it is told to.
func TestPortsModeIsSaid(t *testing.T) {
	t.Parallel()
	automatic := "bind"
	if os.Geteuid() == 0 {
		automatic = "steer"
	}
	for setting, want := range map[string]string{"bind": "bind", "auto": automatic, "steer": automatic} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, withYAML("ports_mode: "+setting))
			if setting == "steer" && want != "steer" {
				n.spawn()
				if code := n.wait(); code != 1 || !strings.Contains(n.output.String(), "CAP_BPF") {
					t.Errorf("exit code %d, want 1 and what is missing:\n%s", code, n.output)
				}
				*n.code = 0
				return
			}
			n.start()
			_, body, err := httpGet("http://" + n.Admin + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			var ready struct {
				Mode string `json:"ports_mode"`
			}
			if err := json.Unmarshal([]byte(body), &ready); err != nil || ready.Mode != want {
				t.Errorf("readiness is %s, %v, want the mode %s", body, err, want)
			}
			if got, _ := n.metric(fmt.Sprintf("sluice_proxy_ports_mode{mode=%q} ", want)); got != "1" {
				t.Errorf("the metric of mode %s is %q", want, got)
			}
			if out := n.output.String(); strings.Count(out, `msg="opening mapped ports" mode=`+want+" why=") != 1 {
				t.Errorf("the log does not say mode %s and why", want)
			}
		})
	}
}

// TestManyBusyPorts has a table full of ports that others hold, which must not
// keep the node from anything else.
func TestManyBusyPorts(t *testing.T) {
	eachPortsMode(t, func(t *testing.T, n *node) {
		const busy = mappedPerNode - 5
		for i := range busy {
			ln, err := net.Listen("tcp", loopback(n.port(i)))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			n.etcdctl("put", fmt.Sprintf("/sluice/ports/tcp/%d", n.port(i)), "127.0.0.1:9")
		}
		for i := busy; i < mappedPerNode; i++ {
			n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(i)), startLines(t, "backend"))
			visit(t, n.port(i), "backend", "hello")
		}
		n.wantMetric("sluice_proxy_closed_ports", fmt.Sprint(busy))
		for i := range busy {
			key := fmt.Sprintf("ports/tcp/%d", n.port(i))
			eventually(t, "the verdict on "+key+" names this process", func() error {
				if v, _ := n.get("verdicts/test/" + key); !strings.Contains(v, "port_busy") || !strings.Contains(v, ownName(t)) {
					return fmt.Errorf("it is %q", v)
				}
				return nil
			})
		}
	}, openEyed)
}
