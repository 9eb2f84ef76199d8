package etcdstore_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// The environment of a child, which is a node of its own in a process of its own.
const (
	childEtcd = "SLUICE_TEST_ETCD"
	childKey  = "SLUICE_TEST_KEY"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(childEtcd); endpoint != "" {
		if err := playNode(endpoint, os.Getenv(childKey)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// cluster is an etcd of the test's own, and the file of its key.
type cluster struct {
	server  *etcd.Server
	raw     *clientv3.Client // as an operator's etcdctl is one
	keyFile string
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := etcd.StartServer(ctx, etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	keyFile := filepath.Join(t.TempDir(), "cluster.key")
	if err := seal.WriteFile(keyFile, []seal.Key{seal.NewKey()}, false); err != nil {
		t.Fatal(err)
	}
	return &cluster{server, raw, keyFile}
}

type store = etcdstore.Store // embedded by that name, it hides no method

// node is one node's part of it.
type node struct {
	*store
	client   *etcd.Client
	registry *prometheus.Registry
	stop     func() // its Run and its watch
}

// node returns a store that does all but watch.
func (c *cluster) node(t testing.TB, endpoint string, change func(*etcdstore.Config)) *node {
	t.Helper()
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{endpoint}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	n := &node{client: client, registry: prometheus.NewPedanticRegistry(), stop: func() {}}
	cfg := etcdstore.Config{
		Client: client, Node: "edge-1", KeyFile: c.keyFile, LockTTL: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: n.registry,
	}
	if change != nil {
		change(&cfg)
	}
	if n.store, err = etcdstore.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (c *cluster) store(t testing.TB) *node { return c.node(t, c.server.Endpoint(), nil) }

// goRun runs f until the test ends or stop is called, and waits for it.
func goRun(t testing.TB, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// pair returns a certificate for names and its key, in PEM.
func pair(t testing.TB, life time.Duration, names ...string) (chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// files returns the keys of a certificate's files.
func files(issuer, name string) (crt, key, meta string) {
	k := certmagic.StorageKeys
	return k.SiteCert(issuer, name), k.SitePrivateKey(issuer, name), k.SiteMeta(issuer, name)
}

// kvs returns what etcd has below a key of the prefix, with revisions, but for
// the mark of the cluster's key.
func (c *cluster) kvs(t testing.TB, below string) map[string]int64 {
	t.Helper()
	resp, err := c.raw.Get(t.Context(), "/sluice/"+below, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int64{}
	for _, kv := range resp.Kvs {
		found[strings.TrimPrefix(string(kv.Key), "/sluice/")] = kv.ModRevision
	}
	delete(found, "acme/shared/cluster-key")
	return found
}

// child is a node in a process of its own.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (c *cluster) child(t *testing.T) *child {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEtcd+"="+c.server.Endpoint(), childKey+"="+c.keyFile)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ch := &child{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return ch
}

// ask sends a command and returns the answer.
func (c *child) ask(words ...string) string {
	c.t.Helper()
	c.send(words...)
	return c.answer()
}

func (c *child) send(words ...string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, strings.Join(words, " ")); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) answer() string {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("the other process: %v", err)
	}
	return strings.TrimSpace(line)
}

// playNode does what it is told on standard input, and says what came of it.
func playNode(endpoint, keyFile string) error {
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{endpoint}, Prefix: "/sluice"})
	if err != nil {
		return err
	}
	s, err := etcdstore.New(etcdstore.Config{Client: client, Node: "edge-2", KeyFile: keyFile, LockTTL: 2 * time.Second})
	if err != nil {
		return err
	}
	ctx := context.Background()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		var err error
		switch words[0] {
		case "lock":
			err = s.Lock(ctx, words[1])
		case "unlock":
			err = s.Unlock(ctx, words[1])
		case "store":
			err = s.Store(ctx, words[1], []byte(words[2]))
		case "delete":
			err = s.Delete(ctx, words[1])
		case "renew":
			err = s.RenewLockLease(ctx, words[1], time.Minute)
		}
		switch {
		case errors.Is(err, etcdstore.ErrLockLost):
			fmt.Println("lost")
		case err != nil:
			fmt.Println("error:", strings.ReplaceAll(err.Error(), "\n", " "))
		default:
			fmt.Println("ok")
		}
	}
	return nil
}
