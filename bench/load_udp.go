package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// datagramLimit is how long an echo may take: with one datagram under way for
// each client no buffer overflows, so one that is missing was dropped.
const datagramLimit = time.Second

// udpPingPong is client sockets that each send 64 bytes and wait for their echo.
func udpPingPong(sockets int) socketLoad {
	return socketLoad{service: serviceUDP, workers: sockets, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			c, err := dialUDP(ctx, w.addr)
			if err != nil {
				return err
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			message, buf := newMessage(), make([]byte, messageSize)
			for {
				message[0]++
				start := time.Now()
				if err := c.SetDeadline(start.Add(datagramLimit)); err != nil {
					return err
				}
				if err := echo(c, message, buf); errors.Is(err, os.ErrDeadlineExceeded) {
					return fmt.Errorf("a datagram or its echo was lost: none came for %v", datagramLimit)
				} else if err != nil {
					return err
				}
				w.did(1, start)
			}
		}}
}

// dialUDP returns a socket that sends to addr and receives only from there.
func dialUDP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "udp", addr.String())
}
