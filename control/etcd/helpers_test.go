package etcd_test

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
)

// patience bounds every wait of these tests: it says how long one that fails
// takes, and is beyond what the busiest machine needs for one that does not.
const patience = 2 * time.Minute

// mirror is a handler that keeps what it is told, checks what is promised
// about order, and lets tests wait for states.
type mirror struct {
	t       testing.TB
	mu      sync.Mutex // guards the fields below
	keys    map[string]string
	mods    map[string]int64 // last change seen of a key
	rev     int64
	loads   int
	batches [][]etcd.Change
	moved   chan struct{} // closed and replaced at every call

	another bool // whether a load may be of another etcd

	block chan struct{} // if not nil, Change waits for it to be closed
}

func newMirror(t testing.TB) *mirror {
	return &mirror{t: t, moved: make(chan struct{}), mods: map[string]int64{}}
}

func (m *mirror) Load(rev int64, kvs []etcd.KV) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = make(map[string]string, len(kvs))
	for _, kv := range kvs {
		m.keys[kv.Key] = string(kv.Value)
		m.mods[kv.Key] = kv.ModRev
	}
	if m.another {
		m.mods = map[string]int64{}
		for _, kv := range kvs {
			m.mods[kv.Key] = kv.ModRev
		}
	} else if rev < m.rev {
		m.t.Errorf("Load at revision %d after %d", rev, m.rev)
	}
	m.rev, m.loads = rev, m.loads+1
	m.signalLocked()
}

func (m *mirror) Change(rev int64, changes []etcd.Change) {
	m.mu.Lock()
	block := m.block
	m.mu.Unlock()
	if block != nil {
		<-block
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev < m.rev || rev == m.rev && len(changes) == 0 {
		m.t.Errorf("Change(%d, %d changes) after revision %d", rev, len(changes), m.rev)
	}
	for i, ch := range changes {
		if i > 0 && ch.ModRev < changes[i-1].ModRev {
			m.t.Errorf("change of %s at %d comes after one at %d", ch.Key, ch.ModRev, changes[i-1].ModRev)
		}
		if ch.ModRev <= m.mods[ch.Key] {
			m.t.Errorf("change of %s at %d comes after its change at %d", ch.Key, ch.ModRev, m.mods[ch.Key])
		}
		m.mods[ch.Key] = ch.ModRev
		if ch.Deleted {
			delete(m.keys, ch.Key)
		} else {
			m.keys[ch.Key] = string(ch.Value)
		}
	}
	m.rev = rev
	if len(changes) > 0 {
		m.batches = append(m.batches, changes)
	}
	m.signalLocked()
}

func (m *mirror) signalLocked() {
	close(m.moved)
	m.moved = make(chan struct{})
}

// await waits until cond, called with the mutex held, holds.
func (m *mirror) await(what string, cond func() bool) {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		m.mu.Lock()
		ok, moved := cond(), m.moved
		rev, loads, keys := m.rev, m.loads, len(m.keys)
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			m.t.Fatalf("never saw %s; at revision %d after %d loads with %d keys", what, rev, loads, keys)
		}
	}
}

func (m *mirror) awaitKey(key, value string) {
	m.t.Helper()
	m.await(key+"="+value, func() bool { return m.keys[key] == value })
}

func (m *mirror) awaitRev(rev int64) {
	m.t.Helper()
	m.await("revision", func() bool { return m.rev >= rev })
}

func (m *mirror) snapshot() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.keys)
}

// dial returns a client that the test's end closes.
func dial(t testing.TB, endpoint string) *etcd.Client {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	c, err := etcd.Dial(etcd.Config{Endpoints: []string{endpoint}, Prefix: "/sluice", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// goWatch runs c.Watch until the test ends, or until stop is called.
func goWatch(t testing.TB, c *etcd.Client, m *mirror) (stop func()) {
	t.Helper()
	return goRun(t, func(ctx context.Context) error { return c.Watch(ctx, m) })
}

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

// tcpProxy stands between a client and etcd as a network that can fail.
type tcpProxy struct {
	ln net.Listener

	mu     sync.Mutex // guards the fields below
	to     string
	gate   chan struct{}
	closed bool // connections are refused
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

func newProxy(t testing.TB, endpoint string) *tcpProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tcpProxy{to: strings.TrimPrefix(endpoint, "http://"), ln: ln, gate: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(p.gate)
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		ln.Close()
		p.thaw()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *tcpProxy) endpoint() string { return "http://" + p.ln.Addr().String() }

func (p *tcpProxy) serve() {
	for {
		down, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		to := p.to
		p.mu.Unlock()
		up, err := net.Dial("tcp", to)
		p.mu.Lock()
		if p.closed || err != nil {
			p.mu.Unlock()
			down.Close()
			if err == nil {
				up.Close()
			}
			continue
		}
		p.conns[down], p.conns[up] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(up, down) })
		p.wg.Go(func() { p.copy(down, up) })
	}
}

// copy moves bytes while the gate is open.
func (p *tcpProxy) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		<-gate
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends all connections and refuses new ones until heal.
func (p *tcpProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *tcpProxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = false
}

// redirect has what connects from now on end at another etcd.
func (p *tcpProxy) redirect(endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = strings.TrimPrefix(endpoint, "http://")
}

// freeze keeps all connections, and moves nothing over them until thaw.
func (p *tcpProxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default: // frozen already
	}
}

func (p *tcpProxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}
