package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/systemd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// takeover is a process's part in an upgrade as the new one. The nil *takeover is
// that of a process which began by itself.
type takeover struct {
	conn   *handover.Conn
	stderr *os.File // as the old process has it
	from   beginBody
	lock   *os.File
	elders []*elder
}

// takeoverLimit bounds what the old process may take, which has a limit of its own.
const takeoverLimit = 10 * time.Minute

// beginTakeover returns the takeover that this process was started for, or nil.
func beginTakeover() (*takeover, error) {
	v, ok := os.LookupEnv(handoverVariable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(handoverVariable)
	var conn, stderr int
	if _, err := fmt.Sscanf(v, "%d,%d", &conn, &stderr); err != nil {
		return nil, fmt.Errorf("read %s, by which a node starts its successor: %w", handoverVariable, err)
	}
	for _, fd := range []int{conn, stderr} {
		unix.CloseOnExec(fd)
	}
	c, err := handover.FromFile(os.NewFile(uintptr(conn), "the old process"))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(takeoverLimit))
	return &takeover{conn: c, stderr: os.NewFile(uintptr(stderr), "stderr")}, nil
}

// isStderrTerminal reports whether standard error is a terminal, or will be.
func isStderrTerminal() bool {
	f := os.Stderr
	if v, ok := os.LookupEnv(handoverVariable); ok {
		var conn, stderr int
		if _, err := fmt.Sscanf(v, "%d,%d", &conn, &stderr); err == nil {
			_, err := unix.IoctlGetTermios(stderr, unix.TCGETS)
			return err == nil
		}
	}
	return isTerminal(f)
}

// receive takes the sockets that the old process has.
func (t *takeover) receive(into *listen.Inherited) error {
	if err := t.conn.Send(msgHello, helloBody{handoverVersion, versionString(), os.Getpid()}); err != nil {
		return err
	}
	for {
		m, files, err := t.conn.Receive()
		if err != nil {
			return fmt.Errorf("take over from the old process: %w", err)
		}
		switch m.Kind {
		case msgEnd:
			return nil
		case msgBegin:
			err = t.begin(m, files)
		case msgSockets:
			err = takeSockets(m, files, into)
		case msgElder:
			err = t.takeElder(m, files)
		default:
			handover.CloseAll(files)
		}
		if err != nil {
			return fmt.Errorf("take over from the old process: %w", err)
		}
	}
}

func (t *takeover) begin(m handover.Message, files []*os.File) error {
	if err := m.Into(&t.from); err != nil || len(files) != 1 {
		handover.CloseAll(files)
		return cmpErr(err, errors.New("it gives no lock of its data directory"))
	}
	t.lock = files[0]
	return nil
}

func takeSockets(m handover.Message, files []*os.File, into *listen.Inherited) error {
	var body socketsBody
	if err := m.Into(&body); err != nil || len(body.Sockets) != len(files) {
		handover.CloseAll(files)
		return cmpErr(err, fmt.Errorf("%d files came for %d sockets", len(files), len(body.Sockets)))
	}
	for i, s := range body.Sockets {
		into.Give(s.Network, s.Address, files[i])
	}
	return nil
}

func (t *takeover) takeElder(m handover.Message, files []*os.File) error {
	var body elderBody
	if err := m.Into(&body); err != nil || len(files) != 1 {
		handover.CloseAll(files)
		return cmpErr(err, errors.New("no file came with an older process"))
	}
	conn, err := handover.FromFile(files[0])
	if err != nil {
		return err
	}
	t.elders = append(t.elders, &elder{elderBody: body, conn: conn})
	return nil
}

// ready says that this process has all it needs, and returns what the old one,
// which accepts no more, has left. From the moment it is said this process is the
// one that serves: what cannot be heard after that is lost, and no reason to end.
func (t *takeover) ready(log *slog.Logger) (left proxy.Left, err error) {
	if err := t.conn.Send(msgReady, nil); err != nil {
		return left, err
	}
	log.Info("ready, and accepts: the old process leaves if this one stays", "from", t.from.PID, "version", t.from.Version)
	udp := takenUDP{}
	for over := false; !over; {
		m, files, err := t.conn.Receive()
		switch {
		case err == nil && m.Kind == msgLeft:
			handover.CloseAll(files)
			over = true
		case err == nil:
			err = takeLeft(m, files, udp, &left)
		default:
			_, failed := errors.AsType[*net.OpError](err)
			over = failed || errors.Is(err, io.EOF)
		}
		if err != nil {
			log.Error("some of what the old process had is lost with it: sessions of UDP or connections of HTTP/3", "err", err)
		}
	}
	left.UDP = udp.all()
	return left, nil
}

