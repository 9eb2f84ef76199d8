package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses of the hosts of a network. The node's first is on the clients' side,
// its second on the backends'. Clients and backends have a few each.
const (
	nodeAddr  = "10.1.0.1"
	nodeAddr6 = "fd00:1::1"
)

func clientAddr(i int) string   { return fmt.Sprintf("10.1.0.%d", 10+i) }
func clientAddr6(i int) string  { return fmt.Sprintf("fd00:1::%d", 10+i) }
func backendAddr(i int) string  { return fmt.Sprintf("10.2.0.%d", 10+i) }
func backendAddr6(i int) string { return fmt.Sprintf("fd00:2::%d", 10+i) }

// addrsPerHost is how many addresses of each family clients and backends have.
const addrsPerHost = 4

// network is three hosts in a row, each with a network namespace of its own:
// clients, a node, backends. Nothing leads from the clients to the backends but
// the node. The namespaces have no names; they are gone when the last socket
// and process in them is.
type network struct {
	clients, node, backends *host
}

// host is a network namespace.
type host struct {
	t  *testing.T
	ns *os.File
}

// newNetwork makes a network that lasts until the test ends. It takes root.
func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("making network namespaces takes root: run the tests as root")
	}
	n := &network{clients: newHost(t), node: newHost(t), backends: newHost(t)}
	n.node.ip(`link set lo up
		link add tocl type veth peer name tono netns ` + n.clients.path() + `
		link add tobe type veth peer name tono netns ` + n.backends.path() + `
		addr add ` + nodeAddr + `/24 dev tocl
		addr add ` + nodeAddr6 + `/64 dev tocl nodad
		addr add 10.2.0.1/24 dev tobe
		addr add fd00:2::1/64 dev tobe nodad
		link set tocl up
		link set tobe up`)
	for _, side := range []struct {
		host       *host
		addr, six  func(int) string
		via4, via6 string
	}{{n.clients, clientAddr, clientAddr6, nodeAddr, nodeAddr6}, {n.backends, backendAddr, backendAddr6, "10.2.0.1", "fd00:2::1"}} {
		commands := "link set lo up\n"
		for i := range addrsPerHost {
			commands += fmt.Sprintf("addr add %s/24 dev tono\naddr add %s/64 dev tono nodad\n", side.addr(i), side.six(i))
		}
		side.host.ip(commands + "link set tono up")
	}
	return n
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t}
	err := onThreadOfItsOwn(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "nobody is left on a host of the network", h.empty)
		h.ns.Close()
	})
	return h
}

// empty returns which process still has a thread on the host.
func (h *host) empty() error {
	name, err := os.Readlink(h.path())
	if err != nil {
		return err
	}
	threads, err := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if at, err := os.Readlink(thread); err == nil && at == name {
			return fmt.Errorf("%s is", thread)
		}
	}
	return nil
}

// onThreadOfItsOwn runs f on a thread that ends with it, so that f may change
// what belongs to the thread.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if unix.Gettid() == unix.Getpid() {
			// All but the first thread, which has to be kept out of the way.
			done <- onThreadOfItsOwn(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// do runs f in the host. Sockets that f makes by itself, not on goroutines that
// it starts, and processes that it starts stay there.
func (h *host) do(f func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// path names the namespace for as long as this process has it open.
func (h *host) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns.Fd()) }

// ip runs commands of iproute2, one a line, in the host.
func (h *host) ip(commands string) {
	h.t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := h.run(cmd); err != nil {
		h.t.Fatalf("ip: %v\n%s\n%s", err, commands, out)
	}
}

// run runs cmd in the host and returns its output.
func (h *host) run(cmd *exec.Cmd) (output string, err error) {
	out := &syncBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := h.do(cmd.Start); err != nil {
		return "", err
	}
	err = cmd.Wait()
	return out.String(), err
}

// listen listens on a TCP address of the host until the test ends.
func (h *host) listen(addr string) net.Listener {
	h.t.Helper()
	var ln net.Listener
	err := h.do(func() (err error) {
		ln, err = new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return ln
}

// dial connects from an address of the host to another host's.
func (h *host) dial(from, to string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	var c net.Conn
	err := h.do(func() (err error) {
		c, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// httpGet is httpGet from within the host.
func (h *host) httpGet(url string) (status int, body string, err error) {
	return httpGetBy(&http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = h.do(func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		},
	}, url)
}

// withHost has the node run on a host of a network, which asks the name server
// at the address resolver, "" for none.
func withHost(h *host, resolver string) nodeOption {
	return func(f *nodeFile) { f.host, f.resolver = h, resolver }
}

// startOnHost starts the node on its host. Its view of the file system has a
// resolv.conf of its own.
func (n *node) startOnHost() error {
	conf := filepath.Join(n.dir, "resolv.conf")
	text := "options timeout:1 attempts:1\n"
	if n.resolver != "" {
		text += "nameserver " + n.resolver + "\n"
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	return n.host.do(func() error {
		// The new process has the mounts of the thread that starts it.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return n.cmd.Start()
	})
}

// openFiles counts the files that the node's process has open.
func (n *node) openFiles() int {
	n.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(entries)
}

// leavesNoFile wants the node to have no more files open at the end of the test,
// once its mappings are deleted, than now.
func (n *node) leavesNoFile() {
	n.t.Helper()
	key := fmt.Sprintf("ports/tcp/%d", n.port(mappedPerNode-1))
	n.mustPut(key, "192.0.2.1:22") // so that what is opened once and kept is open
	n.delete(key)
	before := n.openFiles()
	n.t.Cleanup(func() {
		if n.t.Failed() {
			return
		}
		n.etcdctl("del", "--prefix", "/sluice/ports/")
		n.etcdctl("put", "/sluice/removals/confirmed", "the test is over")
		eventually(n.t, fmt.Sprintf("the node has %d files open as before", before), func() error {
			if now := n.openFiles(); now > before {
				return fmt.Errorf("there are %d", now)
			}
			return nil
		})
	})
}
