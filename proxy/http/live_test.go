package http_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// TestFlows lists exchanges that last, and cuts one of two.
func TestFlows(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"~^(?<env>[a-z]+)\\.x\\.test$","backend":"` + addr + `","service":"llm"}`})
	}, func(t *testing.T, p *peer) {
		for _, env := range []string{"a", "b"} {
			resp := p.send(t, p.request("GET", env+".x.test", "/"+env, nil))
			if _, err := io.ReadFull(resp.Body, make([]byte, len("begin"))); err != nil {
				t.Fatal(err)
			}
		}
		listener := map[string]string{"http": "http/8080", "https": "https/8443"}[p.scheme]
		seen := map[uint64]bool{}
		for f := range p.rig.server.Flows() {
			seen[f.ID] = true
			if f.Route != "app" || f.Backend != addr || f.Service != "llm" || f.Env != "a" && f.Env != "b" || f.Listener != listener ||
				f.UDP != (p.proto == "h3") || !f.Client.IsValid() || f.Down != 5 || f.Since.IsZero() {
				t.Errorf("%+v", f)
			}
		}
		if len(seen) != 2 {
			t.Fatalf("IDs %v, want two", seen)
		}
		if n := p.rig.server.Cut(func(f proxyhttp.FlowInfo) bool { return f.Env == "b" && seen[f.ID] }); n != 1 {
			t.Errorf("%d cut", n)
		}
		if record := p.rig.log.wait(t, "/b"); record["end"] != "cut" {
			t.Errorf("log record %v", record)
		}
		left := 0
		for f := range p.rig.server.Flows() {
			if left++; f.Env != "a" || !seen[f.ID] {
				t.Errorf("left: %+v", f)
			}
		}
		if left != 1 {
			t.Errorf("%d left", left)
		}
		if n := p.rig.server.Cut(func(proxyhttp.FlowInfo) bool { return false }); n != 0 {
			t.Errorf("%d cut by none", n)
		}
	})
}

// TestUpgradedFlows lists upgraded connections, and cuts them. Connections of
// mappings are the mapping's.
func TestUpgradedFlows(t *testing.T) {
	addr := switching(t, func(c *net.TCPConn, in *bufio.Reader) { io.Copy(c, in) })
	mapping := &router.Mapping{}
	for _, mapped := range []bool{false, true} {
		r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(_ *proxyhttp.Config, r *rig) {
			if mapped {
				m, err := router.ParseMapping(router.TCP, 20022, []byte(`{"http":"`+addr+`"}`))
				if err != nil {
					t.Fatal(err)
				}
				mapping = m
				r.info = func(info *proxyhttp.ConnInfo) { info.Mapping = mapping }
			}
		})
		for _, c := range []net.Conn{r.dialClear(), r.dialTLS("app.x.test")} {
			io.WriteString(c, upgradeRequest+"hello")
			readHead(t, c)
			if _, err := io.ReadFull(c, make([]byte, len("early hello"))); err != nil {
				t.Fatal(err)
			}
			var found []proxyhttp.FlowInfo
			list := func() bool { // what has come back was counted, or is about to be
				found = nil
				for f := range r.server.Flows() {
					found = append(found, f)
				}
				return mapped || len(found) == 1 && found[0].Up == 5
			}
			eventually(t, "the flow to be listed", list)
			if mapped {
				if len(found) != 0 {
					t.Errorf("of a mapping: %+v", found)
				}
				continue
			}
			if found[0].Backend != addr {
				t.Errorf("%+v", found)
			}
			if n := r.server.Cut(func(proxyhttp.FlowInfo) bool { return true }); n != 1 {
				t.Errorf("%d cut", n)
			}
			io.Copy(io.Discard, c)
			eventually(t, "no flow to be left", func() bool {
				for range r.server.Flows() {
					return false
				}
				return true
			})
		}
		if !mapped {
			if record := r.log.wait(t, "/up"); record["end"] != "cut" {
				t.Errorf("log record %v", record)
			}
		}
	}
}
