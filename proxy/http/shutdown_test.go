package http_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
)

// TestShutdownLetsExchangesFinish begins an exchange, shuts down, and has the
// backend finish only then.
func TestShutdownLetsExchangesFinish(t *testing.T) {
	arrived, proceed := make(chan struct{}, 1), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first ")
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		select {
		case <-proceed:
		case <-r.Context().Done():
		}
		io.WriteString(w, "last")
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
		soon(t, "the request", arrived)
		var draining sync.WaitGroup
		began := time.Now()
		draining.Go(func() {
			if cut := p.rig.shutdown(patience); cut != 0 {
				t.Errorf("%d exchanges cut", cut)
			}
		})
		waitForDraining(t, p.rig)
		proceed <- struct{}{}
		if body := readAll(t, resp.Body); body != "first last" {
			t.Errorf("%q", body)
		}
		draining.Wait()
		if took := time.Since(began); took > patience/2 {
			t.Errorf("Shutdown took %v", took)
		}
		if record := p.rig.log.wait(t, "/"); record["end"] != "done" {
			t.Errorf("log record %v", record)
		}
	})
}

// waitForDraining waits until new connections are not taken up any more.
func waitForDraining(t *testing.T, r *rig) {
	t.Helper()
	eventually(t, "draining", func() bool {
		c := r.dialClear()
		io.WriteString(c, "GET /health-proxy HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err := c.Read(make([]byte, 1))
		return err != nil
	})
}

// TestShutdownCuts has an exchange outlast the time to drain.
func TestShutdownCuts(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first ")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
		if cut := p.rig.shutdown(20 * time.Millisecond); cut != 1 {
			t.Errorf("%d exchanges cut, want 1", cut)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%q passed for complete", body)
		}
		soon(t, "the backend to notice", gone)
		if record := p.rig.log.wait(t, "/"); record["end"] != "shutdown" {
			t.Errorf("log record %v", record)
		}
		if cut := p.rig.shutdown(patience); cut != 0 {
			t.Errorf("a second Shutdown cut %d", cut)
		}
	})
}

// TestIdleConnectionsCloseAtOnce shuts down with connections that carry nothing.
func TestIdleConnectionsCloseAtOnce(t *testing.T) {
	overAll(t, toBackend(t, backend(t, echo)), func(t *testing.T, p *peer) {
		p.get(t, "app.x.test", "/")
		silent := []net.Conn{p.rig.dialClear(), p.rig.dialTLS("app.x.test"), p.rig.dialTLS("app.x.test", "h2")}
		silent = append(silent, said(t, p.rig.dialSecure(), "\x16\x03\x01"))
		began := time.Now()
		if cut := p.rig.shutdown(patience); cut != 0 {
			t.Errorf("%d exchanges cut", cut)
		}
		if took := time.Since(began); took > patience/2 {
			t.Errorf("Shutdown took %v", took)
		}
		for i, c := range silent {
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("connection %d is still open", i)
			}
		}
	})
}

// TestHTTP1ClientIsToldToGo checks Connection: close while draining.
func TestHTTP1ClientIsToldToGo(t *testing.T) {
	arrived, proceed := make(chan struct{}, 1), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-proceed
	})
	r := toBackend(t, addr)(t)
	c := r.dialClear()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.x.test\r\n\r\n")
	soon(t, "the request", arrived)
	var draining sync.WaitGroup
	draining.Go(func() { r.shutdown(patience) })
	waitForDraining(t, r)
	close(proceed)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if readAll(t, resp.Body); !resp.Close {
		t.Errorf("no Connection: close in %v", resp.Header)
	}
	draining.Wait()
}

// TestHTTP2ClientIsToldToGo reads the GOAWAY off the wire.
func TestHTTP2ClientIsToldToGo(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	c := r.dialTLS("app.x.test", "h2")
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.WriteSettings()
	frames := make(chan http2.Frame)
	go func() {
		defer close(frames)
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				return
			}
			if g, ok := f.(*http2.GoAwayFrame); ok {
				frames <- g
			} else if s, ok := f.(*http2.SettingsFrame); ok && s.IsAck() {
				frames <- s
			}
		}
	}()
	soon(t, "the settings", frames)
	r.shutdown(patience)
	g, ok := soon(t, "GOAWAY", frames).(*http2.GoAwayFrame)
	if !ok || g.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", g)
	}
	for range frames {
	}
}

// TestHTTP3ClientIsToldToGo checks that a client's open connection takes no new
// request, and says why.
func TestHTTP3ClientIsToldToGo(t *testing.T) {
	arrived, proceed := make(chan struct{}, 1), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-proceed
	})
	r := toBackend(t, addr)(t)
	qc, err := quic.DialAddr(t.Context(), r.quic.LocalAddr().String(),
		&tls.Config{RootCAs: r.roots, ServerName: "app.x.test", NextProtos: []string{"h3"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http3.Transport{}
	defer transport.Close()
	client := transport.NewClientConn(qc)
	send := func() error {
		req, err := http.NewRequest("GET", "https://app.x.test/", nil)
		if err != nil {
			return err
		}
		resp, err := client.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		return err
	}
	first := make(chan error, 1)
	go func() { first <- send() }()
	soon(t, "the request", arrived)
	var draining sync.WaitGroup
	draining.Go(func() { r.shutdown(patience) })
	eventually(t, "GOAWAY", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://app.x.test/", nil)
		_, err := client.RoundTrip(req)
		select {
		case <-arrived: // taken up before GOAWAY
			proceed <- struct{}{}
		default:
		}
		return err != nil && ctx.Err() == nil
	})
	close(proceed)
	if err := soon(t, "the first response", first); err != nil {
		t.Errorf("the exchange under way: %v", err)
	}
	draining.Wait()
	<-qc.Context().Done()
}

// TestServeQUICEndsWithContext cuts HTTP/3 alone.
func TestServeQUICEndsWithContext(t *testing.T) {
	arrived := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	r := toBackend(t, addr)(t)
	p := r.h3()
	failed := make(chan error, 1)
	go func() {
		_, err := p.Do(p.request("GET", "app.x.test", "/", nil))
		failed <- err
	}()
	soon(t, "the request", arrived)
	r.endQUIC()
	if err := soon(t, "the client", failed); err == nil {
		t.Error("the exchange went on")
	}
	if _, body := r.h2().get(t, "app.x.test", "/health-proxy"); body != "ok\n" {
		t.Errorf("HTTP/2 after HTTP/3 ended: %q", body)
	}
}
