package e2e

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestPutOpensAPortAndDeleteClosesIt(t *testing.T) {
	eachPortsMode(t, testPutOpensAPortAndDeleteClosesIt)
}

func testPutOpensAPortAndDeleteClosesIt(t *testing.T, n *node) {
	backend := startLines(t, "backend")
	for i, form := range []struct{ name, value string }{
		{"plain", backend},
		{"JSON", fmt.Sprintf(`{"backend": %q, "env": "6hiflzwte2xnkroq", "service": "ssh"}`, backend)},
	} {
		t.Run(form.name, func(t *testing.T) {
			n, port := n.in(t), n.port(i)
			key := fmt.Sprintf("ports/tcp/%d", port)
			if err := dialRefused(port); err != nil {
				t.Fatalf("before the put: %v", err)
			}
			n.mustPut(key, form.value)
			s := openSession(t, port)
			s.want("backend", "hello")

			n.delete(key)
			if err := dialRefused(port); err != nil {
				t.Errorf("after the delete: %v", err)
			}
			s.wantCut()
			n.accessRecord(map[string]any{"msg": "flow", "port": port, "client": s.LocalAddr(), "end": "deleted"})
		})
	}
	if got, _ := n.metric(`sluice_l4_flows_total{end="deleted",proto="tcp"} `); got != "2" {
		t.Errorf("the metrics count %s flows that ended with their mapping, want 2", got)
	}
}

func TestRelayBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	n := startNode(t)
	atBackend := make(chan transfer, 1)
	backend := startRaw(t, func(c net.Conn) { atBackend <- exchange(c, 'b', size) })
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"backend": %q, "env": "abc", "service": "bulk"}`, backend))

	c := dial(t, n.port(0))
	client := c.LocalAddr()
	atClient := exchange(c, 'c', size)
	c.Close()
	for where, got := range map[string]struct{ is, want transfer }{
		"the backend": {<-atBackend, transferOf('c', size)},
		"the client":  {atClient, transferOf('b', size)},
	} {
		if got.is != got.want {
			t.Errorf("%s got %v, want %v", where, got.is, got.want)
		}
	}

	r := n.accessRecord(map[string]any{
		"msg": "flow", "listener": fmt.Sprintf("tcp/%d", n.port(0)), "proto": "tcp", "port": n.port(0),
		"client": client, "backend": backend, "env": "abc", "service": "bulk",
		"bytes_up": float64(size), "bytes_down": float64(size),
	})
	if end := r["end"]; end != "client_closed" && end != "backend_closed" {
		t.Errorf("the record says that the flow ended by %v, want client_closed or backend_closed", end)
	}
	if d, ok := r["duration"].(float64); !ok || d <= 0 || d > 2*patience.Seconds() {
		t.Errorf("the record says that the flow took %v seconds", r["duration"])
	}
	if when, err := time.Parse(time.RFC3339Nano, fmt.Sprint(r["time"])); err != nil || time.Since(when).Abs() > patience {
		t.Errorf("the record is of %v: %v", r["time"], err)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	toBackend := make(chan string, 1)
	for i, tc := range []struct {
		name   string
		serve  func(net.Conn)
		client func(*testing.T, *net.TCPConn)
		end    string
	}{
		{"the client first", func(c net.Conn) {
			question, err := io.ReadAll(c) // ends with the client's FIN
			fmt.Fprintf(c, "%d bytes, %v", len(question), err)
		}, func(t *testing.T, c *net.TCPConn) {
			io.WriteString(c, "question")
			c.CloseWrite()
			if answer, err := io.ReadAll(c); err != nil || string(answer) != "8 bytes, <nil>" {
				t.Errorf("the client got %q, %v", answer, err)
			}
		}, "client_closed"},
		{"the backend first", func(c net.Conn) {
			io.WriteString(c, "all I have to say")
			c.(*net.TCPConn).CloseWrite()
			rest, err := io.ReadAll(c)
			toBackend <- fmt.Sprintf("%s, %v", rest, err)
		}, func(t *testing.T, c *net.TCPConn) {
			if greeting, err := io.ReadAll(c); err != nil || string(greeting) != "all I have to say" {
				t.Errorf("the client got %q, %v", greeting, err)
			}
			io.WriteString(c, "a late word")
			c.CloseWrite()
			if got := <-toBackend; got != "a late word, <nil>" {
				t.Errorf("the backend got %s", got)
			}
		}, "backend_closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, port := n.in(t), n.port(i)
			n.mustPut(fmt.Sprintf("ports/tcp/%d", port), startRaw(t, tc.serve))
			c := dial(t, port)
			tc.client(t, c)
			n.accessRecord(map[string]any{"port": port, "client": c.LocalAddr(), "end": tc.end})
		})
	}
}

// TestLiveSessionSurvivesEdits keeps bytes going both ways while everything
// around them is edited, and what of their own mapping does not withdraw them.
func TestLiveSessionSurvivesEdits(t *testing.T) { eachPortsMode(t, testLiveSessionSurvivesEdits) }

func testLiveSessionSurvivesEdits(t *testing.T, n *node) {
	backend := startRaw(t, func(c net.Conn) {
		io.Copy(c, c)
		c.(*net.TCPConn).CloseWrite()
	})
	own := fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.mustPut(own, backend)
	c := dial(t, n.port(0))
	finish := startPump(t, c)

	for i := range 100 {
		key := fmt.Sprintf("/sluice/ports/tcp/%d", n.port(1+i%30))
		switch i % 4 {
		case 0, 1:
			n.etcdctl("put", key, backend)
		case 2:
			n.etcdctl("put", key, fmt.Sprintf(`{"backend": "127.0.0.1:%d", "limits": {"connections": %d}}`, 1+i, i))
		case 3:
			n.etcdctl("del", fmt.Sprintf("/sluice/ports/tcp/%d", n.port(i%30)))
		}
	}
	n.mustPut("routes/unrelated", `{"host": "a.x.test", "respond": {"body": "a"}}`)
	n.put("routes/unrelated", `{"host": "b.x.test"}`) // refused
	n.delete("routes/unrelated")
	n.mustPut(own, fmt.Sprintf(`{"backend": %q, "limits": {"connections": 5}, "idle_timeout": "1h", "env": "abc"}`, backend))

	moved := finish()
	if moved == 0 {
		t.Error("nothing moved during the edits")
	}
	n.accessRecord(map[string]any{"client": c.LocalAddr(), "end": "client_closed", "bytes_up": float64(moved), "bytes_down": float64(moved)})
}

func TestNewBackend(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	first, second := startLines(t, "first"), startLines(t, "second")
	// move puts a session on the first backend, gives the mapping the second
	// one, and sees that new sessions go there.
	move := func(t *testing.T, n *node, port int, onDelete string) *session {
		t.Helper()
		key := fmt.Sprintf("ports/tcp/%d", port)
		n.mustPut(key, fmt.Sprintf(`{"backend": %q, "on_delete": %q}`, first, onDelete))
		s := openSession(t, port)
		s.want("first", "hello")
		n.mustPut(key, fmt.Sprintf(`{"backend": %q, "on_delete": %q}`, second, onDelete))
		visit(t, port, "second", "hello")
		return s
	}
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		n := n.in(t)
		s := move(t, n, n.port(0), "cut")
		s.wantCut()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "deleted"})
	})
	t.Run("keep", func(t *testing.T) {
		t.Parallel()
		n := n.in(t)
		s := move(t, n, n.port(1), "keep")
		s.want("first", "still here")
		n.delete(fmt.Sprintf("ports/tcp/%d", n.port(1)))
		s.want("first", "even now")
		if err := dialRefused(n.port(1)); err != nil {
			t.Error(err)
		}
		s.Close()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "client_closed"})
	})
	t.Run("drain", func(t *testing.T) {
		t.Parallel()
		n := n.in(t)
		s := move(t, n, n.port(2), "drain 5s")
		s.want("first", "still here")
		s.wantCut()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "deleted"})
	})
}

func TestExpiry(t *testing.T) { eachPortsMode(t, testExpiry) }

func testExpiry(t *testing.T, n *node) {
	backend := startLines(t, "backend")
	port := n.port(0)
	key := fmt.Sprintf("ports/tcp/%d", port)
	until := func(when time.Time) string {
		return fmt.Sprintf(`{"backend": %q, "expires_at": %q}`, backend, when.UTC().Format(time.RFC3339Nano))
	}
	n.mustPut(key, until(time.Now().Add(time.Hour)))
	s := openSession(t, port)
	s.want("backend", "hello")

	n.put(key, until(time.Now().Add(5*time.Second))) // still to come when the node reads it
	s.wantCut()
	n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "expired"})
	eventually(t, "the expired port is closed", func() error { return dialRefused(port) })
	eventually(t, "the verdict says so", func() error {
		if v, _ := n.get("verdicts/test/" + key); !strings.Contains(v, "expired") {
			return fmt.Errorf("it is %q", v)
		}
		return nil
	})

	n.mustPut(key, until(time.Now().Add(time.Hour)))
	visit(t, port, "backend", "hello again")
	if v := n.put(key, until(time.Now().Add(-time.Second))); !strings.Contains(v, "expired") {
		t.Errorf("the verdict on a value of the past is %q", v)
	}
	if err := dialRefused(port); err != nil {
		t.Error(err)
	}
}

func TestBusyPort(t *testing.T) { eachPortsMode(t, testBusyPort, openEyed) }

func testBusyPort(t *testing.T, n *node) {
	port := n.port(0)
	holder, err := net.Listen("tcp", loopback(port))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	key := fmt.Sprintf("ports/tcp/%d", port)
	n.wantBusy(key, startLines(t, "backend"))
	if got, _ := n.metric("sluice_proxy_closed_ports "); got != "1" {
		t.Errorf("the metrics count %q closed ports, want 1", got)
	}

	holder.Close()
	eventually(t, "the verdict is applied", func() error {
		if v, _ := n.get("verdicts/test/" + key); !strings.HasPrefix(v, "applied@") {
			return fmt.Errorf("it is %q", v)
		}
		return nil
	})
	visit(t, port, "backend", "hello")
	if got, _ := n.metric("sluice_proxy_closed_ports "); got != "0" {
		t.Errorf("the metrics count %q closed ports, want 0", got)
	}
}

// wantBusy puts a mapping whose port this process holds, as its verdict must
// come to say.
func (n *node) wantBusy(key, value string) {
	n.t.Helper()
	first := n.put(key, value)
	if !strings.HasPrefix(first, "degraded: port_busy: ") || !strings.Contains(first, "(applied@") {
		n.t.Errorf("the verdict is %q, want one that says port_busy", first)
	}
	eventually(n.t, "the verdict names this process, "+ownName(n.t)+"...)", func() error {
		if v, _ := n.get("verdicts/test/" + key); !strings.HasPrefix(v, "degraded: port_busy: ") || !strings.Contains(v, ownName(n.t)) {
			return fmt.Errorf("it is %q", v)
		}
		return nil
	})
}

func TestDeadBackend(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	dead := loopback(reservePorts(t, 1)) // and nobody listens there
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), dead)
	r := n.wantRefused("127.0.0.1", n.port(0), "connect_failed")
	if text := fmt.Sprint(r["err"]); !strings.Contains(text, dead) || !strings.Contains(text, "refused") {
		t.Errorf("the record's err is %q, want it to name %s and what went wrong", text, dead)
	}

	alive := startLines(t, "alive")
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(`{"backend": [%q, %q]}`, dead, alive))
	for range 4 { // whichever target has its turn
		visit(t, n.port(1), "alive", "hello")
	}
}

func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"backend": %q, "idle_timeout": "300ms"}`, startLines(t, "backend")))
	s := openSession(t, n.port(0))
	s.wantCut()
	n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "idle"})
}

