package proxy

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
)

// Accept errors that are about the machine, not the socket (EMFILE, ENFILE,
// ENOBUFS) pass when other connections end; meanwhile the loop waits this long
// between tries, doubling.
const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

func isScarce(c *net.TCPConn) (scarce bool) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { scarce = listen.Scarce(int(fd)) })
	}
	return scarce
}

// acceptLoop hands each connection to handle, on a goroutine that handle's
// caller owns, until ln is closed. handle must not block.
func acceptLoop(ln *net.TCPListener, log *slog.Logger, failures func(), handle func(*net.TCPConn)) {
	backoff := acceptBackoffMin
	var complained time.Time
	for {
		c, err := ln.AcceptTCP()
		switch {
		case err == nil && !isScarce(c):
			backoff = acceptBackoffMin
			handle(c)
			continue
		case err == nil:
			c.SetLinger(0) // which resets
			c.Close()
			failures()
			if now := time.Now(); now.Sub(complained) > acceptBackoffMax {
				complained = now
				log.Warn("few files are left that the process may open: new connections are reset; raise LimitNOFILE or ulimit -n", "listener", ln.Addr().String())
			}
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
