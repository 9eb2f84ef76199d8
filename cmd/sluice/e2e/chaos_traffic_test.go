package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What stays mapped all through the chaos, on every node: nobody may notice
// anything of it.
const (
	chaosFirstPort = 20000
	chaosTCP       = 12 // mappings with long sessions, from chaosFirstPort on
	chaosUDP       = 4
	chaosRoutes    = 6
	chaosVolatile  = 40 // mappings that come and go, above those
	chaosHTTP      = 8080
)

// traffic is what clients do meanwhile.
type traffic struct {
	t       *testing.T
	network *chaosNetwork
	echo    string // addresses of backends
	lines   [2]string
	udp     string

	doing  atomic.Pointer[string] // what is being done to the cluster
	failed atomic.Int32
	stop   chan struct{}
	quit   func()          // closes stop
	rounds [3]atomic.Int64 // that the prober of each node has made
	moved  atomic.Int64    // bytes that came back on long sessions

	lacksFirst atomic.Bool // the first mapping is deleted, or about to be
	running    sync.WaitGroup

	mu    sync.Mutex // guards the following fields
	conns []net.Conn // the long sessions
	// ends are those that may be cut, and whether they have been.
	ends map[string]bool
}

func startTraffic(t *testing.T, network *chaosNetwork) *traffic {
	t.Helper()
	tr := &traffic{t: t, network: network, stop: make(chan struct{})}
	tr.quit = sync.OnceFunc(func() { close(tr.stop) })
	tr.note("nothing")
	listen := func() net.Listener { return network.clients.listen(chaosBackendAddr + ":0") }
	tr.echo = serveRaw(t, listen(), echoAll)
	tr.lines = [2]string{serveRaw(t, listen(), answerLines("one")), serveRaw(t, listen(), answerLines("two"))}
	var pc net.PacketConn
	err := network.clients.do(func() (err error) {
		pc, err = net.ListenPacket("udp", chaosBackendAddr+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.udp = pc.LocalAddr().String()
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	return tr
}

// stable are the keys that never lose their values, by key.
func (tr *traffic) stable() map[string]string {
	keys := map[string]string{}
	for i := range chaosTCP {
		keys[fmt.Sprintf("ports/tcp/%d", chaosFirstPort+i)] = fmt.Sprintf(`{"backend": %q, "idle_timeout": "1h"}`, tr.echo)
	}
	for i := range chaosUDP {
		keys[fmt.Sprintf("ports/udp/%d", chaosFirstPort+i)] = tr.udp
	}
	for i := range chaosRoutes {
		keys[fmt.Sprintf("routes/stable%d", i)] = fmt.Sprintf(`{"host": "s%d.test", "ports": %d, "respond": {"body": "route %d"}}`, i, chaosHTTP, i)
	}
	return keys
}

func (tr *traffic) note(doing string) { tr.doing.Store(&doing) }

// errorf reports what a client saw, and what was being done then; the first few.
func (tr *traffic) errorf(format string, args ...any) {
	if tr.failed.Add(1) <= 20 {
		tr.t.Errorf("during %q: %s", *tr.doing.Load(), fmt.Sprintf(format, args...))
	}
}

// begin opens the long sessions and begins to probe.
func (tr *traffic) begin() {
	tr.t.Cleanup(tr.abort)
	for node := range tr.network.nodes {
		for i := range chaosTCP {
			c, err := tr.network.clients.dial("", at(publicAddr(node), chaosFirstPort+i))
			if err != nil {
				tr.t.Fatal(err)
			}
			tr.pump(c, sessionName(node, chaosFirstPort+i))
		}
		tr.running.Go(func() { tr.probe(node) })
	}
}

// abort ends what a failed test leaves.
func (tr *traffic) abort() {
	tr.failed.Store(1000) // what is said of this would hide why
	tr.quit()
	tr.mu.Lock()
	for _, c := range tr.conns {
		c.Close()
	}
	tr.mu.Unlock()
	tr.running.Wait()
}

// end has the long sessions end in order, and wants nothing to be missing.
func (tr *traffic) end() {
	tr.quit()
	tr.running.Wait()
	if tr.moved.Load() == 0 {
		tr.t.Error("nothing moved on the long sessions")
	}
}

func sessionName(node, port int) string {
	return fmt.Sprintf("node %d's session on port %d", node, port)
}

// mayEnd says that a session is about to lose its mapping.
func (tr *traffic) mayEnd(session string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.ends == nil {
		tr.ends = map[string]bool{}
	}
	tr.ends[session] = false
}

func (tr *traffic) hasEnded(session string) bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.ends[session]
}

// noteEnd notes the end of a session, and reports whether it was to be.
func (tr *traffic) noteEnd(session string) (meant bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if _, meant = tr.ends[session]; meant {
		tr.ends[session] = true
	}
	return meant
}

// pump sends on a session until the end, and wants every byte back.
func (tr *traffic) pump(c *net.TCPConn, what string) {
	tr.mu.Lock()
	tr.conns = append(tr.conns, c)
	tr.mu.Unlock()
	var seed [32]byte
	copy(seed[:], what)
	var sent atomic.Int64
	tr.running.Go(func() {
		defer c.CloseWrite()
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		source, sizes := rand.NewChaCha8(seed), rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-tr.stop:
				return
			case <-tick.C:
			}
			n := 1 + sizes.Int64N(2000)
			sent.Add(n)
			if _, err := io.CopyN(c, source, n); err != nil {
				if tr.noteEnd(what) {
					return
				}
				tr.errorf("%s was cut: %v", what, err)
				return
			}
		}
	})
	tr.running.Go(func() {
		defer c.Close()
		got, err := compare(c, rand.NewChaCha8(seed))
		tr.moved.Add(got)
		select {
		case <-tr.stop:
		default:
			if tr.noteEnd(what) {
				return
			}
		}
		if err != nil || got != sent.Load() {
			tr.errorf("%s ended after %d of %d bytes: %v", what, got, sent.Load(), err)
		}
	})
}

