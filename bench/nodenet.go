package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeNet is a network of machines within this one, each a network namespace of
// its own with all ports free, on a bridge with the bench. The namespaces have no
// names: they are gone when their last process and file are.
type nodeNet struct {
	here  netip.Addr // the bench's own address
	hosts []*netHost
}

// netHost is a machine of a nodeNet.
type netHost struct {
	ns   *os.File
	addr netip.Addr
}

// newNodeNet makes n machines, which takes a network namespace of our own. The
// caller closes it.
func newNodeNet(ctx context.Context, o *options, n int) (*nodeNet, error) {
	if !o.isolated {
		return nil, errors.New("nodes that all open the same ports have a network namespace each, which takes root, and no -isolate=false")
	}
	net := &nodeNet{here: netip.AddrFrom4([4]byte{10, 9, 0, 1})}
	commands := fmt.Sprintf("link add nodes type bridge\naddr add %v/24 dev nodes\nlink set nodes up\n", net.here)
	for i := range n {
		h := &netHost{addr: netip.AddrFrom4([4]byte{10, 9, 0, byte(11 + i)})}
		if err := h.unshare(); err != nil {
			net.close()
			return nil, err
		}
		net.hosts = append(net.hosts, h)
		commands += fmt.Sprintf("link add node%d type veth peer name tobench netns /proc/%d/fd/%d\nlink set node%d master nodes up\n", i, os.Getpid(), h.ns.Fd(), i)
	}
	err := ip(ctx, commands)
	for _, h := range net.hosts {
		if err == nil {
			err = h.do(func() error {
				return ip(ctx, fmt.Sprintf("link set lo up\naddr add %v/24 dev tobench\nlink set tobench up\n", h.addr))
			})
		}
	}
	if err != nil {
		net.close()
		return nil, err
	}
	return net, nil
}

// startNodeOn starts a node on a machine, with its public listeners at an address
// there, and returns it with its site once it says that it is ready. Its admin
// address is the machine's own; ports say the rest.
func (b *bench) startNodeOn(ctx context.Context, h *netHost, public netip.Addr, ports sluicePorts) (*sluiceNode, *site, error) {
	s, err := b.site(ports.Name)
	if err != nil {
		return nil, nil, err
	}
	s.host = h
	ports.Admin = netip.AddrPortFrom(h.addr, 7180)
	addrs := addressBook{serviceHTTP: netip.AddrPortFrom(public, 80), serviceHTTPS: netip.AddrPortFrom(public, 443)}
	n := &sluiceNode{edge: &edge{name: judged, addrs: addrs, admin: ports.Admin}, ports: ports}
	return n, s, n.start(ctx, s)
}

// close removes what the bench has of the network. Its processes have ended.
func (n *nodeNet) close() {
	for _, h := range n.hosts {
		h.ns.Close()
	}
	// The bridge goes with the namespace, if not now: it has no other victim.
	_ = ip(context.Background(), "link del nodes\n")
}

// unshare makes the machine's namespace.
func (h *netHost) unshare() error {
	return onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
}

// do runs f on the machine: processes that it starts stay there. A nil machine is
// the one that the bench is on.
func (h *netHost) do(f func() error) error {
	if h == nil {
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that may change its network namespace, and has its
// own again afterwards: it has to live on, for children end with the thread that
// started them.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	defer func() {
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
			return // the thread stays locked, and nobody else gets it
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// ip runs commands of iproute2, one a line, in the thread's namespace.
func ip(ctx context.Context, commands string) error {
	program, err := ipTool.path()
	if err != nil {
		return err
	}
	cmd := command(ctx, program, "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, tail(out))
	}
	return nil
}
