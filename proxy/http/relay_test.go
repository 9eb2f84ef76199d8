package http_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/l4/loop"
	"github.com/remotegpu/sluice/router"
)

// joinLoops has the rig's upgraded pairs relayed by event loops, as the engine
// does it.
func (r *rig) joinLoops(cfg *proxyhttp.Config) {
	var err error
	r.loops, err = l4.New(l4.Config{Dialer: cfg.Dialer, HTTP: func(c net.Conn, _ *router.Mapping, _ bool) { c.Close() }})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.Relay = func(u proxyhttp.Upgraded) (proxyhttp.Relayed, bool, error) {
		flow, taken, err := r.loops.Join(l4.Joint{
			Client: u.Client, Backend: u.Backend, ToBackend: u.ToBackend, ToClient: u.ToClient, IdleTimeout: u.IdleTimeout,
			Ended: func(e loop.Report) {
				u.Ended(proxyhttp.RelayEnd{
					Up: e.Up, Down: e.Down, Idle: e.End == loop.Idle, Stalled: e.End == loop.Stalled, Stopped: e.End == loop.Stopped,
				})
			},
		})
		return relayedFlow{flow}, taken, err
	}
}

type relayedFlow struct{ flow loop.Flow }

func (r relayedFlow) Moved() (up, down int64) {
	up, down, _ = r.flow.Bytes()
	return up, down
}

func (r relayedFlow) Cut() { r.flow.Cut(nil) }

// upgraded returns a client's connection that has changed protocols, and the
// backend's. taken says how many pairs the loops took.
func upgraded(t *testing.T, options ...rigOption) (r *rig, client, backend *net.TCPConn, taken *atomic.Int64) {
	conns, over := make(chan *net.TCPConn, 1), make(chan struct{})
	addr := switching(t, func(c *net.TCPConn, _ *bufio.Reader) {
		conns <- c
		<-over
	})
	t.Cleanup(func() { close(over) }) // before the backend waits for its connections
	taken = new(atomic.Int64)
	counted := func(cfg *proxyhttp.Config, _ *rig) {
		relay := cfg.Relay
		cfg.Relay = func(u proxyhttp.Upgraded) (proxyhttp.Relayed, bool, error) {
			relayed, is, err := relay(u)
			if is {
				taken.Add(1)
			}
			return relayed, is, err
		}
	}
	r = newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, append(options, counted)...)
	client = r.dialClear().(*net.TCPConn)
	client.SetDeadline(time.Now().Add(patience))
	io.WriteString(client, upgradeRequest)
	readHead(t, client)
	backend = soon(t, "the backend's connection", conns)
	backend.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(client, make([]byte, len("early "))); err != nil {
		t.Fatal(err)
	}
	return r, client, backend, taken
}

// carry sends text from one end to the other.
func carry(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q, %v, want %q", got, err, text)
	}
}

// TestRelayedByLoops has each end of a pair that the loops relay end it, in each
// way there is.
func TestRelayedByLoops(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(from *net.TCPConn)
		want error
	}{
		{"close", func(from *net.TCPConn) { from.CloseWrite() }, io.EOF},
		{"reset", func(from *net.TCPConn) { from.SetLinger(0); from.Close() }, syscall.ECONNRESET},
	} {
		for _, byClient := range []bool{true, false} {
			name := tc.name + " by the backend"
			if byClient {
				name = tc.name + " by the client"
			}
			t.Run(name, func(t *testing.T) {
				r, client, backend, taken := upgraded(t)
				carry(t, client, backend, "there")
				carry(t, backend, client, "and back")
				from, to := client, backend
				if !byClient {
					from, to = backend, client
				}
				tc.end(from)
				if n, err := to.Read(make([]byte, 1)); n != 0 || !errors.Is(err, tc.want) {
					t.Errorf("the other end read %d bytes, %v, want %v", n, err, tc.want)
				}
				up, down := 5.0, 14.0
				if tc.want == io.EOF { // the other direction goes on
					carry(t, to, from, "late")
					to.CloseWrite()
					if byClient {
						down += 4
					} else {
						up += 4
					}
				}
				if record := r.log.wait(t, "/up"); record["end"] != "done" || record["bytes_up"] != up || record["bytes_down"] != down {
					t.Errorf("log record %v, want %v bytes up and %v down", record, up, down)
				}
				if taken.Load() != 1 {
					t.Error("the loops did not take the pair")
				}
			})
		}
	}
}

// TestRelayedEndsAreTold has what relays end pairs for reasons of its own.
func TestRelayedEndsAreTold(t *testing.T) {
	for want, tc := range map[string]struct {
		end proxyhttp.RelayEnd
		err error
	}{
		"done": {}, "idle": {end: proxyhttp.RelayEnd{Idle: true}}, "stalled": {end: proxyhttp.RelayEnd{Stalled: true}},
		"shutdown": {end: proxyhttp.RelayEnd{Stopped: true}}, "node_exhausted": {err: errors.New("too many")},
	} {
		addr := switching(t, func(_ *net.TCPConn, in *bufio.Reader) { io.Copy(io.Discard, in) })
		r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(cfg *proxyhttp.Config, _ *rig) {
			cfg.Relay = func(u proxyhttp.Upgraded) (proxyhttp.Relayed, bool, error) {
				u.Client.Close()
				u.Backend.Close()
				if tc.err == nil {
					u.Ended(tc.end)
				}
				return relayedFlow{}, true, tc.err
			}
		})
		c := r.dialClear()
		io.WriteString(c, upgradeRequest)
		readHead(t, c)
		if record := r.log.wait(t, "/up"); record["end"] != want {
			t.Errorf("log record %v, want end %s", record, want)
		}
	}
}

// TestNotTakenByLoops upgrades once the loops have stopped: the exchange's own
// goroutine copies then.
func TestNotTakenByLoops(t *testing.T) {
	r, client, backend, taken := upgraded(t, func(_ *proxyhttp.Config, r *rig) { r.loops.Shutdown(t.Context()) })
	carry(t, client, backend, "there")
	carry(t, backend, client, "and back")
	client.Close()
	backend.CloseWrite()
	if record := r.log.wait(t, "/up"); record["end"] != "done" || record["bytes_up"] != 5.0 || record["bytes_down"] != 14.0 {
		t.Errorf("log record %v", record)
	}
	if taken.Load() != 0 {
		t.Error("loops that have stopped took a pair")
	}
}
