package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// h3load is a load of HTTP/3: connections that stand before the window opens,
// on each of which so many requests are under way at a time. Debian's h2load
// has no HTTP/3.
type h3load struct {
	clients, streams int
}

func (l h3load) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	conns, err := dialH3s(ctx, e, l.clients)
	defer closeH3s(conns)
	if err != nil {
		return sample{}, err
	}
	load := socketLoad{service: serviceH3, workers: l.clients * l.streams, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			return requestsH3(ctx, conns[w.index/l.streams], w)
		}}
	s, err := load.measure(ctx, e, ph)
	if err != nil {
		return s, err
	}
	s.TLS = tlsWords(conns[0].conn.ConnectionState().TLS)
	return s, nil
}

// requestsH3 asks one thing after the other.
func requestsH3(ctx context.Context, c *h3conn, w *loadWorker) error {
	once, err := c.asks(ctx, w.addr)
	if err != nil {
		return err
	}
	for {
		start := time.Now()
		if err := once(); err != nil {
			return err
		}
		w.did(1, start)
	}
}

// asks returns what sends a request and checks its answer as those of h2load
// are checked. Each caller needs its own.
func (c *h3conn) asks(ctx context.Context, addr netip.AddrPort) (func() error, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, requestURL("https", addr), nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, bodySize+1)
	return func() error {
		resp, err := c.RoundTrip(req)
		if err != nil {
			return err
		}
		n, err := io.ReadFull(resp.Body, buf)
		resp.Body.Close()
		switch {
		case !errors.Is(err, io.ErrUnexpectedEOF) || n != bodySize:
			return fmt.Errorf("a body of %d bytes (%v), want %d", n, err, bodySize)
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("a request ended with status %d", resp.StatusCode)
		}
		return nil
	}, nil
}

// h3conn is one connection with a socket of its own.
type h3conn struct {
	*http3.ClientConn
	conn *quic.Conn
}

// dialH3 connects to e's HTTP/3 service; the caller closes the connection.
func dialH3(ctx context.Context, e *edge) (*h3conn, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	conf := &tls.Config{RootCAs: e.roots, ServerName: host, NextProtos: []string{http3.NextProtoH3}, MinVersion: tls.VersionTLS13}
	conn, err := quic.DialAddr(ctx, e.addrs[serviceH3].String(), conf, &quic.Config{MaxIdleTimeout: time.Minute})
	if err != nil {
		return nil, fmt.Errorf("connect by QUIC: %w", err)
	}
	tr := &http3.Transport{DisableCompression: true}
	return &h3conn{ClientConn: tr.NewClientConn(conn), conn: conn}, nil
}

func (c *h3conn) close() { c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "") }

// dialH3s makes n connections; those that stand are returned also on error.
func dialH3s(ctx context.Context, e *edge, n int) ([]*h3conn, error) {
	var all []*h3conn
	for range n {
		c, err := dialH3(ctx, e)
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

func closeH3s(conns []*h3conn) {
	for _, c := range conns {
		c.close()
	}
}

// tlsWords names protocol and cipher suite as h2load does.
func tlsWords(state tls.ConnectionState) string {
	version := map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[state.Version]
	return version + " " + tls.CipherSuiteName(state.CipherSuite)
}
