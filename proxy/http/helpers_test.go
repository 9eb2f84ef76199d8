package http_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

var discardLog = log.New(io.Discard, "", 0)

// bind returns a socket bound to a loopback address, and the address. While the
// socket does not listen, it keeps others from it and connections are refused.
func bind(t *testing.T) (fd int, addr string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// deadAddr returns an address at which nothing listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	_, addr := bind(t)
	return addr
}

// fullBacklog returns the address of a listener that accepts nothing, and whose
// queue is full: a backlog of n holds n+1 connections, and more SYNs are
// dropped.
func fullBacklog(t *testing.T) string {
	t.Helper()
	const backlog = 1
	fd, addr := bind(t)
	if err := unix.Listen(fd, backlog); err != nil {
		t.Fatal(err)
	}
	for range backlog + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	eventually(t, "the backlog to fill", func() bool {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.Unacked == backlog+1 // of a listener: the queue's length
	})
	return addr
}