// probe makes a new connection to each of a node's stable mappings and routes in
// turn.
func (tr *traffic) probe(node int) {
	tick := time.NewTicker(40 * time.Millisecond)
	defer tick.Stop()
	for round := 0; ; round++ {
		for i := range chaosTCP + chaosUDP + chaosRoutes {
			select {
			case <-tr.stop:
				return
			case <-tick.C:
			}
			what, err := tr.probeOne(node, i, fmt.Sprintf("round %d of %d", round, i))
			if err != nil && !(i == 0 && tr.lacksFirst.Load()) {
				tr.errorf("node %d does not answer at %s: %v", node, what, err)
			}
		}
		tr.rounds[node].Add(1)
	}
}

func (tr *traffic) probeOne(node, i int, text string) (what string, err error) {
	switch {
	case i < chaosTCP:
		what = fmt.Sprintf("tcp %d", chaosFirstPort+i)
		return what, tr.ask(at(publicAddr(node), chaosFirstPort+i), text+"\n", text)
	case i < chaosTCP+chaosUDP:
		i -= chaosTCP
		what = fmt.Sprintf("udp %d", chaosFirstPort+i)
		return what, tr.askUDP(at(publicAddr(node), chaosFirstPort+i), text)
	}
	i -= chaosTCP + chaosUDP
	what = fmt.Sprintf("route %d", i)
	return what, tr.ask(at(publicAddr(node), chaosHTTP), fmt.Sprintf("GET / HTTP/1.1\r\nHost: s%d.test\r\n\r\n", i), "HTTP/1.1 200 ")
}

// ask connects, says a text and wants the answer to begin so.
func (tr *traffic) ask(addr, text, want string) error {
	c, err := tr.network.clients.dial("", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if !strings.HasPrefix(line, want) {
		return fmt.Errorf("the answer is %q, %v", line, err)
	}
	return nil
}

// askUDP sends a datagram and wants it back. Datagrams may get lost: it sends
// again.
func (tr *traffic) askUDP(addr, text string) error {
	var c net.Conn
	err := tr.network.clients.do(func() (err error) {
		c, err = net.Dial("udp", addr)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 100)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		io.WriteString(c, text)
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(buf); err == nil {
			if string(buf[:n]) != text {
				return fmt.Errorf("the answer is %q", buf[:n])
			}
			return nil
		}
	}
	return err
}

// another waits until every node has been asked for everything since now.
func (tr *traffic) another() {
	tr.t.Helper()
	var since [3]int64
	for i := range since {
		since[i] = tr.rounds[i].Load()
	}
	eventually(tr.t, "clients have been all around during "+*tr.doing.Load(), func() error {
		for i := range since {
			// The round under way began before.
			if tr.rounds[i].Load() < since[i]+2 {
				return fmt.Errorf("not at node %d", i)
			}
		}
		return nil
	})
}
