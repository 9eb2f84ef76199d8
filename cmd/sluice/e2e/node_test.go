package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for a condition. It is generous because machines
// that run tests are busy; no test asserts how long something took.
const patience = time.Minute

// node is a running program with its own etcd and its own ports.
type node struct {
	t   *testing.T
	dir string // working directory, holds sluice.yaml and data

	HTTPS, HTTP int // public ports
	Ports       [2]int
	Admin, Etcd string // addresses
	Demo        string

	host     *host  // nil: this machine
	resolver string // of a node on a host; "": none
	// etcdctlProgram is the etcdctl that is run; "": Debian's.
	etcdctlProgram string
	files          int // that it may open; 0: as many as the test
	env            []string

	// program is what is run; "": binary. Of a node that has one of its own, what
	// is said comes by a pipe that outlives the process.
	program string

	cmd    *exec.Cmd
	stdout *os.File    // nil: output
	output *syncBuffer // standard output and standard error
	exited chan struct{}
	code   *int // of the process; valid once exited is closed
}

// nodeOption changes a node's file before it starts.
type nodeOption func(*nodeFile)

// nodeFile is what sluice.yaml is written from; Extra is appended as it is.
type nodeFile struct {
	LocalCA      bool
	DrainTimeout string
	HTTP         string // further fields of the http listener
	Extra        string

	host     *host
	resolver string
	env      []string
}

// withEnv adds variables, each NAME=value, to the program's environment.
func withEnv(env ...string) nodeOption { return func(f *nodeFile) { f.env = append(f.env, env...) } }

// withYAML appends lines to sluice.yaml.
func withYAML(text string) nodeOption { return func(f *nodeFile) { f.Extra += text + "\n" } }

// withHTTP adds fields to the http listener.
func withHTTP(fields string) nodeOption { return func(f *nodeFile) { f.HTTP = ", " + fields } }

// withDrainTimeout sets drain_timeout.
func withDrainTimeout(d string) nodeOption { return func(f *nodeFile) { f.DrainTimeout = d } }

// withoutLocalCA turns the development CA off.
func withoutLocalCA() nodeOption { return func(f *nodeFile) { f.LocalCA = false } }

// startNode starts a node on free ports and waits until it is ready. When the
// test ends the node is stopped, must have exited in order, and must not have
// reported a data race.
func startNode(t *testing.T, options ...nodeOption) *node {
	t.Helper()
	n := newNode(t, options...)
	n.start()
	return n
}

