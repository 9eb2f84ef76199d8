package api

import (
	"net"
	"net/netip"
	"testing"
)

// TestBounded wants connections beyond the bounds closed, and their places free
// once others end.
func TestBounded(t *testing.T) {
	raw, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &bounded{Listener: raw, most: 3, each: 2, by: map[netip.Prefix]int{}}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(t.Context(), "tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(from string) {
		t.Helper()
		if n, err := dial(from).Read(make([]byte, 1)); err == nil {
			t.Errorf("from %s came %d bytes, want the end", from, n)
		}
	}
	dial("127.0.0.1")
	first := <-accepted
	dial("127.0.0.1")
	second := <-accepted
	refused("127.0.0.1") // the client's
	dial("127.0.0.2")
	third := <-accepted
	refused("127.0.0.3") // all
	first.Close()
	first.Close() // counts once
	dial("127.0.0.1")
	fourth := <-accepted
	refused("127.0.0.4")
	for _, c := range []net.Conn{second, third, fourth} {
		c.Close()
	}
	if ln.all != 0 || len(ln.by) != 0 {
		t.Errorf("%d are counted, of %v, when all are closed", ln.all, ln.by)
	}
	ln.Close()
	if c, more := <-accepted; more {
		t.Errorf("accepted %v", c.RemoteAddr())
	}
}

func TestClient(t *testing.T) {
	for text, want := range map[string]string{"192.0.2.7:1": "192.0.2.7/32", "[2001:db8::1:2:3]:4": "2001:db8::/64", "[::ffff:192.0.2.7]:1": "192.0.2.7/32", "[fe80::1%eth0]:1": "fe80::/64"} {
		if got := Client(text); got.String() != want {
			t.Errorf("%s counts as %v, want %s", text, got, want)
		}
	}
	if got := Client("@"); got.IsValid() {
		t.Errorf("a socket counts as %v", got)
	}
}
