package proxy

import (
	"errors"
	"log/slog"
	"net"
	"time"
)

// Accept errors that are about the machine, not the socket (EMFILE, ENFILE,
// ENOBUFS) pass when other connections end; meanwhile the loop waits this long
// between tries, doubling.
const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// acceptLoop hands each connection to handle, on a goroutine that handle's
// caller owns, until ln is closed. handle must not block.
func acceptLoop(ln *net.TCPListener, log *slog.Logger, failures func(), handle func(*net.TCPConn)) {
	backoff := acceptBackoffMin
	for {
		c, err := ln.AcceptTCP()
		switch {
		case err == nil:
			backoff = acceptBackoffMin
			handle(c)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		failures()
		log.Warn("cannot accept connections; trying again", "listener", ln.Addr().String(), "err", err, "in", backoff)
		time.Sleep(backoff)
		backoff = min(backoff*2, acceptBackoffMax)
	}
}
