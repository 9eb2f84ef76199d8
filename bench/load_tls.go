package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// handshakes is connections that each do a TLS 1.3 handshake and end: full ones
// over X25519 with an ECDSA P-256 certificate, or resumed ones over X25519.
type handshakes struct {
	atOnce  int
	resumed bool
	names   []string // asked for at random; nil: the one that all contenders have
}

func (l handshakes) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	base := &tls.Config{
		RootCAs: e.roots, ServerName: host, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, // the only one that all have
	}
	load := socketLoad{service: serviceHTTPS, workers: l.atOnce, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error { return l.work(ctx, w, base.Clone()) }}
	return load.measure(ctx, e, ph)
}

func (l handshakes) work(ctx context.Context, w *loadWorker, conf *tls.Config) error {
	first := l.resumed
	if l.resumed {
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	for {
		if l.names != nil {
			conf.ServerName = l.names[rand.IntN(len(l.names))]
		}
		start := time.Now()
		resumed, err := l.once(ctx, w, conf)
		switch {
		case err != nil:
			return err
		case first:
			first = false // brings the ticket for the next one
			continue
		case resumed != l.resumed:
			return fmt.Errorf("a handshake was resumed: %v, want %v", resumed, l.resumed)
		}
		w.did(1, start)
	}
}

// once does a handshake, ends the session and waits until the server has ended
// it too: by then the server has read all that is its part and sent its tickets.
func (l handshakes) once(ctx context.Context, w *loadWorker, conf *tls.Config) (resumed bool, err error) {
	raw, err := w.dial(ctx)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	if err := raw.SetDeadline(time.Now().Add(verifyLimit)); err != nil {
		return false, err
	}
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		return false, err
	}
	state := c.ConnectionState()
	if state.CurveID != tls.X25519 {
		return false, fmt.Errorf("the key exchange is %v, want X25519", state.CurveID)
	}
	if err := c.CloseWrite(); err != nil {
		return false, err
	}
	if err := halfClose(raw); err != nil {
		return false, err
	}
	// Some end without TLS's own notice, and haproxy complains with a 400.
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("after the handshake: %w, want the end of the connection", err)
	}
	return state.DidResume, nil
}

func halfClose(c net.Conn) error {
	if t, ok := c.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}
