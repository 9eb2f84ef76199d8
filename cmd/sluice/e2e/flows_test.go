package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// sluice runs the program with the node's admin address, and it must work.
func (n *node) sluice(args ...string) (stdout string) {
	n.t.Helper()
	code, stdout, stderr := runSluice(n.t, n.dir, append(args, "--admin", n.Admin)...)
	if code != 0 || stderr != "" {
		n.t.Fatalf("sluice %s: exit code %d, %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// TestFlows lists live flows by what they have in common, and cuts some.
func TestFlows(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	lines := startLines(t, "backend")
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"backend": %q, "env": "a", "service": "ssh"}`, lines))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(`{"backend": %q, "env": "b", "service": "ssh"}`, lines))
	first, second, other := openSession(t, n.port(0)), openSession(t, n.port(0)), openSession(t, n.port(1))
	for _, s := range []*session{first, second, other} {
		s.want("backend", "hello")
	}

	clients := func(args ...string) (found []string) {
		t.Helper()
		for line := range strings.Lines(n.sluice(append(args, "-o", "json")...)) {
			var f struct{ Client, Backend, Env string }
			if err := json.Unmarshal([]byte(line), &f); err != nil || f.Backend != lines || f.Env == "" {
				t.Fatalf("%v: line %q, %v", args, line, err)
			}
			found = append(found, f.Client)
		}
		slices.Sort(found)
		return found
	}
	wantClients := func(sessions []*session, args ...string) {
		t.Helper()
		var want []string
		for _, s := range sessions {
			want = append(want, s.LocalAddr().String())
		}
		slices.Sort(want)
		if got := clients(args...); !slices.Equal(got, want) {
			t.Errorf("%v: the clients are %v, want %v", args, got, want)
		}
	}
	wantClients([]*session{first, second, other}, "flows")
	wantClients([]*session{first, second}, "flows", "--env", "a")
	wantClients([]*session{other}, "flows", "--port", fmt.Sprint(n.port(1)), "--proto", "tcp", "--client", "127.0.0.0/8")
	wantClients(nil, "flows", "--client", "203.0.113.7")
	wantClients([]*session{first, second, other}, "flows", "--sort", "rate", "--interval", "10ms", "--service", "ssh")
	if table := n.sluice("flows", "--env", "b"); !strings.HasPrefix(table, "ID ") || strings.Count(table, "\n") != 2 ||
		!strings.Contains(table, other.LocalAddr().String()) || !strings.Contains(table, " b/ssh ") {
		t.Errorf("the table is\n%s", table)
	}
	if top := n.sluice("flows", "top", "--interval", "10ms", "--by", "env,client"); !strings.Contains(top, "ENV") || !strings.Contains(top, "127.0.0.1  3 ") {
		t.Errorf("the top is\n%s", top)
	}

	if said := n.sluice("flows", "cut", "--env", "a"); said != "cut 2 flows\n" {
		t.Errorf("cut says %q", said)
	}
	first.wantCut()
	second.wantCut()
	n.accessRecord(map[string]any{"client": first.LocalAddr(), "end": "cut", "env": "a"})
	n.accessRecord(map[string]any{"client": second.LocalAddr(), "end": "cut", "env": "a"})
	other.want("backend", "still here")
	wantClients([]*session{other}, "flows")
	if said := n.sluice("flows", "cut", "--all"); said != "cut 1 flows\n" {
		t.Errorf("cut says %q", said)
	}
	other.wantCut()
}

// TestCutOfHTTP cuts a connection to a mapped port with a request under way.
func TestCutOfHTTP(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	asked, release := make(chan struct{}), make(chan struct{})
	backend := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}))
	t.Cleanup(func() { close(release) })
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"http": %q, "env": "web"}`, backend))
	c := dial(t, n.port(0))
	fmt.Fprintf(c, "GET /slow HTTP/1.1\r\nHost: x.test\r\n\r\n")
	await(t, asked, "the request at the backend")
	if table := n.sluice("flows", "--env", "web"); !strings.Contains(table, "(http)") {
		t.Errorf("the table is\n%s", table)
	}
	if said := n.sluice("flows", "cut", "--env", "web"); said != "cut 1 flows\n" {
		t.Errorf("cut says %q", said)
	}
	if got := receive(c); got.bytes > 0 {
		t.Errorf("the client got %v", got)
	}
	n.accessRecord(map[string]any{"path": "/slow", "end": "cut"})
}