// takeLeft takes what a message of the old process has of what is left.
func takeLeft(m handover.Message, files []*os.File, udp takenUDP, left *proxy.Left) error {
	switch m.Kind {
	case msgUDP:
		var body udpBody
		if err := m.Into(&body); err != nil {
			handover.CloseAll(files)
			return err
		}
		return udp.add(&body, files)
	case msgDatagram:
		var body datagramBody
		if err := m.Into(&body); err != nil {
			return err
		}
		p := udp.port(body.Port)
		p.First = append(p.First, body.Datagram)
	case msgQUIC:
		elder, err := decodeQUIC(m, files)
		if err != nil {
			return err
		}
		left.QUIC = append(left.QUIC, elder)
	default:
		handover.CloseAll(files)
	}
	return nil
}

// awaitRelease waits until the old process has let go of everything but its flows.
// From then on the connection is the one that it is asked by.
func (t *takeover) awaitRelease() error {
	for {
		m, files, err := t.conn.Receive()
		handover.CloseAll(files)
		if err != nil {
			return fmt.Errorf("wait until the old process has let go: %w", err)
		}
		if m.Kind == msgReleased {
			return t.conn.SetDeadline(time.Time{})
		}
	}
}

// speak has what this process says go where the old one's goes, rather than by way
// of that.
func (t *takeover) speak() error {
	defer t.stderr.Close()
	if err := unix.Dup3(int(t.stderr.Fd()), unix.Stderr, 0); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	return nil
}

// inherit takes the sockets that this process was given rather than has to open:
// the old process's, or systemd's.
func (n *node) inherit(context.Context) error {
	n.inherited = &listen.Inherited{}
	n.onClose(func() error {
		n.inherited.CloseRest()
		return nil
	})
	for _, f := range systemd.Sockets() {
		name := f.Name()
		if err := n.inherited.GiveBound(f); err != nil {
			n.log.Warn("a socket that systemd gave is of no use", "name", name, "err", err)
		}
	}
	t := n.taking
	if t == nil {
		return nil
	}
	n.onClose(func() error { return ignoreClosed(t.conn.Close()) })
	if err := t.receive(n.inherited); err != nil {
		return err
	}
	if t.from.Protocol != handoverVersion {
		return fmt.Errorf("the old process, version %s, hands over in another way than this one: restart the node instead", t.from.Version)
	}
	n.lock = t.lock
	n.onClose(n.unlockData)
	n.upgrades.done.Store(t.from.Counts.Done + 1)
	n.upgrades.failed.Store(t.from.Counts.Failed)
	return nil
}

// takeOver serves what the old process serves, from the state on disk, and has
// that one stop. The parts of the node are still to be started.
func (n *node) takeOver(ctx context.Context) error {
	t := n.taking
	if mode := string(n.engine.PortsMode()); mode != t.from.PortsMode {
		return fmt.Errorf("mapped ports would be opened in another way (%s) than the old process has (%s), which takes a restart; see ports_mode", mode, t.from.PortsMode)
	}
	if err := n.engine.Bind(ctx); err != nil {
		return err
	}
	if !n.control.Restore() {
		return errors.New("there is no state on disk to serve; restart the node instead")
	}
	if err := n.engine.Listen(ctx); err != nil {
		return err
	}
	left, err := t.ready(n.log)
	if err != nil {
		return err
	}
	n.engine.Begin(left)
	if err := t.conn.Send(msgServing, nil); err != nil {
		n.log.Warn("the old process has gone", "err", err)
	}
	if err := t.speak(); err != nil {
		n.log.Warn("what is logged goes by way of the old process, and is lost when that ends", "err", err)
	}
	if closed := n.inherited.CloseRest(); len(closed) > 0 {
		n.log.Info("closed sockets of the old process that this one does not want", "number", len(closed), "some", closed[:min(len(closed), 5)])
	}
	n.elders.add(t.elders...)
	if err := t.awaitRelease(); err != nil {
		// It ended, and so has let go.
		n.log.Warn("the old process has gone without a word", "err", err)
	} else {
		n.elders.add(&elder{elderBody: elderBody{PID: t.from.PID, Version: t.from.Version, Since: time.Now()}, conn: t.conn})
	}
	n.registrar.SetState(fleet.Ready)
	n.tookOver.Store(true)
	n.log.Info("took over", "from", t.from.PID, "version", t.from.Version)
	return nil
}

// nodeSocket is a listening socket of the node besides those of the engine.
type nodeSocket struct {
	proxy.Socket
	socket interface{ File() (*os.File, error) }
}

// listenTCP opens a listener that is the node's own, or takes it from the process
// before this one.
func (n *node) listenTCP(ctx context.Context, field, addr string) (net.Listener, error) {
	ln, err := n.inherited.TCP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("open the %s address: %w", field, err)
	}
	n.sockets = append(n.sockets, nodeSocket{proxy.Socket{Network: "tcp", Address: addr}, ln})
	return ln, nil
}
