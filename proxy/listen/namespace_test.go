package listen_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWithoutIPv6(t *testing.T) {
	if !netns.Alone(t, 0) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := netns.SetLoopback(true); err != nil {
		t.Fatal(err)
	}
	ln, err := listen.TCP(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port(ln.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	pc, err := listen.UDP(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	_, err = listen.TCP(t.Context(), "[::1]:0")
	if err == nil || !strings.HasPrefix(err.Error(), "listen on tcp [::1]:0: ") {
		t.Errorf("listen on ::1: %v, want a refusal", err)
	}
}

func TestLowPorts(t *testing.T) {
	if !netns.Alone(t, 1000) {
		return
	}
	for network, err := range map[string]error{
		"tcp": second(listen.TCP(t.Context(), ":1023")),
		"udp": second(listen.UDP(t.Context(), ":1023")),
	} {
		if !errors.Is(err, syscall.EACCES) || !strings.HasPrefix(err.Error(), "listen on "+network+" :1023: ") ||
			!strings.Contains(err.Error(), "ports below 1024 need the capability CAP_NET_BIND_SERVICE") {
			t.Errorf("%s: %v, want a permission error that says what would help", network, err)
		}
	}
}
