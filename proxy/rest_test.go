package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

// rest has e rest until the function returned is called.
func (e *edge) rest(t *testing.T) (wake func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e.BeginRest()
	done := make(chan struct{})
	go func() { defer close(done); e.Rest(ctx) }()
	wake = func() { cancel(); <-done }
	t.Cleanup(wake)
	return wake
}

func refused(port int) error {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err == nil {
		c.Close()
		return fmt.Errorf("port %d accepts", port)
	}
	return nil
}

func udpRefused(t *testing.T, port int) {
	t.Helper()
	c := dialUDP(t, "127.0.0.1", port)
	eventually(t, "the UDP port is closed", func() error {
		c.Write([]byte("anybody there?"))
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Read(make([]byte, 64)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("read: %w", err)
		}
		return nil
	})
}

// udpServes waits until a UDP port to an echo answers. A port of its own socket that
// was about to close when its mapping came back closes first, and opens anew.
func udpServes(t *testing.T, port int) {
	t.Helper()
	c := dialUDP(t, "127.0.0.1", port)
	eventually(t, "the UDP port is open", func() error {
		c.Write([]byte("anybody there?"))
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 64))
		return err
	})
}

// TestRestKeepsFlowsAndTakesNone drains an engine and brings it back, over and
// over: what is under way goes on, nothing new begins, edits take effect.
func TestRestKeepsFlowsAndTakesNone(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		tcp, late, udp := freePort(t), freePort(t), freePort(t)
		e.put(t, tcp, fmt.Sprintf("%q", greeter(t, "before")))
		e.putProto(t, router.UDP, udp, fmt.Sprintf("%q", echoUDP(t)))
		for round := range 3 {
			c := greeted(t, tcp)
			session := dialUDP(t, "127.0.0.1", udp)
			echo(t, session, "before")

			wake := e.rest(t)
			if err := refused(tcp); err != nil {
				t.Error(err)
			}
			stranger := dialUDP(t, "127.0.0.2", udp)
			stranger.Write([]byte("let me in"))
			echo(t, session, "meanwhile")
			stranger.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, err := stranger.Read(make([]byte, 64)); err == nil {
				t.Errorf("a client that came meanwhile got %d bytes", n)
			}
			if n := e.Left(); n < 2 {
				t.Errorf("%d flows are left, want those of before", n)
			}
			// An edit meanwhile opens nothing, and is in force afterwards.
			e.put(t, late, fmt.Sprintf("%q", greeter(t, fmt.Sprint("round ", round))))
			if err := refused(late); err != nil {
				t.Error(err)
			}
			if err, told := e.state(fmt.Sprintf("ports/tcp/%d", late)); told && err != nil {
				t.Errorf("the port of a node that rests: %v", err)
			}
			wake()
			if got, err := greeting(tcp); got != "before" {
				t.Errorf("afterwards: %q, %v", got, err)
			}
			if got, err := greeting(late); got != fmt.Sprint("round ", round) {
				t.Errorf("of the edit: %q, %v", got, err)
			}
			echo(t, session, "afterwards")
			stranger = dialUDP(t, "127.0.0.2", udp)
			echo(t, stranger, "now")
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				t.Error("the connection of before has ended")
			}
			e.builder.DeleteMapping(router.TCP, late)
			e.apply()
		}
	})
}

// TestRestOfAPortWithoutSessions sees a UDP port refuse while the engine rests.
func TestRestOfAPortWithoutSessions(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		port := freePort(t)
		e.putProto(t, router.UDP, port, fmt.Sprintf("%q", echoUDP(t)))
		wake := e.rest(t)
		udpRefused(t, port)
		wake()
		udpServes(t, port)
	})
}

// TestRestSendsHTTPClientsAway has HTTP/1.1, HTTP/2 and HTTP/3 clients go in order
// and come back.
func TestRestSendsHTTPClientsAway(t *testing.T) {
	certificate, roots := selfSigned(t)
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprint("before it listens ", early), func(t *testing.T) {
			e := newEdge(t, func(cfg *proxy.Config) {
				cfg.HTTPS = []proxy.Listener{{Address: address}}
				cfg.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }}
			})
			rest := func() (wake func()) { return e.rest(t) }
			if early {
				wake := e.rest(t)
				rest = func() func() { return wake }
			}
			if err := e.Listen(t.Context()); err != nil {
				t.Fatal(err)
			}
			trust := &tls.Config{RootCAs: roots, ServerName: "ssh.example.com"}
			h1 := &http.Transport{TLSClientConfig: trust.Clone(), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
			h2 := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}
			h3 := &http3.Transport{TLSClientConfig: trust.Clone()}
			defer h1.CloseIdleConnections()
			defer h2.CloseIdleConnections()
			defer h3.Close()
			health := func(over http.RoundTripper) error {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "GET", "https://"+address+"/health-proxy", nil)
				if err != nil {
					return err
				}
				resp, err := over.RoundTrip(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("%s %s", resp.Status, strings.TrimSpace(string(body)))
				}
				return err
			}
			all := map[string]http.RoundTripper{"h1": h1, "h2": h2, "h3": h3}
			for round := range 2 {
				if !early || round > 0 {
					for name, over := range all {
						eventually(t, name+" is served", func() error { return health(over) })
					}
					if round > 0 && early {
						break
					}
				}
				wake := rest()
				for name, over := range all {
					eventually(t, name+" is sent away", func() error {
						if health(over) == nil {
							return errors.New("it is served")
						}
						return nil
					})
				}
				if err := refused(port); err != nil {
					t.Error(err)
				}
				wake()
			}
			for name, over := range all {
				eventually(t, name+" is served again", func() error { return health(over) })
			}
		})
	}
}

// TestShutdownOfAnEngineThatRests ends both.
func TestShutdownOfAnEngineThatRests(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		e.put(t, freePort(t), fmt.Sprintf("%q", greeter(t, "hello")))
		e.rest(t)
		e.Shutdown(context.Background())
		e.BeginRest()
	})
}

// TestListenerTakenMeanwhile waits for a port that somebody else took.
func TestListenerTakenMeanwhile(t *testing.T) {
	port := freePort(t)
	e := newEdge(t, func(cfg *proxy.Config) { cfg.HTTP = []proxy.Listener{{Address: fmt.Sprintf("127.0.0.1:%d", port)}} })
	if err := e.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.BeginRest()
	var thief net.Listener
	eventually(t, "the port is free", func() (err error) {
		thief, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
	cancel()
	done := make(chan struct{})
	go func() { defer close(done); e.Rest(ctx) }()
	select {
	case <-done:
		t.Fatal("it serves on a port that is taken")
	case <-time.After(50 * time.Millisecond):
	}
	thief.Close()
	<-done
	eventually(t, "it accepts", func() error {
		if refused(port) == nil {
			return errors.New("refused")
		}
		return nil
	})
}
