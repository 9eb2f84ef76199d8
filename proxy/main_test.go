package proxy_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy"
)

// inNamespace tells a child of the test binary that it is one.
const inNamespace = "SLUICE_TEST_IN_NAMESPACE"

// How long a steered UDP port rests, and between looks for foreign sockets.
const testRest, testForeign = 200 * time.Millisecond, 50 * time.Millisecond

// TestMain runs the tests in a child with a network of its own: the ports there
// are nobody else's, and what they steer is missed by nobody. Root can make one,
// and so can an ordinary user wherever user namespaces are on, but he cannot
// steer there.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(runInNamespace())
	}
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	proxy.SetPace(testRest, testForeign)
	goleak.VerifyTestMain(m)
}

func runInNamespace() int {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	child := exec.Command(exe, os.Args[1:]...)
	child.Env = append(os.Environ(), inNamespace+"=yes")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid := os.Getuid(); uid != 0 {
		child.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := child.Run(); child.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "cannot make a network namespace for the tests:", err)
		return 1
	}
	return child.ProcessState.ExitCode()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// listenInChild has a child process listen on a TCP port until the test ends,
// and returns how messages name it.
func listenInChild(t *testing.T, port int) (name string) {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{f}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	return fmt.Sprintf("cat (pid %d)", child.Process.Pid)
}
