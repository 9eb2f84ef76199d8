package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// serveGRPC serves nothing by gRPC, as far as a client's first words go what
// etcd is.
func serveGRPC(t *testing.T, options ...grpc.ServerOption) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return ln.Addr().String()
}

// TestReachableSaysWhatIsWrong holds what people get wrong about etcd's address
// against what they are told.
func TestReachableSaysWhatIsWrong(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler()) // whose certificate is used
	defer web.Close()
	plainWeb := httptest.NewServer(http.NotFoundHandler())
	defer plainWeb.Close()
	ours := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
	ours.RootCAs.AddCert(web.Certificate())

	clear := serveGRPC(t)
	cert := tls.Config{Certificates: web.TLS.Certificates}
	secure := serveGRPC(t, grpc.Creds(credentials.NewTLS(&cert)))
	wantsCert := cert.Clone()
	wantsCert.ClientAuth = tls.RequireAnyClientCert
	strict := serveGRPC(t, grpc.Creds(credentials.NewTLS(wantsCert)))

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n")
			c.Close()
		}
	}()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()

	for _, tc := range []struct {
		endpoint string
		t        *tls.Config
		want     string
	}{
		{clear, nil, ""},
		{"http://" + clear, nil, ""},
		{"https://" + secure, ours, ""},
		{secure, ours, ""},
		{"https://" + secure, nil, "unknown authority; etcd.tls.ca"},
		{"https://" + secure, &tls.Config{RootCAs: ours.RootCAs, ServerName: "etcd.x-gpu.com"}, "not etcd.x-gpu.com"},
		{"http://" + secure, nil, "write https://" + secure},
		{"https://" + clear, nil, "write http://" + clear},
		{"https://" + strict, ours, "etcd.tls.cert and key"},
		{plainWeb.URL, nil, "a web server answers there, and not etcd"},
		{ln.Addr().String(), nil, "not etcd"},
		{gone.Addr().String(), nil, "etcd does not answer"},
	} {
		err := reachable(t.Context(), []string{tc.endpoint}, tc.t)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("of %s it says %v, want %q", tc.endpoint, err, tc.want)
		}
	}
	if err := reachable(t.Context(), []string{plainWeb.URL, clear}, nil); err != nil {
		t.Errorf("where one of two is etcd: %v", err)
	}
}
