package http

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// upgrade takes the connection from net/http and sends the head itself.
func (d *stdDown) upgrade() (io.ReadWriteCloser, error) {
	if d.conn.proto != protoH1 {
		return nil, errors.New("only a connection of HTTP/1.1 can change protocols")
	}
	c, buffered, err := http.NewResponseController(d.w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the client's connection over: %w", err)
	}
	d.hijacked = c
	io.WriteString(buffered, "HTTP/1.1 101 Switching Protocols\r\n")
	if err := d.w.Header().Write(buffered); err != nil {
		return nil, err
	}
	io.WriteString(buffered, "\r\n")
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	return &upgraded{Conn: c, early: buffered.Reader}, nil
}

// upgraded is a client's connection after the change of protocols.
type upgraded struct {
	net.Conn
	early *bufio.Reader // holds what the client sent right behind its request
}

func (u *upgraded) Read(p []byte) (int, error) {
	if n := u.early.Buffered(); n > 0 {
		return u.early.Read(p[:min(n, len(p))])
	}
	return u.Conn.Read(p)
}

// CloseWrite ends the sending direction.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return u.Conn.Close()
}
