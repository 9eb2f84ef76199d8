package fleet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
)

// NetProber is a Prober over the network. Make it with NewNetProber.
type NetProber struct {
	name     func() string
	sessions tls.ClientSessionCache
}

// NewNetProber returns a Prober that asks for a name that name returns: one that
// every node has a certificate for; "": there is none, and then a listener that
// answers a handshake with an alert is up as well. name must be safe for
// concurrent use.
func NewNetProber(name func() string) *NetProber {
	return &NetProber{name: name, sessions: tls.NewLRUClientSessionCache(16)}
}

// HTTPS implements Prober.
func (p *NetProber) HTTPS(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	name := p.name()
	tc := tls.Client(c, &tls.Config{
		ServerName: name, NextProtos: []string{"http/1.1"}, ClientSessionCache: p.sessions,
		// Whether clients trust the certificate is a matter of its name, on all
		// nodes alike; here it is whether this node answers.
		InsecureSkipVerify: true,
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		if e, ok := errors.AsType[*net.OpError](err); name == "" && ok && e.Op == "remote error" { // an alert
			return nil
		}
		return timedOut(ctx, fmt.Errorf("TLS handshake: %w", err))
	}
	host := name
	if host == "" {
		host = "sluice.invalid"
	}
	if _, err := fmt.Fprintf(tc, "GET /health-proxy HTTP/1.1\r\nHost: %s\r\nUser-Agent: sluice-peer\r\nConnection: close\r\n\r\n", host); err != nil {
		return timedOut(ctx, fmt.Errorf("ask /health-proxy: %w", err))
	}
	resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
	if err != nil {
		return timedOut(ctx, fmt.Errorf("ask /health-proxy: %w", err))
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/health-proxy says %s", resp.Status)
	}
	return nil
}

// TCP implements Prober.
func (p *NetProber) TCP(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // nobody has to remember this connection
	}
	return c.Close()
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err == nil {
		return c, nil
	}
	for _, own := range []error{syscall.ENETUNREACH, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, own) {
			return nil, &UnableError{err}
		}
	}
	return nil, timedOut(ctx, err)
}

// timedOut says of an error that came of closing the connection when the time was
// over that it was over.
func timedOut(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", lookLimit)
	}
	return err
}
