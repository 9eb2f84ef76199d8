package fleet_test

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/control/fleet"
)

// inNamespace tells a child of the test binary that it has a network of its own.
const inNamespace = "SLUICE_TEST_IN_NAMESPACE"

// TestChangesOfAddressesAreTold sets the loopback interface of a network namespace
// up and down, in a child that has one.
func TestChangesOfAddressesAreTold(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		child := exec.Command(os.Args[0], "-test.run=^TestChangesOfAddressesAreTold$")
		child.Env = append(os.Environ(), inNamespace+"=yes")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if uid := os.Getuid(); uid != 0 {
			child.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
			child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("in a namespace: %v\n%s", err, out)
		}
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- fleet.WatchAddresses(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	limit := time.After(20 * time.Second)
	for round := 0; ; round++ { // the first changes may come before it listens
		setLoopback(t, round%2 == 0)
		select {
		case <-told:
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			return
		case <-limit:
			t.Fatal("nothing was told")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func setLoopback(t *testing.T, up bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	if up {
		req.SetUint16(unix.IFF_UP)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}
