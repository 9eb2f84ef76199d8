package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// pairOfConns returns both ends of a connection of two processes.
func pairOfConns(t *testing.T) (one, other *handover.Conn) {
	t.Helper()
	one, f, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close() })
	if other, err = handover.FromFile(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return one, other
}

// The time limit of an upgrade may end just as the new process is ready: what is
// left then still goes over.
func TestUpgradeLimitEndsAtReady(t *testing.T) {
	conn, other := pairOfConns(t)
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		unbind := bindTo(ctx, conn)
		cancel()
		unbind()
		conn.SetDeadline(time.Now().Add(time.Minute))
		if err := conn.Send(msgLeft, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := other.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer bindTo(ctx, conn)()
	cancel()
	if _, _, err := conn.Receive(); err == nil {
		t.Error("a bound connection outlasts its context")
	}
}

// Once a new process has said that it is ready, whatever becomes of the old one
// leaves it with what it has.
func TestOldProcessEndsAfterReady(t *testing.T) {
	conn, old := pairOfConns(t)
	log := slog.New(slog.DiscardHandler)
	for _, err := range []error{
		old.Send(msgUDP, udpBody{Port: 20000, HasSocket: true}), // its file is missing
		old.Send(msgQUIC, "what this version cannot read"),      //
		old.Send(msgDatagram, datagramBody{Port: 20001}),        //
		old.Send("what a later version says", nil),              //
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	heard := make(chan error, 1)
	go func() {
		_, _, err := old.Receive()
		old.Close()
		heard <- err
	}()
	left, err := (&takeover{conn: conn}).ready(log)
	if err != nil {
		t.Fatalf("the new process ends with the old one: %v", err)
	}
	if err := <-heard; err != nil {
		t.Error(err)
	}
	if len(left.UDP) != 1 || left.UDP[0].Number != 20001 || len(left.UDP[0].First) != 1 || left.QUIC != nil {
		t.Errorf("left: %+v, want one datagram of port 20001", left)
	}
}

// A node whose data directory takes no socket for upgrades serves on, and can be
// asked once it does.
func TestNoSocketForUpgrades(t *testing.T) {
	said, w := io.Pipe()
	defer w.Close()
	n := &node{cfg: &config.Config{Data: filepath.Join(t.TempDir(), "data")}, log: slog.New(slog.NewTextHandler(w, nil)), requests: make(chan upgradeRequest)}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- n.takeRequests(ctx) }()
	if _, err := said.Read(make([]byte, 1000)); err != nil { // the complaint
		t.Fatal(err)
	}
	if err := os.Mkdir(n.cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, said)
	asked := make(chan upgradeResult)
	go func() {
		for {
			if r, err := askForUpgrade(ctx, n.cfg.Data); err == nil || ctx.Err() != nil {
				asked <- r
				return
			}
		}
	}()
	select {
	case r := <-n.requests:
		r.done <- upgradeResult{PID: 7}
	case err := <-over:
		t.Fatalf("the node's part has ended: %v", err)
	}
	if r := <-asked; r.PID != 7 {
		t.Errorf("answer: %+v", r)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	n.answering.Wait()
}

// Sessions of UDP that are long go by more messages, and one that is too long for
// any is lost alone.
func TestLongSessionsGoOver(t *testing.T) {
	conn, other := pairOfConns(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tc := range []struct{ sessions, long, length, lost int }{
		{100, 100, 2000, 0}, {101, 1, handover.MaxMessage, 1}, {1, 1, handover.MaxMessage, 1}, {3, 0, 0, 0},
	} {
		p := l4.UDPPort{Number: 20000, Socket: file, Sessions: make([]l4.UDPSession, tc.sessions)}
		for i := range p.Sessions {
			p.Sessions[i].Socket = file
			if i < tc.long {
				p.Sessions[i].Header = make([]byte, tc.length)
			}
		}
		sent := make(chan error, 1)
		go func() {
			sent <- errors.Join(sendUDPPort(conn, &p), conn.Send(msgLeft, nil))
		}()
		udp := takenUDP{}
		for {
			m, files, err := other.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if m.Kind == msgLeft {
				break
			}
			if err := takeLeft(m, files, udp, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-sent; (err != nil) != (tc.lost > 0) || err != nil && !errors.Is(err, handover.ErrTooLong) {
			t.Errorf("%+v: %v", tc, err)
		}
		got := udp.port(20000)
		if len(got.Sessions) != tc.sessions-tc.lost || got.Socket == nil {
			t.Errorf("%+v: %d sessions went over, with socket: %v", tc, len(got.Sessions), got.Socket != nil)
		}
		got.Close()
	}
}

// More sockets than one message takes go by several, each with what it is for.
func TestManySocketsGoOver(t *testing.T) {
	conn, other := pairOfConns(t)
	ln, err := net.ListenTCP("tcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const sockets = 2*handover.MaxFiles + 7
	sent := make(chan error, 1)
	go func() {
		b := socketBatch{to: conn}
		defer b.drop()
		var err error
		for i := range sockets {
			f, ferr := ln.File()
			if err = errors.Join(err, ferr); err == nil {
				err = b.add(proxy.Socket{Network: "tcp", Address: fmt.Sprintf(":%d", 20000+i)}, f)
			}
		}
		sent <- errors.Join(err, b.send(), conn.Send(msgEnd, nil))
	}()
	var into listen.Inherited
	for messages := 0; ; messages++ {
		m, files, err := other.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == msgEnd {
			if messages != 3 {
				t.Errorf("%d sockets came by %d messages", sockets, messages)
			}
			break
		}
		if err := takeSockets(m, files, &into); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	last, err := into.TCP(t.Context(), fmt.Sprintf(":%d", 20000+sockets-1))
	if err != nil {
		t.Fatal(err)
	}
	last.Close()
	if got := into.CloseRest(); len(got) != sockets-1 || got[0] != "tcp :20000" {
		t.Errorf("%d sockets are left, from %q on", len(got), got[:1])
	}
	if last.Addr().String() != ln.Addr().String() {
		t.Errorf("the socket is one at %v, not at %v", last.Addr(), ln.Addr())
	}
}

// A process knows that its parent minds it alone, by the parent's name.
func TestParentMindsOneProcess(t *testing.T) {
	const asked = "SLUICE_TEST_MINDER"
	if os.Getenv(asked) != "" {
		fmt.Printf("minder=%s.\n", minder())
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tini": "minder=tini.", "another": "minder=."} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, shell, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "-c", `"$0" -test.run '^TestParentMindsOneProcess$'; true`, self) // not by exec
		cmd.Env = append(os.Environ(), asked+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("below %s: %v, %s, want %q", name, err, out, want)
		}
	}
}
