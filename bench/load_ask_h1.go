package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
)

// dialTLS connects over TLS 1.3 with one protocol offered, which must be taken.
func dialTLS(ctx context.Context, e *edge, alpn string) (*tls.Conn, error) {
	c, err := dialTCP(ctx, e.addrs[serviceHTTPS])
	if err != nil {
		return nil, err
	}
	t := tls.Client(c, &tls.Config{RootCAs: e.roots, ServerName: host, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13})
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if got := t.ConnectionState().NegotiatedProtocol; got != alpn {
		c.Close()
		return nil, fmt.Errorf("the server speaks %q, not %q", got, alpn)
	}
	return t, nil
}

// askH1 is a connection of HTTP/1.1: one request is under way at a time.
type askH1 struct {
	net.Conn
	in      *bufio.Reader
	request []byte
}

func dialAskH1(ctx context.Context, e *edge, _ int) (asker, error) {
	c, err := dialTCP(ctx, e.addrs[serviceHTTP])
	if err != nil {
		return nil, err
	}
	return newAskH1(c), nil
}

func dialAskH1TLS(ctx context.Context, e *edge, _ int) (asker, error) {
	c, err := dialTLS(ctx, e, "http/1.1")
	if err != nil {
		return nil, err
	}
	return newAskH1(c), nil
}

func newAskH1(c net.Conn) *askH1 {
	return &askH1{Conn: c, in: bufio.NewReaderSize(c, 16<<10),
		request: []byte("GET /bench HTTP/1.1\r\nHost: " + authority(c) + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")}
}

// authority is host with the port that c is connected to.
func authority(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.RemoteAddr().String()) // a socket's address has one
	return net.JoinHostPort(host, port)
}

func (a *askH1) write() (uint64, error) {
	_, err := a.Write(a.request)
	return 0, err
}

func (a *askH1) read() (uint64, error) {
	status, err := a.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("a request was answered with %q", status)
	}
	length := -1
	for {
		line, err := a.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			break
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, fmt.Errorf("the length of an answer: %w", err)
			}
		}
	}
	if length != bodySize {
		return 0, fmt.Errorf("an answer has %d bytes, want %d", length, bodySize)
	}
	_, err = a.in.Discard(length)
	return 0, err
}

func (a *askH1) state() tls.ConnectionState {
	if t, ok := a.Conn.(*tls.Conn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

func (a *askH1) close() { a.Close() }
