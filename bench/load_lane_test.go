package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// serveWeb has answer serve HTTP/1.1, clear and over TLS, and HTTP/2 within the
// test and returns it as an edge.
func serveWeb(t *testing.T, answer http.HandlerFunc, change ...func(*tls.Config)) *edge {
	t.Helper()
	clear, secure := httptest.NewServer(answer), httptest.NewUnstartedServer(answer)
	pair, err := newKeyPair(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	for _, f := range change {
		f(secure.TLS)
	}
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(clear.Close)
	t.Cleanup(secure.Close)
	at := func(s *httptest.Server) netip.AddrPort { return s.Listener.Addr().(*net.TCPAddr).AddrPort() }
	return &edge{name: "origin", root: os.Getpid(), roots: pair.roots, addrs: addressBook{serviceHTTP: at(clear), serviceHTTPS: at(secure)}}
}

func noTickets(c *tls.Config) { c.SessionTicketsDisabled = true }

func answerOrigin(w http.ResponseWriter, _ *http.Request) { w.Write(originBody()) }

// lanesOf are loads of every protocol, small.
func lanesOf() map[string]laneLoad {
	return map[string]laneLoad{
		"h1":    {service: serviceHTTP, dial: dialAskH1, clients: 2, streams: 1},
		"h1tls": {service: serviceHTTPS, dial: dialAskH1TLS, clients: 2, streams: 1},
		"h2":    {service: serviceHTTPS, dial: dialAskH2, clients: 2, streams: 3},
		"h3":    {service: serviceH3, dial: dialAskH3, clients: 2, streams: 3},
	}
}

func TestLaneLoads(t *testing.T) {
	e := serveWeb(t, answerOrigin)
	h3 := serveH3(t, answerOrigin)
	for name, load := range lanesOf() {
		for _, rate := range []float64{0, 200} {
			load.rate = rate
			to := e
			if load.service == serviceH3 {
				to = h3
			}
			s, err := load.measure(t.Context(), to, phases{warm: 50 * time.Millisecond, main: time.Second})
			if err != nil {
				t.Errorf("%s at rate %v: %v", name, rate, err)
				continue
			}
			if s.Units <= 0 || s.P50 <= 0 || s.P99 < s.P50 || (s.TLS == "") != (load.service == serviceHTTP) {
				t.Errorf("%s at rate %v: sample = %+v, want figures", name, rate, s)
			}
			if rate > 0 && s.Rate > 1.5*rate {
				t.Errorf("%s: %v requests a second, want %v", name, s.Rate, rate)
			}
		}
	}
}

func TestLaneLoadsFailLoudly(t *testing.T) {
	for what, answer := range map[string]http.HandlerFunc{
		"502": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); w.Write(originBody()) },
		"5 bytes": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.Write(originBody()[:5])
		},
	} {
		web, h3 := serveWeb(t, answer), serveH3(t, answer)
		for name, load := range lanesOf() {
			to := web
			if load.service == serviceH3 {
				to = h3
			}
			_, err := load.measure(t.Context(), to, phases{warm: time.Millisecond, main: 200 * time.Millisecond})
			if err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%s: measure = %v, want %q", name, err, what)
			}
		}
	}
	// A server that hangs up.
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hung := make(chan struct{})
	go func() {
		defer close(hung)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	e := &edge{root: os.Getpid(), addrs: addressBook{serviceHTTP: ln.Addr().(*net.TCPAddr).AddrPort()}}
	if _, err := lanesOf()["h1"].measure(t.Context(), e, phases{warm: time.Millisecond, main: 200 * time.Millisecond}); err == nil {
		t.Error("a server that hangs up: no error")
	}
	ln.Close()
	<-hung
}

// fakeAsker notes what is written to it.
type fakeAsker struct {
	asker
	sent uint64
}

func (f *fakeAsker) write() (uint64, error) { f.sent++; return f.sent, nil }

// What had to wait counts from when it was due.
func TestLaneCountsFromWhenDue(t *testing.T) {
	f := &fakeAsker{}
	l := &lane{asker: f, limit: 2, under: make(map[uint64]time.Time)}
	due := []time.Time{time.UnixMicro(1), time.UnixMicro(2), time.UnixMicro(3)}
	for _, at := range due {
		if err := l.send(at); err != nil {
			t.Fatal(err)
		}
	}
	if f.sent != 2 {
		t.Fatalf("%d requests are under way, want 2", f.sent)
	}
	for i, id := range []uint64{2, 3, 1} {
		at, err := l.answered(id)
		if want := due[id-1]; err != nil || !at.Equal(want) {
			t.Errorf("answered(%d) = %v, %v; want %v", id, at, err, want)
		}
		if i == 0 && f.sent != 3 {
			t.Error("an answer does not let the next one go")
		}
	}
	if _, err := l.answered(1); err == nil {
		t.Error("an answer that nobody asked for: no error")
	}
	l.again = true
	if err := l.send(due[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := l.answered(4); err != nil || f.sent != 5 {
		t.Errorf("%v after %d requests, want that an answer is followed by the fifth", err, f.sent)
	}
}

func TestPaceIsConstant(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var at []time.Time
	if err := pace(ctx, 1000, func(i int, due time.Time) error {
		if at = append(at, due); i == 19 {
			cancel()
		}
		return nil
	}); err != nil || len(at) != 20 {
		t.Fatalf("pace = %v after %d", err, len(at))
	}
	for i := range at[1:] {
		if d := at[i+1].Sub(at[i]); d != time.Millisecond {
			t.Errorf("request %d is due %v after the one before, want 1 ms", i+1, d)
		}
	}
	broken := errors.New("broken")
	if err := pace(t.Context(), 1000, func(int, time.Time) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("pace = %v, want %v", err, broken)
	}
	if err := pace(t.Context(), 1000, func(int, time.Time) error { return net.ErrClosed }); err != nil {
		t.Errorf("pace over a closed connection = %v, want none", err)
	}
}

func TestRowTakes(t *testing.T) {
	r := row{service: serviceHTTP, without: []string{"caddy"}}
	web := addressBook{serviceHTTP: loopback(1)}
	var took []string
	for _, e := range []*edge{{name: "nginx", addrs: web}, {name: "caddy", addrs: web}, {name: "nginx-h3", addrs: addressBook{}}} {
		if r.takes(e) {
			took = append(took, e.name)
		}
	}
	if !slices.Equal(took, []string{"nginx"}) {
		t.Errorf("the row takes %q, want nginx alone", took)
	}
}
