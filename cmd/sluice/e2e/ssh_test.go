package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// TestSSH takes OpenSSH's client to OpenSSH's server through a mapped port.
func TestSSH(t *testing.T) {
	t.Parallel()
	server := startSSHD(t)
	n := startNode(t)
	key := fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.mustPut(key, fmt.Sprintf(`{"backend": %q, "service": "ssh"}`, server.addr))

	t.Run("a command", func(t *testing.T) {
		cmd := server.ssh(n.port(0), "tr a-z A-Z; echo done >&2; exit 7")
		cmd.Stdin = strings.NewReader("through the edge\n")
		p := startProcess(t, cmd)
		if code := p.wait(); code != 7 || p.stdout.String() != "THROUGH THE EDGE\n" || !strings.Contains(p.stderr.String(), "done\n") {
			t.Errorf("exit code %d, want the command's 7; it said %q and %q", code, p.stdout, p.stderr)
		}
	})
	t.Run("10 MB of bytes", func(t *testing.T) {
		const size = 10 << 20
		cmd := server.ssh(n.port(0), "cat")
		cmd.Stdin = pseudoRandom('s', size)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := receive(out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("ssh: %v", err)
		}
		if want := transferOf('s', size); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("a session amid edits, until its own port is deleted", func(t *testing.T) {
		n := n.in(t)
		cmd := server.ssh(n.port(0), "cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p := startProcess(t, cmd)
		echo := func(line string) {
			t.Helper()
			io.WriteString(stdin, line+"\n")
			eventually(t, "the line comes back", func() error {
				if !strings.HasSuffix(p.stdout.String(), line+"\n") {
					return fmt.Errorf("so far %q; %s", p.stdout, p.stderr)
				}
				return nil
			})
		}
		echo("before")
		for i := range 10 {
			n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1+i)), server.addr)
		}
		echo("in between")
		for i := range 10 {
			n.delete(fmt.Sprintf("ports/tcp/%d", n.port(1+i)))
		}
		echo("after")
		n.delete(key)
		if code := p.wait(); code != 255 {
			t.Errorf("ssh exited with %d, want the 255 of a lost connection", code)
		}
		n.accessRecord(map[string]any{"port": n.port(0), "service": "ssh", "end": "deleted"})
	})
}

// sshServer is OpenSSH's server on a loopback port, for the user who runs the
// test.
type sshServer struct{ dir, addr, user string }

func startSSHD(t *testing.T) *sshServer {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	port := reservePorts(t, 1)
	s := &sshServer{dir: t.TempDir(), addr: loopback(port), user: me.Username}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", s.file(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	hostKey, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "known_hosts", "backend "+string(hostKey))
	s.write(t, "sshd_config", fmt.Sprintf(`ListenAddress %s
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
`, s.addr, s.file("host"), s.file("user.pub")))

	sshd := "/usr/sbin/sshd" // it insists on its full path
	makeSSHDRoom(t)
	p := startProcess(t, exec.Command(sshd, "-D", "-e", "-f", s.file("sshd_config")))
	eventually(t, "sshd listens", func() error {
		select {
		case <-p.exited:
			t.Fatalf("sshd exited with %d", p.code)
		default:
		}
		if dialRefused(port) == nil {
			return errors.New("it does not yet")
		}
		return nil
	})
	return s
}

func (s *sshServer) file(name string) string { return filepath.Join(s.dir, name) }

func (s *sshServer) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ssh runs a command on the server, by way of a port of this machine. The
// server must prove that it has its host key, so nothing else can answer.
func (s *sshServer) ssh(port int, command string) *exec.Cmd {
	return exec.Command("ssh", "-F", "none", "-p", fmt.Sprint(port), "-i", s.file("user"),
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
		"-o", "HostKeyAlias=backend", "-o", "UserKnownHostsFile="+s.file("known_hosts"), "-o", "GlobalKnownHostsFile=none",
		s.user+"@127.0.0.1", command)
}
