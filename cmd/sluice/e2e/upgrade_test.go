package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go/http3"
)

// pipe returns the end that a program writes to, and passes what comes on to the
// node's output. That is complete when the test ends.
func (n *node) pipe() *os.File {
	n.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	go func(output *syncBuffer) {
		io.Copy(output, r)
		r.Close()
	}(n.output)
	return w
}

// startReplaceable starts a node from a copy of the program, which is there to be
// replaced.
func startReplaceable(t *testing.T, options ...nodeOption) *node {
	t.Helper()
	n := newNode(t, options...)
	n.program = filepath.Join(n.dir, "sluice")
	n.replaceProgram(binary)
	n.start()
	return n
}

// replaceProgram puts another program in the place of the node's, as a package
// manager does it: the file that runs stays what it is.
func (n *node) replaceProgram(from string) {
	n.t.Helper()
	next := n.program + ".new"
	if err := os.Link(from, next); err != nil {
		if out, err := exec.Command("cp", from, next).CombinedOutput(); err != nil {
			n.t.Fatalf("copy the program: %v\n%s", err, out)
		}
	}
	if err := os.Rename(next, n.program); err != nil {
		n.t.Fatal(err)
	}
	os.Remove(next) // it is still there where both were one file already
}

// replaceByScript puts a shell script in the place of the node's program.
func (n *node) replaceByScript(script string) {
	n.t.Helper()
	path := filepath.Join(n.dir, "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.replaceProgram(path)
}

// former is a process of the node that was replaced.
type former struct{ exited chan struct{} }

// upgrade has the node replaced, and n be the new process from here on.
func (n *node) upgrade() former {
	n.t.Helper()
	code, stdout, stderr := runSluice(n.t, n.dir, "upgrade", "--config", "sluice.yaml")
	if code != 0 {
		n.t.Fatalf("sluice upgrade exits with %d: %s%s", code, stdout, stderr)
	}
	said := regexp.MustCompile(`^process (\d+) serves`).FindStringSubmatch(stdout)
	if said == nil {
		n.t.Fatalf("sluice upgrade says %q", stdout)
	}
	pid, _ := strconv.Atoi(said[1])
	return n.follow(pid)
}

// follow has n be the process pid, which is a child of the test's: whoever is the
// parent of a node is that of its successors.
func (n *node) follow(pid int) former {
	n.t.Helper()
	process, err := os.FindProcess(pid)
	if err != nil {
		n.t.Fatal(err)
	}
	was := former{n.exited}
	exited, code := make(chan struct{}), new(int)
	n.cmd, n.exited, n.code = &exec.Cmd{Process: process}, exited, code
	n.t.Cleanup(n.cleanup)
	go func() {
		state, err := process.Wait()
		if err != nil {
			n.output.Write(fmt.Appendf(nil, "panic: wait for process %d: %v\n", pid, err))
		} else {
			*code = state.ExitCode()
		}
		close(exited)
	}()
	return was
}

// wantGone waits until a process that was replaced has ended.
func (f former) wantGone(t *testing.T) {
	t.Helper()
	await(t, f.exited, "the end of a process that was replaced")
}

// load makes requests until it is stopped, each of which has to succeed.
type load struct {
	requests atomic.Int64
	mu       sync.Mutex
	failures []error
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// startLoad has several clients of each version of HTTP ask for host, some of
// whom begin a connection for each request, and others connect to port.
func (n *node) startLoad(host string, port int) *load {
	l := &load{}
	ctx, stop := context.WithCancel(n.t.Context())
	l.stop = stop
	for _, proto := range []string{"h1", "h2", "h3"} {
		for _, fresh := range []bool{false, true} {
			c := newClient(n.t, n, proto)
			l.running.Go(func() { l.ask(ctx, c, host, fresh) })
		}
	}
	l.running.Go(func() {
		for ctx.Err() == nil {
			l.note(connectOnce(port))
		}
	})
	n.t.Cleanup(func() {
		stop()
		l.running.Wait()
	})
	return l
}

func (l *load) ask(ctx context.Context, c *client, host string, fresh bool) {
	for ctx.Err() == nil {
		req, err := http.NewRequest(http.MethodGet, c.n.url(host, "/"), nil)
		if err == nil {
			err = l.once(c, req, fresh)
		}
		if err != nil {
			err = fmt.Errorf("%s (fresh %v): %w", c.proto, fresh, err)
		}
		l.note(err)
	}
}

func (l *load) once(c *client, req *http.Request, fresh bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := c.http.Do(req.WithContext(ctx))
	if own, ok := errors.AsType[*http3.Error](err); ok && !own.Remote && own.ErrorCode == http3.ErrCodeNoError {
		// quic-go's client closes a connection itself where GOAWAY comes just when
		// a request begins: it takes it for idle until the stream is noted.
		resp, err = c.http.Do(req.WithContext(ctx))
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	if fresh {
		c.http.CloseIdleConnections()
	}
	return nil
}

func (l *load) note(err error) {
	l.requests.Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failures = append(l.failures, err)
	}
}

// more waits until so many more requests were made.
func (l *load) more(t *testing.T, requests int64) {
	t.Helper()
	want := l.requests.Load() + requests
	eventually(t, "requests go on", func() error {
		if got := l.requests.Load(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

// end stops the load and fails the test if a request has failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.running.Wait()
	for i, err := range l.failures {
		if i == 10 {
			t.Errorf("and %d more", len(l.failures)-i)
			break
		}
		t.Errorf("a request failed: %v", err)
	}
	t.Logf("%d requests", l.requests.Load())
}

// connectOnce opens a connection to a mapped port, and has a line back.
func connectOnce(port int) error {
	c, err := net.DialTimeout("tcp", loopback(port), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "knock\n"); err != nil {
		return fmt.Errorf("mapped port: %w", err)
	}
	b := make([]byte, 256)
	if _, err := c.Read(b); err != nil {
		return fmt.Errorf("mapped port: %w", err)
	}
	return nil
}

// TestUpgrade replaces a node twice under load: no request fails, no session is
// cut, changes are served, and nothing is left of the processes before.
func TestUpgrade(t *testing.T) { eachReplaceable(t, testUpgrade) }

// eachReplaceable is eachPortsMode with a node that can be replaced.
func eachReplaceable(t *testing.T, f func(t *testing.T, n *node)) {
	t.Parallel()
	for _, mode := range []string{"bind", "auto"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f(t, startReplaceable(t, withYAML("ports_mode: "+mode)))
		})
	}
}

func testUpgrade(t *testing.T, n *node) {
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "lines"))
	n.mustPut(fmt.Sprintf("ports/udp/%d", n.port(1)), startUDPEcho(t, "echo"))
	n.mustPut("routes/web", fmt.Sprintf(`{"host": "app.localhost", "backend": %q}`, startBackend(t, http.HandlerFunc(sayHello))))
	ws, ended := startEcho(t, "")
	n.mustPut("routes/ws", fmt.Sprintf(`{"host": "ws.localhost", "backend": %q}`, ws))
	socket := webSocket(t, n, "ws.localhost", "/")
	s := openSession(t, n.port(0))
	s.want("lines", "before")
	udp := dialUDP(t, "127.0.0.1", n.port(1))
	udp.want("echo", 100)
	l := n.startLoad("app.localhost", n.port(0))
	l.more(t, 50)

	first := n.upgrade()
	s.want("lines", "after one upgrade")
	udp.want("echo", 200)
	say(t, socket, websocket.MessageText, []byte("still"))
	n.waitReady()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(2)), startLines(t, "new"))
	visit(t, n.port(2), "new", "hello")
	later := openSession(t, n.port(2))
	later.want("new", "of the second process")

	second := n.upgrade()
	s.want("lines", "after two upgrades")
	later.want("new", "after its own")
	udp.want("echo", 300)
	say(t, socket, websocket.MessageText, []byte("still"))
	l.more(t, 50)
	l.end(t)
	n.waitReady()
	n.wantMetric(`sluice_upgrade_attempts_total{result="done"}`, "2")
	n.wantMetric("sluice_upgrade_lingering_processes", "2")

	// The old ones follow what becomes of their mappings.
	n.delete(fmt.Sprintf("ports/tcp/%d", n.port(2)))
	later.wantCut()
	second.wantGone(t)
	s.want("lines", "the last one")
	s.Close()
	socket.CloseNow()
	<-ended
	first.wantGone(t)
	n.wantMetric("sluice_upgrade_lingering_processes", "0")
	n.wantMetric("sluice_upgrade_lingering_flows", "0")
}

