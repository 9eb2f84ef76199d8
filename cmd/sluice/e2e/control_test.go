package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestBadValueLeavesTheLastGoodInForce(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	good, other := fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf("ports/tcp/%d", n.port(1))
	n.mustPut(good, startLines(t, "good"))
	n.mustPut(other, startLines(t, "other"))
	rev := n.modRevision("/sluice/" + good)
	live := openSession(t, n.port(0))
	live.want("good", "hello")

	wantRefused := func() {
		t.Helper()
		visit(t, n.port(0), "good", "with the last good value")
		visit(t, n.port(1), "other", "unharmed")
		if got, _ := n.metric("sluice_control_refused_keys "); got != "1" {
			t.Errorf("the metrics count %q refused keys, want 1", got)
		}
		if log := n.output.String(); !strings.Contains(log, good) || !strings.Contains(log, `is not a duration`) {
			t.Error("the log does not say which key was refused, and why")
		}
	}
	verdict := n.put(good, `{"backend": "127.0.0.1:1", "idle_timeout": "10"}`)
	want := fmt.Sprintf(`refused: idle_timeout: "10" is not a duration; write a number with a unit, such as "500ms", "10s", "5m" or "24h" (last good @%d stays in force)`, rev)
	if verdict != want {
		t.Errorf("the verdict is\n%s\nwant\n%s", verdict, want)
	}
	wantRefused()
	live.want("good", "still here")
	live.Close()

	// A restart finds the bad value in etcd, and the last good one on disk.
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	n.start()
	if got := n.awaitVerdict(good); got != want {
		t.Errorf("the verdict after a restart is\n%s\nwant\n%s", got, want)
	}
	wantRefused()

	n.mustPut(good, startLines(t, "better"))
	visit(t, n.port(0), "better", "hello")
	if got, _ := n.metric("sluice_control_refused_keys "); got != "0" {
		t.Errorf("the metrics count %q refused keys, want 0", got)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	inside, outside := fmt.Sprintf("ports/tcp/%d", n.port(0)), n.Ports[0]+portsPerNode-1
	for _, tc := range []struct{ key, value, want string }{
		{strings.Replace(inside, "ports", "prots", 1), "127.0.0.1:22", `no key starts with "prots"; did you mean "ports"? (nothing is in force)`},
		{fmt.Sprintf("ports/tcp/%d", outside), "127.0.0.1:22", fmt.Sprintf("port %d lies outside this node's ports (%d-%d)", outside, n.Ports[0], n.Ports[1])},
		{"ports/tcp/70000", "127.0.0.1:22", "port 70000 does not exist; ports run from 1 to 65535"},
		{"ports/sctp/20022", "127.0.0.1:22", "write ports/tcp/<port> or ports/udp/<port>"},
		{inside, "127.0.0.1", `"127.0.0.1" is not an address; write host:port`},
		{inside, `{"backend": "127.0.0.1:22", "idel_timeout": "10s"}`, `idel_timeout: unknown field; did you mean "idle_timeout"?`},
		{inside, `{"backend": "127.0.0.1:22"`, "JSON"},
		{inside, `{}`, "backend: is missing"},
		{"routes/r", `{"host": "a.x.test"}`, "backend"},
		{"routes/r", `{"host": "~^(", "respond": {}}`, "host"},
		{"domains/x..test", `{}`, "x..test"},
		{"pools/ssh", `{"ports": "1-2", "backend_port": 22}`, "port 1 lies outside the node's ports"},
	} {
		if verdict := n.put(tc.key, tc.value); !strings.HasPrefix(verdict, "refused: ") || !strings.Contains(verdict, tc.want) {
			t.Errorf("%s %s: the verdict is\n%s\nwant in it\n%s", tc.key, tc.value, verdict, tc.want)
		}
		n.delete(tc.key)
	}
	for _, port := range []int{n.port(0), outside} {
		if err := dialRefused(port); err != nil {
			t.Error(err)
		}
	}
}

// TestKeysBeforeTheNode has keys put and deleted while the node is not there.
func TestKeysBeforeTheNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.useEtcdOf(startHost(t))
	a, b := fmt.Sprintf("/sluice/ports/tcp/%d", n.port(0)), fmt.Sprintf("/sluice/ports/tcp/%d", n.port(1))
	n.etcdctl("put", a, startLines(t, "a"))
	n.etcdctl("put", b, startLines(t, "b"))
	n.start()
	visit(t, n.port(0), "a", "hello")
	visit(t, n.port(1), "b", "hello")

	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	n.etcdctl("del", a)
	n.etcdctl("put", b, startLines(t, "new b"))
	n.start()
	if err := dialRefused(n.port(0)); err != nil {
		t.Errorf("deleted while the node was down: %v", err)
	}
	visit(t, n.port(1), "new b", "hello")
	if _, rev := n.get(strings.TrimPrefix(a, "/sluice/")); rev != 0 {
		t.Error("the node brought the deleted key back")
	}
}

func TestRecordAndVerdictsLiveWithTheNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.useEtcdOf(startHost(t))
	n.start()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	eventually(t, "the node's record says ready", func() error {
		text, _ := n.get("nodes/test")
		var r struct{ State, Version string }
		if err := json.Unmarshal([]byte(text), &r); err != nil || r.State != "ready" || r.Version == "" {
			return fmt.Errorf("it is %q (%v)", text, err)
		}
		return nil
	})
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if left := n.etcdctl("get", "--prefix", "/sluice/nodes/") + n.etcdctl("get", "--prefix", "/sluice/verdicts/"); left != "" {
		t.Errorf("after the stop there is still\n%s", left)
	}
}

// TestEtcdGone stops the cluster's etcd beneath a node. What is in force stays
// so, over a restart as well, and the node says what is amiss.
func TestEtcdGone(t *testing.T) {
	t.Parallel()
	host, n := startHost(t), newNode(t)
	n.useEtcdOf(host)
	n.start()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	n.mustPut("routes/r", `{"host": "r.x.test", "respond": {"body": "the route's answer"}}`)
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	n.wantMetric("sluice_etcd_connected", "1")
	wantServing := func() {
		t.Helper()
		visit(t, n.port(0), "backend", "without etcd")
		if got := n.curl("--connect-to", "r.x.test:443:"+loopback(n.HTTPS), "https://r.x.test/"); got != "the route's answer" {
			t.Errorf("the route answers %q", got)
		}
	}

	if code := host.stop(); code != 0 {
		t.Errorf("exit code %d of the node that ran etcd, want 0", code)
	}
	n.wantMetric("sluice_etcd_connected", "0")
	wantServing()
	s.want("backend", "still here")
	eventually(t, "readiness tells of it, and goes on", func() error {
		return n.readiness(http.StatusOK, "etcd", "etcd")
	})
	s.Close()
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d without etcd, want 0", code)
	}

	n.spawn()
	eventually(t, "the node serves from disk", func() error {
		return n.readiness(http.StatusServiceUnavailable, "disk", "etcd")
	})
	wantServing()

	host.start()
	n.waitReady()
	if err := n.readiness(http.StatusOK, "etcd", ""); err != nil {
		t.Error(err)
	}
	n.wantMetric("sluice_etcd_connected", "1")
	wantServing()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), startLines(t, "new"))
	visit(t, n.port(1), "new", "hello")
}

// startHost starts a node that is there for its etcd only: its own keys have
// another prefix.
func startHost(t *testing.T) *node {
	t.Helper()
	host := newNode(t)
	host.edit(fmt.Sprintf("listen: %q", host.Etcd), fmt.Sprintf("listen: %q, prefix: /host", host.Etcd))
	host.start()
	return host
}

// awaitVerdict waits until there is a verdict on a key.
func (n *node) awaitVerdict(key string) (verdict string) {
	n.t.Helper()
	eventually(n.t, "a verdict on "+key, func() error {
		var rev int64
		if verdict, rev = n.get("verdicts/test/" + key); rev == 0 {
			return fmt.Errorf("there is none")
		}
		return nil
	})
	return verdict
}

func (n *node) wantMetric(name, value string) {
	n.t.Helper()
	eventually(n.t, name+" is "+value, func() error {
		if got, _ := n.metric(name + " "); got != value {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

// readiness compares the answer of /readyz. The detail must hold the given
// words, or be absent where they are "".
func (n *node) readiness(wantStatus int, wantSource, wantDetail string) error {
	status, body, err := httpGet("http://" + n.Admin + "/readyz")
	if err != nil {
		return err
	}
	var r struct {
		Ready          bool
		Source, Detail string
		Rev            int64
	}
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		return fmt.Errorf("%w in %s", err, body)
	}
	if status != wantStatus || r.Ready != (status == http.StatusOK) || r.Source != wantSource || r.Rev == 0 ||
		!strings.Contains(r.Detail, wantDetail) || (wantDetail == "") != (r.Detail == "") {
		return fmt.Errorf("it is %d %s", status, body)
	}
	return nil
}
