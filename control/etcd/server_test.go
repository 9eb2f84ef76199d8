package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/control/etcd"
)

// childRole and childDir, in the environment, make the test binary play one of
// the children below: etcd leaves goroutines behind when it fails, and the
// check for leaks must not have to overlook them.
const (
	childRole = "SLUICE_TEST_CHILD"
	childDir  = "SLUICE_TEST_DIR"
)

func TestMain(m *testing.M) {
	children := map[string]func(dir string) error{"damaged": startOnDamagedData, "full": writeToFullDisk}
	if child := children[os.Getenv(childRole)]; child != nil {
		fmt.Println(child(os.Getenv(childDir)))
		return
	}
	etcd.ElectSooner()
	goleak.VerifyTestMain(m)
}

// runChild returns what the child of that role says.
func runChild(t *testing.T, role, dir string) string {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childRole+"="+role, childDir+"="+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("child %s: %v\n%s", role, err, out)
	}
	return string(out)
}

// syncBuffer is a bytes.Buffer for a logger of several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a server that the test's end closes.
func start(t testing.TB, cfg etcd.ServerConfig) *etcd.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	srv, err := etcd.StartServer(ctx, cfg)
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return srv
}

// startFast starts a server that does not wait for the disk.
func startFast(t testing.TB) *etcd.Server {
	t.Helper()
	return start(t, etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
}

// raw returns a plain client, as an operator's etcdctl is one.
func raw(t testing.TB, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("client of %s: %v", endpoint, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestServerKeepsItsDataAndItsLogClean(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	var log syncBuffer
	cfg := etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(&log, nil))}
	srv := start(t, cfg)
	c := raw(t, srv.Endpoint())
	if _, err := c.Put(t.Context(), "/sluice/ports/tcp/20022", "127.0.0.1:22"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("data directory has mode %o, want 700", got)
	}
	c.Close()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.ListenClient = strings.TrimPrefix(srv.Endpoint(), "http://")
	again := start(t, cfg)
	if again.Endpoint() != srv.Endpoint() {
		t.Errorf("endpoint after the restart is %s, want %s", again.Endpoint(), srv.Endpoint())
	}
	got, err := raw(t, again.Endpoint()).Get(t.Context(), "/sluice/ports/tcp/20022")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("after a restart: %v, %v, want the key", got, err)
	}
	for line := range strings.Lines(log.String()) {
		// A busy machine is told of, and may be.
		if !strings.Contains(line, "slow fdatasync") && !strings.Contains(line, "took too long") {
			t.Errorf("start, stop and restart logged %s", line)
		}
	}
}

func TestServerClosesUnderAnOpenWatch(t *testing.T) {
	srv := startFast(t)
	c := raw(t, srv.Endpoint())
	ch := c.Watch(t.Context(), "/sluice/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-ch
	begin := time.Now()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 6*time.Second {
		t.Errorf("Close took %v with a watch open, want less than the 7 s of etcd's own grace", took)
	}
}

func TestServerRefusesInWords(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ours := t.TempDir()
	start(t, etcd.ServerConfig{Dir: ours, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	foreign := t.TempDir()
	startForeign(t, foreign, "127.0.0.1:0")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name, dir, listen string
		want              []string
	}{
		{"port taken", t.TempDir(), taken.Addr().String(), []string{"another program listens on " + taken.Addr().String(), "ss -ltnp", "address already in use"}},
		{"directory taken by us", ours, "127.0.0.1:0", []string{ours, "in use by another process", "fuser"}},
		{"directory taken by an etcd", foreign, "127.0.0.1:0", []string{foreign, "in use by another process", "fuser"}},
		{"not a directory", file, "127.0.0.1:0", []string{"create etcd's data directory", file}},
		{"not on loopback", t.TempDir(), "0.0.0.0:2379", []string{"not on loopback", "127.0.0.1:<port>"}},
		{"a name", t.TempDir(), "edge.example.com:2379", []string{"not on loopback"}},
		{"no port", t.TempDir(), "127.0.0.1", []string{"write host:port"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: test.dir, ListenClient: test.listen, UnsafeNoFsync: true})
			if err == nil {
				srv.Close()
				t.Fatal("started, want an error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// startForeign starts an etcd that knows nothing of our lock, with passwords
// that are quick to check, and returns its endpoint and how to stop it.
func startForeign(t *testing.T, dir, listen string) (endpoint string, stop func()) {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: listen}}
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	<-e.Server.ReadyNotify()
	return "http://" + e.Clients[0].Addr().String(), stop
}

func TestServerStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	_, err := etcd.StartServer(ctx, etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("StartServer with an ended context: %v, want an error that says so", err)
	}
	// What was left behind clears the way for the next one.
	deadline := time.After(patience)
	for {
		srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
		if err == nil {
			srv.Close()
			return
		}
		select {
		case <-deadline:
			t.Fatalf("the directory never became free: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestServerRefusesDamagedData(t *testing.T) {
	dir := t.TempDir()
	cfg := etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv, err := etcd.StartServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	wals, err := filepath.Glob(filepath.Join(dir, "member", "wal", "0*.wal"))
	if err != nil || len(wals) != 1 {
		t.Fatalf("write-ahead log: %v, %v, want one file", wals, err)
	}
	data, err := os.ReadFile(wals[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range data[:4096] {
		data[i] ^= 0x5a
	}
	if err := os.WriteFile(wals[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	got := runChild(t, "damaged", dir)
	if want := "start embedded etcd in " + dir; !strings.Contains(got, want) {
		t.Errorf("on a damaged log: %q, want an error that contains %q", got, want)
	}
}

func startOnDamagedData(dir string) error {
	_, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0"})
	return err
}

// A disk that takes no more writes ends etcd, and must not end the edge.
func TestServerFailsAloneOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	got := runChild(t, "full", dir)
	for _, want := range []string{"embedded etcd in " + dir + " failed", "file too large", "still here"} {
		if !strings.Contains(got, want) {
			t.Errorf("after the disk was full the process said %q, want it to say %q", got, want)
		}
	}
}

func writeToFullDisk(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	srv, err := etcd.StartServer(ctx, etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	// A limit on the size of files is the full disk that needs no root.
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		return err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	go func() { _, _ = c.Put(ctx, "/sluice/ports/tcp/20022", "127.0.0.1:22") }()
	err = srv.Wait(ctx)
	fmt.Println("still here")
	return err
}

// TestServerTakesNoPortButTheOneItWasGiven guards mapped ports: what the kernel
// picks for a listener lies where they do.
func TestServerTakesNoPortButTheOneItWasGiven(t *testing.T) {
	before := listeningPorts(t)
	s := start(t, etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0"})
	u, err := url.Parse(s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	var opened []string
	for port := range listeningPorts(t) {
		if !before[port] {
			opened = append(opened, port)
		}
	}
	if want := []string{u.Port()}; !slices.Equal(opened, want) {
		t.Errorf("listens on ports %v, want %v", opened, want)
	}
}

// listeningPorts returns the TCP ports that this process listens on.
func listeningPorts(t *testing.T) map[string]bool {
	t.Helper()
	mine := map[string]bool{} // inodes
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if inode, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
			mine[strings.TrimSuffix(inode, "]")] = true
		}
	}
	ports := map[string]bool{}
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != "0A" || !mine[fields[9]] {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			ports[strconv.FormatUint(port, 10)] = true
		}
	}
	return ports
}