func sayHello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }

// fellScript kills the new process once that is ready, within the second that it is
// watched for: it starts no program for that, which may take longer.
func fellScript() string {
	return fmt.Sprintf(`mkfifo said
"%s" "$@" 2>said &
while read -r line; do
	case $line in *"ready, and accepts"*) kill -9 $!; echo has fallen >&2; exit ;; esac
done <said
exit 1
`, binary)
}

// failingUpgrade is one whose new process does not get ready.
type failingUpgrade struct {
	name, script, yaml string // by a script in the place of the program, or lines in its file
	want               []string
}

// failsToUpgrade has an upgrade fail: the node serves on, s goes on, and the command
// says why.
func (n *node) failsToUpgrade(s *session, c failingUpgrade) {
	n.t.Helper()
	t, file := n.t, filepath.Join(n.dir, "sluice.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n.replaceProgram(binary); c.script != "" {
		n.replaceByScript(c.script)
	}
	if err := os.WriteFile(file, append(slices.Clip(good), c.yaml...), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := runSluice(t, n.dir, "upgrade", "--config", "sluice.yaml")
	if code != 1 || !strings.Contains(stderr, "the node serves on") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for _, want := range c.want {
		if !strings.Contains(stderr, want) {
			t.Errorf("sluice upgrade does not say %q: %s", want, stderr)
		}
	}
	s.want("lines", "after "+c.name)
	visit(t, n.port(0), "lines", "new")
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), startLines(t, "put"))
	visit(t, n.port(1), "put", "new")
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestUpgradeFails has new processes that do not get ready.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T, yaml string) (*node, *session) {
		n := startReplaceable(t, withYAML(yaml), openEyed) // a confined one can start no shell
		n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "lines"))
		s := openSession(t, n.port(0))
		s.want("lines", "before")
		return n, s
	}
	n, s := begin(t, "")
	for _, c := range []failingUpgrade{
		{"it exits", "echo no good >&2; exit 1\n", "", []string{"ended before it was ready", "| no good"}},
		{"it says nothing that is understood", "echo nonsense >&3; exec sleep 1000\n", "", []string{"hear from the other process"}},
		{"it ends right after it was ready", fellScript(), "", []string{"right after it was ready", "| has fallen"}},
		{"the file is wrong", "", "nonsense: true\n", []string{"ended before it was ready", "nonsense"}},
		{"an address is taken", "", "api: {listen: \"" + startRaw(t, nil) + "\"}\n", []string{"ended before it was ready", "already in use"}},
	} {
		t.Run(c.name, func(t *testing.T) { n.in(t).failsToUpgrade(s, c) })
	}
	t.Run("it hangs", func(t *testing.T) {
		// A node of its own: nothing else is to be done within a time as short as that.
		n, s := begin(t, "upgrade: {timeout: 1s}")
		n.failsToUpgrade(s, failingUpgrade{"it hangs", "exec sleep 1000\n", "", []string{"not ready within 1s"}})
		s.Close()
	})
	n.wantMetric(`sluice_upgrade_attempts_total{result="failed"}`, "5")
	n.replaceProgram(binary)
	was := n.upgrade() // and now it works
	s.want("lines", "at last")
	s.Close()
	was.wantGone(t)
}

