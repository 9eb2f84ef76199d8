package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

// echoer is a backend that sends back what it gets.
func echoer(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, struct{ io.Reader }{c})
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

// selfSigned returns a certificate for ssh.example.com, and who trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"ssh.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// A connection that a route takes whole is drained like any other flow: what
// ends those that have not said yet what they want does not reach it.
func TestRawRoutesAreDrained(t *testing.T) {
	certificate, roots := selfSigned(t)
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	e := newEdge(t, func(cfg *proxy.Config) {
		cfg.HTTPS = []proxy.Listener{{Address: address}}
		cfg.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }}
	})
	if err := e.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	route, err := router.ParseRoute("ssh", fmt.Appendf(nil, `{"host": "ssh.example.com", "protocol": "tcp", "backend": "%s"}`, echoer(t)))
	if err != nil {
		t.Fatal(err)
	}
	e.builder.SetRoute(route)
	e.apply()
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: "ssh.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	exchange := func(text string) {
		t.Helper()
		got := make([]byte, len(text))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("read %q, %v; want %q", got, err, text)
		}
	}
	exchange("before")
	cut := make(chan int, 1)
	go func() { cut <- e.Shutdown(context.Background()) }()
	eventually(t, "the node stops accepting", func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return errors.New("it still accepts")
		}
		return nil
	})
	for range 50 { // long enough for a deadline to be noticed
		exchange("after")
	}
	c.Close()
	if n := <-cut; n != 0 {
		t.Errorf("%d flows were cut, want none", n)
	}
}