// startLines answers each line with the same line, after its name. Half-closing
// ends it.
func startLines(t *testing.T, name string) (addr string) {
	t.Helper()
	return startRaw(t, answerLines(name))
}

func answerLines(name string) func(net.Conn) {
	return func(c net.Conn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			fmt.Fprintf(c, "%s: %s\n", name, lines.Text())
		}
	}
}

// session is a client's connection to a server of startLines.
type session struct {
	*net.TCPConn
	t *testing.T
	r *bufio.Reader
}

func openSession(t *testing.T, port int) *session {
	t.Helper()
	return sessionOn(t, dial(t, port))
}

// visit opens a session for one line.
func visit(t *testing.T, port int, name, line string) {
	t.Helper()
	s := openSession(t, port)
	s.want(name, line)
	s.Close()
}

func sessionOn(t *testing.T, c *net.TCPConn) *session {
	return &session{TCPConn: c, t: t, r: bufio.NewReader(c)}
}

// want says a line and wants the server called name to answer it.
func (s *session) want(name, line string) {
	s.t.Helper()
	s.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(s, line); err != nil {
		s.t.Fatalf("say %q: %v", line, err)
	}
	if got, err := s.r.ReadString('\n'); err != nil || got != name+": "+line+"\n" {
		s.t.Fatalf("to %q the answer was %q, %v, want it from %s", line, got, err, name)
	}
}