// newNode writes a node's file without starting the node.
func newNode(t *testing.T, options ...nodeOption) *node {
	t.Helper()
	file := nodeFile{LocalCA: true, DrainTimeout: "5s"}
	for _, o := range options {
		o(&file)
	}
	n := &node{t: t, dir: t.TempDir(), host: file.host, resolver: file.resolver, env: file.env}
	first := reservePorts(t, portsPerNode)
	n.Ports = [2]int{first, first + mappedPerNode - 1}
	fixed := first + mappedPerNode
	n.HTTPS, n.HTTP = fixed, fixed+1
	n.Admin, n.Etcd, n.Demo = loopback(fixed+2), loopback(fixed+3), loopback(fixed+4)
	yaml := fmt.Sprintf(`node: test
data: ./data
etcd: {listen: %q}
listeners: {https: [":%d"], http: [{address: ":%d"%s}]}
ports: ["%d-%d"]
admin: %q
demo: %q
local_ca: %v
drain_timeout: %s
log: {level: debug, access: ./access.log}
%s`, n.Etcd, n.HTTPS, n.HTTP, file.HTTP, n.Ports[0], n.Ports[1], n.Admin, n.Demo, file.LocalCA, file.DrainTimeout, file.Extra)
	if err := os.WriteFile(filepath.Join(n.dir, "sluice.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// start starts the program and waits until it is ready; stop and start again
// restarts it on the same data.
func (n *node) start() {
	n.t.Helper()
	n.spawn()
	n.waitReady()
}

// spawn starts the program.
func (n *node) spawn() {
	n.t.Helper()
	n.output = &syncBuffer{}
	n.cmd = exec.Command(binary, "run", "--config", "sluice.yaml")
	if n.files > 0 {
		n.cmd = exec.Command("sh", "-c", fmt.Sprintf("ulimit -n %d && exec %s run --config sluice.yaml", n.files, binary))
	}
	n.cmd.Dir = n.dir
	n.cmd.Env = append(append(os.Environ(), "GORACE=halt_on_error=0 exitcode=66"), n.env...)
	n.cmd.Stdout, n.cmd.Stderr = n.output, n.output
	if n.stdout != nil {
		n.cmd.Stdout = n.stdout
	}
	if n.program != "" {
		n.cmd.Path, n.cmd.Args[0] = n.program, n.program
		w := n.pipe()
		defer w.Close()
		n.cmd.Stdout, n.cmd.Stderr = w, w
	}
	start := n.cmd.Start
	if n.host != nil {
		start = n.startOnHost
	}
	if err := start(); err != nil {
		n.t.Fatal(err)
	}
	n.exited, n.code = make(chan struct{}), new(int)
	go func(cmd *exec.Cmd, exited chan struct{}, code *int) {
		cmd.Wait() // the exit code says it all
		*code = cmd.ProcessState.ExitCode()
		close(exited)
	}(n.cmd, n.exited, n.code)
	n.t.Cleanup(n.cleanup)
}

func (n *node) waitReady() {
	n.t.Helper()
	eventually(n.t, "the node is ready", func() error {
		select {
		case <-n.exited:
			n.t.Fatalf("the node exited with %d before it was ready:\n%s", *n.code, n.output)
		default:
		}
		status, body, err := n.adminGet("/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("readyz says %d %s", status, body)
		}
		return err
	})
}

// signal sends a signal to the program.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("signal %v: %v", s, err)
	}
}

// wait waits for the program to exit and returns its exit code.
func (n *node) wait() int {
	n.t.Helper()
	select {
	case <-n.exited:
		return *n.code
	case <-time.After(patience):
		n.signal(syscall.SIGQUIT) // for the goroutine dump
		<-n.exited
		n.t.Fatalf("the node did not exit:\n%s", n.output)
	}
	return -1
}

// stop drains the program and returns its exit code.
func (n *node) stop() int {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	return n.wait()
}

func (n *node) cleanup() {
	select {
	case <-n.exited:
	default:
		n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.exited:
			if *n.code != 0 && *n.code != 3 {
				n.t.Errorf("the node exited with %d", *n.code)
			}
		case <-time.After(patience):
			n.cmd.Process.Signal(syscall.SIGQUIT)
			<-n.exited
			n.t.Errorf("the node did not exit on SIGTERM")
		}
	}
	out := n.output.String()
	if strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic:") || *n.code == 66 {
		n.t.Errorf("data race or panic in the node")
	}
	if n.t.Failed() {
		const most = 20000
		n.t.Logf("output of the node:\n%s", out[max(0, len(out)-most):])
	}
}

