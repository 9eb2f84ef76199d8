package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a program that runs beside the test: a server, a client, or
// sluice with a command line of its own.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr *syncBuffer
	exited         chan struct{}
	code           int // valid once exited is closed; -1 after a signal
}

// startProcess starts cmd and gathers its output. What still runs when the test
// ends is killed; what it said is logged if the test failed.
func startProcess(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, stdout: &syncBuffer{}, stderr: &syncBuffer{}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	cmd.WaitDelay = time.Second // for children that keep the output open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait() // the exit code says it all
		p.code = cmd.ProcessState.ExitCode()
		close(p.exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.exited
		if strings.Contains(p.stderr.String(), "DATA RACE") {
			t.Errorf("data race in %s", cmd)
		}
		if t.Failed() {
			t.Logf("%s said:\n%s%s", cmd, p.stdout, p.stderr)
		}
	})
	return p
}

// wait waits for the program to exit and returns its exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.code
	case <-time.After(patience):
		p.cmd.Process.Signal(syscall.SIGQUIT) // a Go program dumps its goroutines
		p.t.Fatalf("%s did not exit", p.cmd)
	}
	return -1
}

// runSluice runs the program in dir until it exits by itself.
func runSluice(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runSluiceWith(t, dir, nil, args...)
}

// runSluiceWith is runSluice with more variables in the program's environment.
func runSluiceWith(t *testing.T, dir string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	p := startProcess(t, cmd)
	code = p.wait()
	return code, p.stdout.String(), p.stderr.String()
}

// edit replaces a part of the node's file, which must be there once.
func (n *node) edit(old, with string) {
	n.t.Helper()
	file := filepath.Join(n.dir, "sluice.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	if strings.Count(string(text), old) != 1 {
		n.t.Fatalf("%q is not once in\n%s", old, text)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), old, with, 1)), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// useEtcdOf has the node use another node's etcd instead of one of its own.
func (n *node) useEtcdOf(other *node) {
	n.t.Helper()
	n.edit(fmt.Sprintf("listen: %q", n.Etcd), fmt.Sprintf("endpoints: [%q]", "http://"+other.Etcd))
	n.Etcd = other.Etcd
}