// wantCut wants the connection to be reset: a cut must not pass for an end in
// order.
func (s *session) wantCut() {
	s.t.Helper()
	s.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(s.r); !errors.Is(err, syscall.ECONNRESET) {
		s.t.Fatalf("the session was not cut: read %q, %v", got, err)
	}
}

// dial connects to a port of the node from 127.0.0.1.
func dial(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	return dialFrom(t, "127.0.0.1", port)
}

// dialFrom connects from an address, all of 127.0.0.0/8 being this machine.
func dialFrom(t *testing.T, from string, port int) *net.TCPConn {
	t.Helper()
	c, err := tryDial(t, from, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryDial(t *testing.T, from string, port int) (*net.TCPConn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.DialContext(t.Context(), "tcp", loopback(port))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn), nil
}

// transfer is what arrived at one end of a connection.
type transfer struct {
	bytes int64
	sum   [sha256.Size]byte
	err   string
}

func (tr transfer) String() string {
	return fmt.Sprintf("%d bytes %x %s", tr.bytes, tr.sum[:4], tr.err)
}

func receive(r io.Reader) (got transfer) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	got.bytes = n
	h.Sum(got.sum[:0])
	if err != nil {
		got.err = err.Error()
	}
	return got
}

// pseudoRandom returns size bytes that depend on seed only.
func pseudoRandom(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

func transferOf(seed byte, size int64) transfer { return receive(pseudoRandom(seed, size)) }

// exchange sends the bytes of seed and receives the peer's, both at once, until
// both have closed their side.
func exchange(c net.Conn, seed byte, size int64) (got transfer) {
	var sending sync.WaitGroup
	sending.Go(func() {
		io.Copy(c, pseudoRandom(seed, size)) // what is missing shows at the peer
		c.(*net.TCPConn).CloseWrite()
	})
	got = receive(c)
	sending.Wait()
	return got
}

// startPump sends bytes to an echoing server, a few every millisecond, and
// compares what comes back, until finish is called. That waits for the last of
// them and returns how many there were.
func startPump(t *testing.T, c *net.TCPConn) (finish func() int64) {
	return startSlowPump(t, c, time.Millisecond, 16<<10)
}

// startSlowPump is startPump at another pace: up to size bytes at a time.
func startSlowPump(t *testing.T, c *net.TCPConn, every time.Duration, size int64) (finish func() int64) {
	const seed = 'p'
	stop := make(chan struct{})
	var sent, received int64
	var sendErr, receiveErr error
	var running sync.WaitGroup
	running.Go(func() {
		defer c.CloseWrite()
		tick := time.NewTicker(every)
		defer tick.Stop()
		source, sizes := rand.NewChaCha8([32]byte{seed}), rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			n, err := io.CopyN(c, source, 1+sizes.Int64N(size))
			sent += n
			if err != nil {
				sendErr = err
				return
			}
		}
	})
	running.Go(func() { received, receiveErr = compare(c, rand.NewChaCha8([32]byte{seed})) })
	return func() int64 {
		t.Helper()
		close(stop)
		running.Wait()
		if sendErr != nil || receiveErr != nil || sent != received {
			t.Errorf("sent %d bytes (%v), of which %d came back (%v)", sent, sendErr, received, receiveErr)
		}
		return received
	}
}

// compare reads got to its end, and returns how many bytes were as in want.
func compare(got, want io.Reader) (n int64, err error) {
	is, should := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		k, err := got.Read(is)
		if _, err := io.ReadFull(want, should[:k]); err != nil {
			return n, err
		}
		if string(is[:k]) != string(should[:k]) {
			return n, fmt.Errorf("a byte after %d is not what was sent", n)
		}
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
