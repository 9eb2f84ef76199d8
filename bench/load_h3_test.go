package main

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// serveH3 has answer serve HTTP/3 within the test and returns it as an edge.
func serveH3(t *testing.T, answer http.HandlerFunc) *edge {
	t.Helper()
	pair, err := newKeyPair(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(loopback(0)))
	if err != nil {
		t.Fatal(err)
	}
	s := &http3.Server{Handler: answer, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(socket) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve HTTP/3: %v", err)
		}
		socket.Close()
	})
	return &edge{name: "origin", root: os.Getpid(), roots: pair.roots, addrs: addressBook{serviceH3: socket.LocalAddr().(*net.UDPAddr).AddrPort()}}
}

func TestH3Load(t *testing.T) {
	e := serveH3(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(originBody()) })
	if err := verifyHTTP3(t.Context(), e); err != nil {
		t.Error(err)
	}
	s, err := h3load{clients: 2, streams: 3}.measure(t.Context(), e, phases{warm: 50 * time.Millisecond, main: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if s.Units <= 0 || s.Cost <= 0 || s.P50 <= 0 || s.P99 < s.P50 || s.TLS != "TLSv1.3 TLS_AES_128_GCM_SHA256" {
		t.Errorf("sample = %+v, want figures", s)
	}
}

func TestH3LoadFailsLoudly(t *testing.T) {
	for want, answer := range map[string]http.HandlerFunc{
		"status 502":           func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); w.Write(originBody()) },
		"a body of 5 bytes":    func(w http.ResponseWriter, _ *http.Request) { w.Write(originBody()[:5]) },
		"a body of 1025 bytes": func(w http.ResponseWriter, _ *http.Request) { w.Write(append(originBody(), '!')) },
	} {
		e := serveH3(t, answer)
		_, err := h3load{clients: 1, streams: 2}.measure(t.Context(), e, phases{warm: time.Millisecond, main: 100 * time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("measure = %v, want %q", err, want)
		}
		if err := verifyHTTP3(t.Context(), e); err == nil {
			t.Errorf("a wrong answer (%s) passed verify", want)
		}
	}
}
