package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// reachLimit bounds the wait for each endpoint's first word.
const reachLimit = 3 * time.Second

// reachable returns why etcd answers at no endpoint, nil if it does at one: the
// client would only say that it has waited in vain. t is what etcd is met with.
func reachable(ctx context.Context, endpoints []string, t *tls.Config) error {
	var silent, wrong error
	for _, ep := range endpoints {
		addr, secure := ep, t != nil
		if u, err := url.Parse(ep); err == nil && u.Host != "" {
			addr, secure = u.Host, u.Scheme == "https"
		}
		conn, err := (&net.Dialer{Timeout: reachLimit}).DialContext(ctx, "tcp", addr)
		if err != nil {
			silent = errors.Join(silent, err)
			continue
		}
		if secure {
			err = greetTLS(ctx, conn, addr, t)
		} else if err = greet(conn); err != nil && speaksTLS(ctx, addr) {
			err = errors.New("TLS is spoken there: write https://" + addr)
		}
		conn.Close()
		if err == nil {
			return nil
		}
		wrong = errors.Join(wrong, fmt.Errorf("%s: %w", ep, err))
	}
	if wrong == nil {
		return fmt.Errorf("etcd does not answer: %w; is it, or a node, running? --config or --endpoints say where", silent)
	}
	return fmt.Errorf("etcd cannot be used: %w", errors.Join(wrong, silent))
}

// opening is what a gRPC client says first: HTTP/2's preface and empty settings
// (RFC 9113, section 3.4).
const opening = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// greet returns why what answers on conn cannot be etcd. One that says nothing at
// all may be, and be busy.
func greet(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(reachLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, opening); err != nil {
		return err
	}
	var head [9]byte // of a frame, which has to be settings
	switch _, err := io.ReadFull(conn, head[:]); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err == nil && head[3] == 4 && head[0] == 0:
		return nil
	case strings.HasPrefix(string(head[:]), "HTTP/"):
		return errors.New("a web server answers there, and not etcd")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("what answers there is not etcd: it hangs up")
	case err != nil:
		return err
	}
	return errors.New("what answers there is not etcd")
}

// greetTLS is greet over TLS with t, nil for what anybody has.
func greetTLS(ctx context.Context, conn net.Conn, addr string, t *tls.Config) error {
	if t == nil {
		t = new(tls.Config)
	}
	t = t.Clone()
	t.NextProtos = []string{"h2"}
	if t.ServerName == "" {
		t.ServerName, _, _ = net.SplitHostPort(addr)
	}
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	secure := tls.Client(conn, t)
	err := secure.HandshakeContext(ctx)
	if err == nil {
		err = greet(secure)
	}
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("%w; etcd.tls.ca in a node's file (--config) names the authority", err)
	case errors.As(err, new(tls.RecordHeaderError)):
		return fmt.Errorf("no TLS is spoken there: write http://%s", addr)
	case isAlert(err):
		return fmt.Errorf("%w; etcd.tls.cert and key in a node's file (--config) are what this client shows", err)
	}
	return err
}

// speaksTLS reports whether TLS is what is spoken at addr, whoever it is.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is said over it
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err == nil || isAlert(err)
}

// isAlert reports whether err is what the other side of TLS has against this one.
func isAlert(err error) bool {
	op := new(net.OpError)
	return errors.As(err, &op) && op.Op == "remote error"
}
