package certs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// somebody signs the certificates of tests that have no authority.
var somebody = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

var serials struct {
	sync.Mutex
	last int64
}

// newPair makes a certificate for names that begins now, and its key, in PEM.
func newPair(t testing.TB, life time.Duration, names ...string) (chain, key []byte) {
	t.Helper()
	serials.Lock()
	serials.last++
	serial := serials.last
	serials.Unlock()
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: now, NotAfter: now.Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, somebody().Public(), somebody())
	if err != nil {
		t.Fatal(err)
	}
	blob, err := x509.MarshalPKCS8PrivateKey(somebody())
	if err != nil {
		t.Fatal(err)
	}
	return pemCert(der), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: blob})
}

// put stores a certificate as a whole.
func put(t testing.TB, store *certstest.Store, issuer, name string, life time.Duration, more ...string) {
	t.Helper()
	chain, key := newPair(t, life, append([]string{name}, more...)...)
	if err := store.PutStored(t.Context(), &certs.Stored{Issuer: issuer, Name: name, Chain: chain, Key: key, Meta: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
}

// cluster is some nodes that share a store and an authority.
type cluster struct {
	t     *testing.T
	store *certstest.Store
	nodes map[string]*member
	list  []string // the nodes that are said to live
	life  time.Duration

	mu     sync.Mutex // guards the following
	orders []order
	fail   func(node, name string) error // says why an order fails; nil: it does not
}

type member struct {
	*certs.Manager
	log  *logLines
	stop func()
}

type order struct {
	node, name string
	at         time.Time
}

func (o order) String() string { return o.node + " " + o.name }

// logLines keeps what was logged from some level on.
type logLines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *logLines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.Reset()
	return l.String()
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	c := &cluster{t: t, store: certstest.NewStore(), nodes: map[string]*member{}, list: nodes, life: 90 * 24 * time.Hour}
	for _, name := range nodes {
		c.start(name)
	}
	return c
}

// start runs one more node.
func (c *cluster) start(name string, edits ...func(*certs.Config)) *member {
	c.t.Helper()
	n := &member{log: &logLines{}}
	cfg := certs.Config{
		Store: c.store, Node: name,
		Nodes: func(context.Context) ([]string, error) { return c.list, nil },
		Providers: providers(c.t, map[string]dns.Config{"main": {
			Provider: "rfc2136", Zones: []string{"x.test"}, Settings: dns.Settings{"server": "127.0.0.1:1", "key_name": "k", "key": "c2VjcmV0"},
		}}),
		Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	m, err := certs.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	n.Manager = m
	c.nodes[name] = n
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- m.RunWith(ctx, func(ctx context.Context, of string) error { return c.order(ctx, name, of) })
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	return n
}

// close stops all nodes, which must happen within a test's bubble.
func (c *cluster) close() {
	for _, n := range c.nodes {
		n.stop()
	}
}

func (c *cluster) want(names ...string) {
	var ds []certs.Domain
	for _, name := range names {
		ds = append(ds, certs.Domain{Name: name})
	}
	for _, n := range c.nodes {
		n.SetDomains(ds)
	}
}

// order does for a node what certmagic does: under the lock of the name it looks
// whether there is anything left to do, and does it.
func (c *cluster) order(ctx context.Context, node, name string) error {
	lock := "issue_cert_" + name
	if err := c.store.Lock(ctx, lock); err != nil {
		return err
	}
	defer c.store.Unlock(ctx, lock)
	for _, s := range c.store.Stored(name) {
		leaf := s.Certificate.Leaf
		if s.Issuer == "ca" && !s.Gone && time.Until(leaf.NotAfter) > leaf.NotAfter.Sub(leaf.NotBefore)/3 {
			return nil
		}
	}
	if err := certs.OnEvent(ctx, "cert_obtaining", nil); err != nil {
		return fmt.Errorf("aborted by event handler: %w", err)
	}
	c.mu.Lock()
	c.orders = append(c.orders, order{node, name, time.Now()})
	c.mu.Unlock()
	select {
	case <-time.After(7 * time.Second): // longer than a turn
	case <-ctx.Done():
		return ctx.Err()
	}
	c.mu.Lock()
	fail := c.fail
	c.mu.Unlock()
	if fail != nil {
		if err := fail(node, name); err != nil {
			certs.OnEvent(ctx, "cert_failed", map[string]any{"error": err})
			return fmt.Errorf("obtain: %w", err)
		}
	}
	put(c.t, c.store, "ca", name, c.life)
	return nil
}

// failing has orders fail as fail says.
func (c *cluster) failing(fail func(node, name string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

// taken returns the orders since it was last called.
func (c *cluster) taken() []order {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.orders
	c.orders = nil
	return taken
}

// served checks that every node serves a certificate for a name, the same.
func (c *cluster) served(host string) *x509.Certificate {
	c.t.Helper()
	var first *x509.Certificate
	for name, n := range c.nodes {
		cert, err := n.GetCertificate(hello(host))
		if err != nil {
			c.t.Errorf("%s: %v", name, err)
			continue
		}
		if first != nil && !cert.Leaf.Equal(first) {
			c.t.Errorf("%s serves another certificate for %s than the others", name, host)
		}
		first = cert.Leaf
	}
	return first
}

// says checks that the status of a name holds all of want on every node.
func (c *cluster) says(name string, want ...string) {
	c.t.Helper()
	for node, n := range c.nodes {
		s, ok := n.Status(name)
		for _, text := range want {
			if !ok || !strings.Contains(s.String(), text) {
				c.t.Errorf("%s says of %s: %v\nwant %q in it", node, name, s, text)
			}
		}
	}
}

// after lets time pass, and all that happens in it.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