// TestMappings lists what mappings moved, over an edit of one.
func TestMappings(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	used, unused := n.port(0), n.port(1)
	lines := startLines(t, "backend")
	n.mustPut(fmt.Sprintf("ports/tcp/%d", used), fmt.Sprintf(`{"backend": %q, "env": "a", "service": "ssh"}`, lines))
	n.mustPut(fmt.Sprintf("ports/udp/%d", unused), "127.0.0.1:1")
	s := openSession(t, used)
	s.want("backend", "hello")

	type account struct {
		Port, Flows int
		Started     int64
		Up          int64 `json:"bytes_up"`
		Down        int64 `json:"bytes_down"`
	}
	accounts := func(args ...string) (all []account) {
		t.Helper()
		for line := range strings.Lines(n.sluice(append([]string{"mappings", "-o", "json"}, args...)...)) {
			var a account
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			all = append(all, a)
		}
		return all
	}
	var before account
	eventually(t, "the bytes of the live flow are counted", func() error {
		all := accounts()
		if len(all) != 2 || all[0].Port != used || all[0].Flows != 1 || all[0].Started != 1 || all[0].Up == 0 || all[0].Down == 0 ||
			all[1] != (account{Port: unused}) {
			return fmt.Errorf("they are %+v", all)
		}
		before = all[0]
		return nil
	})
	n.mustPut(fmt.Sprintf("ports/tcp/%d", used), fmt.Sprintf(`{"backend": %q, "env": "a", "service": "ssh", "idle_timeout": "1h"}`, lines))
	s.want("backend", "more")
	s.Close()
	eventually(t, "the flow has ended", func() error {
		all := accounts("--used", "--env", "a")
		if len(all) != 1 || all[0].Flows != 0 || all[0].Started != 1 || all[0].Up <= before.Up || all[0].Down <= before.Down {
			return fmt.Errorf("they are %+v, were %+v", all, before)
		}
		return nil
	})
	if table := n.sluice("mappings", "--sort", "rate", "--interval", "10ms"); strings.Count(table, "\n") != 3 || !strings.Contains(table, "UP/S") {
		t.Errorf("the table is\n%s", table)
	}
	if got, _ := n.metric(`sluice_l4_service_flows_started_total{proto="tcp",service="ssh"} `); got != "1" {
		t.Errorf("the service's metric counts %q flows, want 1", got)
	}
	_, text, err := httpGet("http://" + n.Admin + "/metrics/mappings")
	want := fmt.Sprintf(`sluice_mapping_flows_started_total{proto="tcp",port="%d",env="a",service="ssh"} 1`, used)
	if err != nil || !strings.Contains(text, want+"\n") || strings.Contains(text, fmt.Sprint(unused)) {
		t.Errorf("%v, want %s in\n%s", err, want, text)
	}
}

// TestMappingsSayTheirState has a target down, a port taken and an edit refused.
func TestMappingsSayTheirState(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	lines := startLines(t, "backend")
	dead := fmt.Sprintf("127.0.0.1:%d", reservePorts(t, 1))
	checked, taken, edited := fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf("ports/tcp/%d", n.port(2))
	other, err := net.Listen("tcp", fmt.Sprintf(":%d", n.port(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	n.mustPut(checked, fmt.Sprintf(`{"backend": {"targets": [%q, {"address": %q, "weight": 3}], "health": {"interval": "1s"}}}`, lines, dead))
	n.put(taken, lines)
	n.mustPut(edited, lines)
	n.put(edited, "nonsense")

	type target struct {
		Address, Health string
		Weight          int
		HealthError     string `json:"health_error"`
	}
	type mapping struct {
		Port    int
		Verdict string
		Targets []target
	}
	eventually(t, "the dead target is known to be", func() error {
		for line := range strings.Lines(n.sluice("mappings", "-o", "json", "--port", fmt.Sprint(n.port(0)))) {
			var m mapping
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if len(m.Targets) != 2 || m.Targets[0] != (target{Address: lines, Health: "up", Weight: 1}) ||
				m.Targets[1].Health != "down" || m.Targets[1].Weight != 3 || !strings.Contains(m.Targets[1].HealthError, "refused") {
				return fmt.Errorf("it is %+v", m)
			}
			if want, _ := n.get("verdicts/test/" + checked); m.Verdict != want {
				t.Errorf("the verdict is %q, in etcd %q", m.Verdict, want)
			}
			return nil
		}
		return fmt.Errorf("it is not listed")
	})
	table := n.sluice("mappings")
	for _, want := range []string{"applied, 1 of 2 down  " + lines + " +1 ", "degraded: port_busy", "edit refused"} {
		if !strings.Contains(table, want) {
			t.Errorf("there is no %q in\n%s", want, table)
		}
	}
}

func TestFlowsRefusals(t *testing.T) {
	t.Parallel()
	admin := fmt.Sprintf("127.0.0.1:%d", reservePorts(t, 1))
	for _, tc := range []struct {
		args, want string
		code       int
	}{
		{"flows cut", "say which flows to cut", 2},
		{"flows cut --all --env a", "--all goes with no other flag", 2},
		{"flows --env=", "leave it out to have all", 2},
		{"flows --client nobody", "neither an address nor a network", 2},
		{"flows --listener 20022", "write tcp/<port>", 2},
		{"flows cut --backend web", "write host:port", 2},
		{"flows --sort size", `"size" is not known; write one of age, bytes, rate`, 2},
		{"flows --limit -1", "--limit", 2},
		{"flows top --by host", `"host" is not known`, 2},
		{"flows list", `unknown command "list"`, 2},
		{"mappings --port 0", "ports are numbers from 1 to 65535", 2},
		{"flows --admin " + admin, "connection refused (a node that runs there answers on its admin address", 1},
		{"flows --admin nowhere", "admin", 1},
	} {
		code, stdout, stderr := runSluice(t, t.TempDir(), strings.Fields(tc.args)...)
		if code != tc.code || stdout != "" || !strings.HasPrefix(stderr, "sluice: ") || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: exit code %d, %q, %q, want %d and %q", tc.args, code, stdout, stderr, tc.code, tc.want)
		}
	}
}
