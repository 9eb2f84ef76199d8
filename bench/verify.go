package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// verifyLimit is how long a contender may take to answer rightly: routes may
// still be on their way into it.
const verifyLimit = 10 * time.Second

// verify makes sure that a contender does what will be measured: that it gives
// the origin's own answers, over the protocol the row is named for. A proxy that
// answers errors is faster than one that works.
func verify(ctx context.Context, e *edge) error {
	for _, check := range []struct {
		what string
		of   service
		do   func(context.Context, *edge) error
	}{
		{"HTTP/1.1 in the clear", serviceHTTP, verifyHTTP("http", serviceHTTP, "HTTP/1.1")},
		{"HTTP/1.1 over TLS", serviceHTTPS, verifyHTTP("https", serviceHTTPS, "HTTP/1.1")},
		{"HTTP/2 over TLS", serviceHTTPS, verifyHTTP("https", serviceHTTPS, "HTTP/2.0")},
		{"HTTP/3", serviceH3, verifyHTTP3},
		{"WebSocket in the clear", serviceHTTP, verifyWebSocket(serviceHTTP)},
		{"WebSocket over TLS", serviceHTTPS, verifyWebSocket(serviceHTTPS)},
		{"TCP echo", serviceEcho, verifyEcho},
		{"TCP blast", serviceBlast, verifyBlast},
		{"UDP echo", serviceUDP, verifyUDP},
	} {
		if _, has := e.addrs[check.of]; !has {
			continue
		}
		err := until(ctx, e.proc, verifyLimit, func(ctx context.Context) error { return check.do(ctx, e) })
		if err != nil {
			return fmt.Errorf("%s does not work through %s: %w", check.what, e.name, err)
		}
	}
	return nil
}

func verifyHTTP(scheme string, s service, proto string) func(context.Context, *edge) error {
	return func(ctx context.Context, e *edge) error {
		addr := e.addrs[s]
		var protocols http.Protocols
		protocols.SetHTTP1(proto == "HTTP/1.1")
		protocols.SetHTTP2(proto == "HTTP/2.0")
		tr := &http.Transport{
			Protocols:       &protocols,
			TLSClientConfig: &tls.Config{RootCAs: e.roots, ServerName: host},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, addr.String())
			},
		}
		defer tr.CloseIdleConnections()
		// A redirect is a wrong answer, so the transport is used directly.
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, requestURL(scheme, addr), nil)
		if err != nil {
			return err
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		return checkAnswer(resp, proto)
	}
}

func verifyHTTP3(ctx context.Context, e *edge) error {
	c, err := dialH3(ctx, e)
	if err != nil {
		return err
	}
	defer c.close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, requestURL("https", e.addrs[serviceH3]), nil)
	if err != nil {
		return err
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return err
	}
	return checkAnswer(resp, "HTTP/3.0")
}

// checkAnswer reads a response and refuses all but the origin's own.
func checkAnswer(resp *http.Response, proto string) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK || resp.Proto != proto:
		return fmt.Errorf("got %s %s, want %s 200: %.200s", resp.Proto, resp.Status, proto, body)
	case !bytes.Equal(body, originBody()):
		return fmt.Errorf("got a body of %d bytes that is not the origin's %d", len(body), bodySize)
	}
	return nil
}

// requestURL is what the load asks for: the name, so that SNI and Host are
// what a user's would be, and the port that is connected to.
func requestURL(scheme string, addr netip.AddrPort) string { return urlOf(scheme, addr, usualPath) }

// usualPath is what the load asks for.
const usualPath = "/bench"

func urlOf(scheme string, addr netip.AddrPort, path string) string {
	return fmt.Sprintf("%s://%s:%d%s", scheme, host, addr.Port(), path)
}

func verifyEcho(ctx context.Context, e *edge) error {
	return echoOnce(ctx, e.addrs[serviceEcho])
}

// echoOnce connects, has a message echoed and closes.
func echoOnce(ctx context.Context, addr netip.AddrPort) error {
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return echo(c, []byte("ping through "+host), make([]byte, 64))
}

// echo sends a message and reads it back into buf, which is at least as long.
func echo(c net.Conn, message, buf []byte) error {
	if _, err := c.Write(message); err != nil {
		return err
	}
	buf = buf[:len(message)]
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if !bytes.Equal(buf, message) {
		return errors.New("the echo differs from what was sent")
	}
	return nil
}

func verifyBlast(ctx context.Context, e *edge) error {
	c, err := dialTCP(ctx, e.addrs[serviceBlast])
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, err = io.CopyN(io.Discard, c, 1<<20)
	return err
}

func verifyUDP(ctx context.Context, e *edge) error {
	c, err := dialUDP(ctx, e.addrs[serviceUDP])
	if err != nil {
		return err
	}
	defer c.Close()
	// A datagram that came too early for the mapping has no answer at all.
	if err := c.SetDeadline(time.Now().Add(verifyLimit / 10)); err != nil {
		return err
	}
	return echo(c, []byte("ping through "+host), make([]byte, 64))
}

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr.String())
}

// connects returns nil if something accepts connections on addr.
func connects(ctx context.Context, addr netip.AddrPort) error {
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return err
	}
	return c.Close()
}
