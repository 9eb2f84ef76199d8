// Package netns runs tests in network namespaces of their own: the ports there are
// nobody else's, and what a test does to the network is missed by nobody. Root can
// make one, and so can an ordinary user wherever user namespaces are on, as they
// are in Debian. Only tests import it.
package netns

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set where a namespace was made by Main or Alone, and below.
const inside = "SLUICE_TEST_IN_NAMESPACE"

// Inside reports whether this process, or one that it descends from, was started
// by Main or Alone.
func Inside() bool { return os.Getenv(inside) != "" }

// Main runs this program with its arguments again in a namespace, for a TestMain
// that is not Inside, and returns the code to exit with. Root is root of the whole
// machine there, as steering takes it; any other user is root of the namespace.
func Main() (code int) {
	child := again(os.Args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	if os.Getuid() != 0 {
		appearAs(child, 0)
	}
	defer holdThread()()
	if err := child.Run(); child.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "cannot make a network namespace for the tests:", err)
		return 1
	}
	return child.ProcessState.ExitCode()
}

// Alone reports whether the calling test is in a namespace of its own, to go on
// there. Elsewhere it runs that test in a child which is, as the user uid of the
// namespace (0: who may do all to its network), and fails where the child does.
// Subtests cannot call it.
func Alone(t *testing.T, uid int) bool {
	t.Helper()
	if Inside() {
		return true
	}
	child := again("-test.run=^"+t.Name()+"$", "-test.v")
	appearAs(child, uid)
	defer holdThread()()
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

// again returns what runs this program in a new namespace. The child ends with the
// thread that starts it, so that none outlives a run that is cut off.
func again(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err) // without /proc
	}
	child := exec.Command(self, args...)
	child.Env = append(os.Environ(), inside+"=yes")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return child
}

// appearAs has child run in a user namespace too, where this user is uid.
func appearAs(child *exec.Cmd, uid int) {
	child.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
	child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}
}

// holdThread keeps the thread from ending before release.
func holdThread() (release func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

// SetLoopback sets lo of the namespace up or down. In a new one it is down, and
// 127.0.0.1 and ::1 cannot be reached.
func SetLoopback(up bool) error {
	return onLoopback(unix.SIOCSIFFLAGS, func(lo *unix.Ifreq) {
		if up {
			lo.SetUint16(unix.IFF_UP)
		}
	})
}

// SetLoopbackMTU sets how many bytes a packet over lo of the namespace can have.
func SetLoopbackMTU(bytes uint32) error {
	return onLoopback(unix.SIOCSIFMTU, func(lo *unix.Ifreq) { lo.SetUint32(bytes) })
}

func onLoopback(request uint, fill func(lo *unix.Ifreq)) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	fill(lo)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(fd, request, lo))
}
