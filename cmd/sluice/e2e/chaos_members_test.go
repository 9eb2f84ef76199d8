package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Two networks: members and nodes talk in the one, clients and nodes in the
// other. Hosts 1 to 3 are members or nodes.
func memberAddr(i int) string  { return fmt.Sprintf("10.3.0.%d", 11+i) }
func controlAddr(i int) string { return fmt.Sprintf("10.3.0.%d", 21+i) } // of node i
func publicAddr(i int) string  { return fmt.Sprintf("10.4.0.%d", 21+i) } // of node i

const (
	operatorAddr     = "10.3.0.1"
	chaosBackendAddr = "10.4.0.1" // where the clients are, too
)

// chaosNetwork is the hosts of three members and three nodes, that of the
// operator and that of clients and backends.
type chaosNetwork struct {
	operator, clients *host
	members, nodes    [3]*host
}

func newChaosNetwork(t *testing.T) *chaosNetwork {
	t.Helper()
	n := &chaosNetwork{operator: newHost(t), clients: newHost(t)}
	for host, addr := range map[*host]string{n.operator: operatorAddr, n.clients: chaosBackendAddr} {
		host.ip("link set lo up\nlink add br0 type bridge\naddr add " + addr + "/24 dev br0\nlink set br0 up")
	}
	for i := range n.members {
		n.members[i], n.nodes[i] = newHost(t), newHost(t)
		n.operator.plug(n.members[i], fmt.Sprintf("member%d", i), "control0", memberAddr(i))
		n.operator.plug(n.nodes[i], fmt.Sprintf("node%d", i), "control0", controlAddr(i))
		n.clients.plug(n.nodes[i], fmt.Sprintf("node%d", i), "public0", publicAddr(i))
	}
	return n
}

// plug connects another host to the bridge of h.
func (h *host) plug(other *host, here, there, addr string) {
	h.t.Helper()
	h.ip("link add " + here + " type veth peer name " + there + " netns " + other.path() + "\nlink set " + here + " master br0 up")
	other.ip("link set lo up\naddr add " + addr + "/24 dev " + there + "\nlink set " + there + " up")
}

// lose has everything vanish, without a word, that h sends to these addresses
// in the network of members.
func (h *host) lose(addrs ...string) {
	h.t.Helper()
	var commands strings.Builder
	for _, addr := range addrs {
		fmt.Fprintf(&commands, "neigh replace %s lladdr 02:00:00:00:00:01 dev control0 nud permanent\n", addr)
	}
	h.ip(commands.String())
}

// find has h send to these addresses again.
func (h *host) find(addrs ...string) {
	h.t.Helper()
	var commands strings.Builder
	for _, addr := range addrs {
		fmt.Fprintf(&commands, "neigh del %s dev control0\n", addr)
	}
	h.ip(commands.String())
}

// member is one of three etcd servers, on a small disk of its own.
type member struct {
	t      *testing.T
	i      int
	host   *host
	dir    string // a tmpfs
	output *syncBuffer
	cmd    *exec.Cmd
	exited chan struct{}
	client *clientv3.Client // to this member alone
}

// A member's disk holds two logs of 64 MB, as etcd sets aside, and its quota is
// below what is left.
const (
	memberDisk  = 320 << 20
	memberQuota = 64 << 20
)

func startChaosMembers(t *testing.T, network *chaosNetwork) [3]*member {
	t.Helper()
	var all [3]*member
	for i := range all {
		m := &member{t: t, i: i, host: network.members[i], dir: t.TempDir(), output: &syncBuffer{}}
		if err := unix.Mount("tmpfs", m.dir, "tmpfs", 0, fmt.Sprintf("size=%d", memberDisk)); err != nil {
			t.Fatalf("mount a small disk for a member: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				out := m.output.String()
				t.Logf("member %d said last:\n%s", i, out[max(0, len(out)-4000):])
			}
		})
		all[i] = m
		m.start(0)
		t.Cleanup(m.kill)
	}
	for i, m := range all {
		m.client = network.etcdClient(t, memberAddr(i))
	}
	return all
}

// etcdClient returns a client of members, on the operator's host.
func (n *chaosNetwork) etcdClient(t *testing.T, addrs ...string) *clientv3.Client {
	t.Helper()
	var endpoints []string
	for _, addr := range addrs {
		endpoints = append(endpoints, "http://"+net.JoinHostPort(addr, "2379"))
	}
	dial := func(ctx context.Context, addr string) (c net.Conn, err error) {
		err = n.operator.do(func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
			return err
		})
		return c, err
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// start starts the member. To it, this machine has been up for so much longer
// than it has: its monotonic clock has jumped since its last life.
func (m *member) start(jump time.Duration) {
	m.t.Helper()
	var cluster []string
	for i := range 3 {
		cluster = append(cluster, fmt.Sprintf("m%d=http://%s:2380", i, memberAddr(i)))
	}
	addr := memberAddr(m.i)
	args := []string{
		"etcd", "--name", fmt.Sprintf("m%d", m.i), "--data-dir", filepath.Join(m.dir, "data"),
		"--listen-client-urls", "http://" + addr + ":2379", "--advertise-client-urls", "http://" + addr + ":2379",
		"--listen-peer-urls", "http://" + addr + ":2380", "--initial-advertise-peer-urls", "http://" + addr + ":2380",
		"--initial-cluster", strings.Join(cluster, ","), "--quota-backend-bytes", fmt.Sprint(memberQuota),
		"--snapshot-count", "2000", // so that members that come back get snapshots as well
	}
	if jump != 0 {
		seconds := fmt.Sprint(int64(jump.Seconds()))
		args = append([]string{"unshare", "--time", "--monotonic", seconds, "--boottime", seconds, "--fork", "--kill-child"}, args...)
	}
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.host.do(m.cmd.Start); err != nil {
		m.t.Fatal(err)
	}
	m.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait() // it is to be killed
		close(exited)
	}(m.cmd, m.exited)
}

func (m *member) running() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// signal sends a signal to the member's processes.
func (m *member) signal(s syscall.Signal) {
	m.t.Helper()
	if err := syscall.Kill(-m.cmd.Process.Pid, s); err != nil && m.running() {
		m.t.Errorf("signal %v to member %d: %v", s, m.i, err)
	}
}

// kill ends the member as a power failure would, its disk apart.
func (m *member) kill() {
	m.signal(syscall.SIGKILL)
	<-m.exited
}

// fillDisk leaves the member no space but what it has set aside.
func (m *member) fillDisk() {
	m.t.Helper()
	f, err := os.Create(filepath.Join(m.dir, "filler"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeroes{}); !errors.Is(err, syscall.ENOSPC) {
		m.t.Errorf("filling the disk of member %d: %v", m.i, err)
	}
}

func (m *member) freeDisk() {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.dir, "filler")); err != nil {
		m.t.Error(err)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// status asks the member itself, for a moment.
func (m *member) status() (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
	defer cancel()
	return m.client.Status(ctx, "http://"+net.JoinHostPort(memberAddr(m.i), "2379"))
}