// etcdctl runs Debian's etcdctl against the node's etcd.
func (n *node) etcdctl(args ...string) string {
	n.t.Helper()
	out, err := n.tryEtcdctl(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) tryEtcdctl(args ...string) (string, error) {
	program := n.etcdctlProgram
	if program == "" {
		program = "etcdctl"
	}
	// By itself it gives up after five seconds, which a busy disk may take, and an
	// etcd that moves to another process. (It reads its environment too late for that.)
	cmd := exec.Command(program, append([]string{"--endpoints", n.Etcd, "--command-timeout=30s", "--dial-timeout=30s"}, args...)...)
	if cmd.Env = os.Environ(); n.etcdctlProgram == "" {
		cmd.Env = append(cmd.Env, "ETCDCTL_API=3")
	}
	if n.host != nil {
		out, err := n.host.run(cmd)
		if err != nil {
			return "", fmt.Errorf("etcdctl %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return out, nil
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("etcdctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// put puts a key, given below the prefix, and waits until the node has a
// verdict on that very revision.
func (n *node) put(key, value string) (verdict string) {
	n.t.Helper()
	n.etcdctl("put", "/sluice/"+key, value)
	rev := n.modRevision("/sluice/" + key)
	eventually(n.t, "a verdict on "+key, func() error {
		applied := n.applied()
		text, verdictRev := n.get("verdicts/test/" + key) // behind the record, which is written after it
		if verdictRev == 0 && applied >= rev {
			verdict = fmt.Sprintf("applied@%d", rev) // which is left out right after many others
			return nil
		}
		if verdictRev < rev {
			return fmt.Errorf("the verdict is %q of revision %d, the value is of %d", text, verdictRev, rev)
		}
		verdict = text
		return nil
	})
	return verdict
}

// mustPut is put, and the value must be accepted.
func (n *node) mustPut(key, value string) {
	n.t.Helper()
	if v := n.put(key, value); !strings.HasPrefix(v, "applied@") {
		n.t.Fatalf("put %s %s: %s", key, value, v)
	}
}

// delete deletes a key and waits until the node's verdict on it is gone.
func (n *node) delete(key string) {
	n.t.Helper()
	n.etcdctl("del", "/sluice/"+key)
	eventually(n.t, "no verdict on "+key, func() error {
		if text, rev := n.get("verdicts/test/" + key); rev != 0 {
			return fmt.Errorf("it is still %q", text)
		}
		return nil
	})
}

// get returns the value of a key below the prefix and its revision, 0 if there
// is none.
func (n *node) get(key string) (value string, rev int64) {
	n.t.Helper()
	var answer struct {
		Kvs []struct {
			Value       []byte
			ModRevision int64 `json:"mod_revision"`
		}
	}
	out := n.etcdctl("get", "/sluice/"+key, "-w", "json")
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		n.t.Fatalf("etcdctl get -w json: %v\n%s", err, out)
	}
	if len(answer.Kvs) == 0 {
		return "", 0
	}
	return string(answer.Kvs[0].Value), answer.Kvs[0].ModRevision
}

func (n *node) modRevision(key string) int64 {
	n.t.Helper()
	_, rev := n.get(strings.TrimPrefix(key, "/sluice/"))
	return rev
}

// port returns the i-th of the node's mapped ports.
func (n *node) port(i int) int {
	n.t.Helper()
	if i >= mappedPerNode {
		n.t.Fatalf("a node has %d mapped ports", mappedPerNode)
	}
	return n.Ports[0] + i
}

// roots returns the node's development CA.
func (n *node) roots() *x509.CertPool {
	n.t.Helper()
	pem, err := os.ReadFile(n.caFile())
	if err != nil {
		n.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		n.t.Fatalf("no certificate in %s", n.caFile())
	}
	return pool
}

func (n *node) caFile() string { return filepath.Join(n.dir, "data", "ca.pem") }

// url returns an https URL on the node's public port.
func (n *node) url(host, path string) string {
	return fmt.Sprintf("https://%s:%d%s", host, n.HTTPS, path)
}

// metric returns the value of the first line of /metrics that begins with
// prefix, name and labels as they are exposed.
func (n *node) metric(prefix string) (string, bool) {
	n.t.Helper()
	_, body, err := n.adminGet("/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// accessRecords returns the records of the access log so far.
func (n *node) accessRecords() []map[string]any {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "access.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	var records []map[string]any
	for line := range strings.Lines(string(text)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			if !strings.HasSuffix(line, "\n") {
				break // half-written
			}
			n.t.Fatalf("access log line %q: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

// accessRecord waits for a record in the access log that has all these fields.
func (n *node) accessRecord(want map[string]any) map[string]any {
	n.t.Helper()
	var found map[string]any
	eventually(n.t, fmt.Sprintf("an access record with %v", want), func() error {
		records := n.accessRecords()
	next:
		for _, r := range records {
			for k, v := range want {
				if fmt.Sprint(r[k]) != fmt.Sprint(v) {
					continue next
				}
			}
			found = r
			return nil
		}
		if len(records) == 0 {
			return errors.New("there are none")
		}
		return fmt.Errorf("%d records, none of them; the last is %v", len(records), records[len(records)-1])
	})
	return found
}

// curl runs curl, trusting the node's CA.
func (n *node) curl(args ...string) string {
	n.t.Helper()
	args = append([]string{"-sS", "--max-time", "30", "--cacert", n.caFile()}, args...)
	out, err := exec.Command("curl", args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// eventually polls until check returns nil, and fails the test with its last
// error when patience ends.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
		<-tick.C
	}
}

// adminGet asks the node's admin address.
func (n *node) adminGet(path string) (status int, body string, err error) {
	if n.host != nil {
		return n.host.httpGet("http://" + n.Admin + path)
	}
	return httpGet("http://" + n.Admin + path)
}

func httpGet(url string) (status int, body string, err error) {
	return httpGetBy(&http.Transport{DisableKeepAlives: true}, url)
}

func httpGetBy(tr *http.Transport, url string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// dialRefused reports whether nothing listens on a port.
func dialRefused(port int) error {
	c, err := net.Dial("tcp", loopback(port))
	if err == nil {
		c.Close()
		return fmt.Errorf("port %d accepts connections", port)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

// syncBuffer is a bytes.Buffer for several writers and readers.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
