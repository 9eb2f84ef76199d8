package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// repository is the folder of README.md, from here.
const repository = "../../.."

// tourPorts are what `make run` opens, and the ports that the tour maps.
var tourPorts = []int{2379, 8443, 8080, 9180, 9181, 20080}

// TestTour follows README.md word for word, with a node started as `make run`
// does, and tries what that node suggests. The addresses are fixed, so nothing
// else may have them.
func TestTour(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	awaitFree(t, tourPorts)
	tour := startTour(t)
	t.Run("suggestions", func(t *testing.T) {
		said := tour.stdout.String()
		for _, want := range []string{
			"  etcdctl put /sluice/ports/tcp/20080 ", "  curl --cacert data/ca.pem https://demo.localhost:8443/", "  curl http://127.0.0.1:9180/metrics",
		} {
			if !strings.Contains(said, "\n"+want) {
				t.Errorf("the node does not suggest %q:\n%s", want, said)
			}
		}
		for line := range strings.Lines(said) {
			if command, ok := strings.CutPrefix(line, "  "); ok {
				tour.try(t, step{command: strings.TrimSpace(command)})
			}
		}
	})
	for _, title := range []string{"Five-minute tour", "Load testing"} {
		t.Run(title, func(t *testing.T) {
			steps := stepsOf(t, string(readme), title)
			for _, s := range steps {
				tour.try(t, s)
			}
			if len(steps) == 0 {
				t.Errorf("README.md has no commands in the section %q", title)
			}
		})
	}
	tour.interrupt()
}

// interrupt ends the node as Ctrl-C does.
func (p *process) interrupt() {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		p.t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
}

// startTour builds and starts the node as the target run of the Makefile does,
// but in a new directory, and waits until it has said what to try.
func startTour(t *testing.T) *process {
	t.Helper()
	root, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	cmd := exec.Command(filepath.Join(root, "bin", "sluice"), "run", "--config", filepath.Join(root, "deploy", "dev.yaml"))
	cmd.Dir = t.TempDir()
	if err := os.Symlink(filepath.Join(root, "bin"), filepath.Join(cmd.Dir, "bin")); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, cmd)
	eventually(t, "the node says what to try", func() error {
		select {
		case <-p.exited:
			t.Fatalf("the node exited with %d", p.code)
		default:
		}
		if !strings.Contains(p.stdout.String(), "Ctrl-C stops the node") {
			return fmt.Errorf("so far %q", p.stdout)
		}
		return nil
	})
	return p
}

// step is a command of a person who follows the text, and what the text says
// to look for in its output.
type step struct {
	command string
	want    []string
}

// stepsOf returns the commands in the sh blocks of a section.
func stepsOf(t *testing.T, text, title string) (steps []step) {
	t.Helper()
	_, section, ok := strings.Cut(text, "\n## "+title+"\n")
	if !ok {
		t.Fatalf("there is no section %q", title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```").FindAllStringSubmatch(section, -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSpace(line)
			if want, ok := strings.CutPrefix(line, "#=> "); ok && len(steps) > 0 {
				last := &steps[len(steps)-1]
				last.want = append(last.want, want)
			} else if line != "" {
				steps = append(steps, step{command: line})
			}
		}
	}
	return steps
}

// try runs a step beside the node of p. A person would look again if the
// machine was slow, and so does try. The step itself may take longer than other
// waits: there are commands that start several nodes, and wait for them.
func (p *process) try(t *testing.T, s step) {
	t.Helper()
	t.Run(s.command, func(t *testing.T) {
		eventually(t, "it shows what it should", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", s.command)
			cmd.Dir, cmd.WaitDelay = p.cmd.Dir, patience // what a killed shell has started may keep the output open
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			for _, want := range s.want {
				if !strings.Contains(string(out), want) {
					return fmt.Errorf("%q is not in\n%s", want, out)
				}
			}
			return nil
		})
	})
}

// awaitFree waits until nobody listens on the ports, and says who does.
func awaitFree(t *testing.T, ports []int) {
	t.Helper()
	eventually(t, "the ports of the tour are free", func() error {
		for _, port := range ports {
			ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return fmt.Errorf("%w: it is held by %s", err, holderOf(port))
			}
			ln.Close()
		}
		return nil
	})
}

// holderOf names the process that listens on a TCP port, as far as /proc shows
// other users' processes.
func holderOf(port int) string {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err.Error()
	}
	sockets := listeningSockets(port)
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !sockets[target] {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err == nil {
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return "somebody whom only root can see"
}

// listeningSockets returns what links to the TCP sockets that listen on a port
// look like.
func listeningSockets(port int) map[string]bool {
	const listening = "0A"
	sockets := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a machine without IPv6
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != listening {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if p, err := strconv.ParseInt(hex, 16, 32); err == nil && int(p) == port {
				sockets["socket:["+f[9]+"]"] = true
			}
		}
	}
	return sockets
}
