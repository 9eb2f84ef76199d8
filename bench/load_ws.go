package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// webSocketRows are connections that have changed to WebSocket and send each
// other small messages: nothing of HTTP is left of them, so that they are to cost
// what raw TCP does.
func webSocketRows() []row {
	ws := func(name, title string, l webSockets, limit limits) row {
		return row{name: name, title: title, service: l.service, cost: "µs/msg", rate: "msg/s", limits: []limits{limit}, measure: l.measure}
	}
	return []row{
		ws("ws", "WebSocket clear, ping-pong 64 B, 64 connections", webSockets{service: serviceHTTP, connections: 64}, limits{Cost: 1, P99: 1.1}),
		ws("ws-tls", "WebSocket TLS, ping-pong 64 B, 64 connections", webSockets{service: serviceHTTPS, connections: 64}, limits{Cost: 1, P99: 1.1}),
	}
}

// webSockets is connections over HTTP/1.1 that each send 64 bytes and wait for
// their echo. No proxy looks into frames, so that there are none.
type webSockets struct {
	service     service
	connections int
}

func (l webSockets) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	load := socketLoad{service: l.service, workers: l.connections, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			c, err := l.dial(ctx, e)
			if err != nil {
				return err
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			return pingPongOn(c, w)
		}}
	return load.measure(ctx, e, ph)
}

// dial opens a connection and has it change protocols.
func (l webSockets) dial(ctx context.Context, e *edge) (net.Conn, error) {
	var c net.Conn
	var err error
	if l.service == serviceHTTPS {
		var t *tls.Conn
		if t, err = dialTLS(ctx, e, "http/1.1"); err == nil {
			c = t
		}
	} else {
		c, err = dialTCP(ctx, e.addrs[l.service])
	}
	if err != nil {
		return nil, err
	}
	if err = c.SetDeadline(time.Now().Add(verifyLimit)); err == nil {
		err = changeToWebSocket(c)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open a WebSocket: %w", err)
	}
	return c, nil
}

// sampleKey is that of RFC 6455 section 1.3.
const sampleKey = "dGhlIHNhbXBsZSBub25jZQ=="

// changeToWebSocket has the other end of c change protocols. It reads the answer
// and nothing behind it.
func changeToWebSocket(c net.Conn) error {
	request := "GET " + webSocketPath + " HTTP/1.1\r\nHost: " + authority(c) + "\r\nUser-Agent: bench\r\nConnection: Upgrade\r\n" +
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + sampleKey + "\r\n\r\n"
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	head, one := make([]byte, 0, 512), make([]byte, 1)
	for !bytes.HasSuffix(head, headEnd) {
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		if head = append(head, one[0]); len(head) > 16<<10 {
			return errors.New("the answer's head does not end")
		}
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) || !bytes.Contains(head, []byte(acceptOf([]byte(sampleKey)))) {
		return fmt.Errorf("the answer to a request to change protocols is %q", head)
	}
	return nil
}

// acceptOf is the answer to a Sec-WebSocket-Key.
func acceptOf(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// webSocket changes protocols, as the request asks for whose head that is, and
// echoes from then on. behind came behind the head.
func (o *httpOrigin) webSocket(head, behind []byte) error {
	key := fieldOf(head, "Sec-WebSocket-Key")
	if key == nil {
		return errors.New("a request for a WebSocket without its key")
	}
	o.out = append(o.out, "HTTP/1.1 101 Switching Protocols\r\nServer: origin\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "...)
	o.out = append(append(append(o.out, acceptOf(key)...), headEnd...), behind...)
	if err := o.flush(); err != nil {
		return err
	}
	serveEcho(o)
	return io.EOF
}

func verifyWebSocket(s service) func(context.Context, *edge) error {
	return func(ctx context.Context, e *edge) error {
		c, err := webSockets{service: s}.dial(ctx, e)
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		return echo(c, newMessage(), make([]byte, messageSize))
	}
}
