package proxy_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/listen/netns"
)

// How long a steered UDP port rests, and between looks for foreign sockets.
const testRest, testForeign = 200 * time.Millisecond, 50 * time.Millisecond

// TestMain runs the tests in a child with a network of its own: the ports there
// are nobody else's, and what they steer is missed by nobody. An ordinary user
// cannot steer there.
func TestMain(m *testing.M) {
	if !netns.Inside() {
		os.Exit(netns.Main())
	}
	if err := netns.SetLoopback(true); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	proxy.SetPace(testRest, testForeign)
	goleak.VerifyTestMain(m)
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
