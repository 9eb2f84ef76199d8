package listen_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

// inNamespace names the check that a child of the test binary is to run.
const inNamespace = "SLUICE_TEST_IN_NAMESPACE"

func TestMain(m *testing.M) {
	check := map[string]func() error{"no ipv6": checkNoIPv6, "low ports": checkLowPorts}[os.Getenv(inNamespace)]
	if check == nil {
		goleak.VerifyTestMain(m)
		return
	}
	if err := check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runInNamespace runs a check in a child with a network of its own, as the user
// uid there. Root can make one, and so can an ordinary user wherever user
// namespaces are on, as they are in Debian.
func runInNamespace(t *testing.T, check string, uid int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), inNamespace+"="+check)
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWithoutIPv6(t *testing.T) { runInNamespace(t, "no ipv6", 0) }

func checkNoIPv6() error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	ln, err := listen.TCP(context.Background(), ":0")
	if err != nil {
		return err
	}
	defer ln.Close()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port(ln.Addr())))
	if err != nil {
		return err
	}
	c.Close()
	pc, err := listen.UDP(context.Background(), ":0")
	if err != nil {
		return err
	}
	defer pc.Close()
	_, err = listen.TCP(context.Background(), "[::1]:0")
	if err == nil || !strings.HasPrefix(err.Error(), "listen on tcp [::1]:0: ") {
		return fmt.Errorf("listen on ::1: %v, want a refusal", err)
	}
	return nil
}

func TestLowPorts(t *testing.T) { runInNamespace(t, "low ports", 1000) }

func checkLowPorts() error {
	for network, err := range map[string]error{
		"tcp": second(listen.TCP(context.Background(), ":1023")),
		"udp": second(listen.UDP(context.Background(), ":1023")),
	} {
		if !errors.Is(err, syscall.EACCES) || !strings.HasPrefix(err.Error(), "listen on "+network+" :1023: ") ||
			!strings.Contains(err.Error(), "ports below 1024 need the capability CAP_NET_BIND_SERVICE") {
			return fmt.Errorf("%s: %v, want a permission error that says what would help", network, err)
		}
	}
	return nil
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