// TestSuccessorEndsLater kills a process some time after it took over: flows of the
// one before go on, the node can be started again meanwhile, and who stops that one
// as well need not wait.
func TestSuccessorEndsLater(t *testing.T) {
	t.Parallel()
	n := startReplaceable(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "lines"))
	n.mustPut(fmt.Sprintf("ports/udp/%d", n.port(0)), startUDPEcho(t, "echo"))
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	s := openSession(t, n.port(0))
	s.want("lines", "before")
	old, said := n.cmd.Process, n.output
	first := n.upgrade()
	n.waitReady()
	n.signal(syscall.SIGKILL)
	await(t, n.exited, "the end of the new process")
	eventually(t, "the old process says that nobody serves", func() error {
		if !strings.Contains(said.String(), "new clients are refused until the node is started again") {
			return errors.New("not yet")
		}
		return nil
	})
	s.want("lines", "with nobody to serve others")
	for _, port := range []int{n.HTTPS, n.port(0)} {
		eventually(t, "the UDP socket is free", func() error {
			pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
			if err == nil {
				err = pc.Close()
			}
			return err
		})
	}
	n.start()
	visit(t, n.port(0), "lines", "new")
	for _, version := range []string{"h1", "h2", "h3"} {
		if _, body := newClient(t, n, version).get("site.r.test", "/"); body != "site" {
			t.Errorf("by %s: %q", version, body)
		}
	}
	s.want("lines", "beside a node that was started again")
	if err := old.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.wantCut()
	first.wantGone(t)
}

// TestHangupUpgrades has SIGHUP do what sluice upgrade does, here of a node that
// keeps no flows.
func TestHangupUpgrades(t *testing.T) {
	t.Parallel()
	n := startReplaceable(t, withYAML("upgrade: {linger: 0s}"))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "lines"))
	s := openSession(t, n.port(0))
	s.want("lines", "before")
	n.signal(syscall.SIGHUP)
	var pid int
	eventually(t, "another process took over", func() error {
		said := regexp.MustCompile(`another process has taken over.* pid=(\d+)`).FindStringSubmatch(n.output.String())
		if said == nil {
			return fmt.Errorf("not yet")
		}
		pid, _ = strconv.Atoi(said[1])
		return nil
	})
	n.follow(pid).wantGone(t)
	s.wantCut()
	visit(t, n.port(0), "lines", "new")
	n.waitReady()
}
