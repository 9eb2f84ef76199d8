package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/systemd"
	"github.com/remotegpu/sluice/proxy"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// An upgrade is a conversation of two processes, the old one and the new one that
// it has started, by the messages below, in this order. The new one serves TCP
// from just before it says ready, and everything once it was told what is left.
const (
	msgHello    = "hello"    // new: it has read its configuration
	msgBegin    = "begin"    // old: what it is, with the lock of the data directory
	msgSockets  = "sockets"  // old: some of its sockets
	msgElder    = "elder"    // old: a process that lingers since an upgrade before, with its connection
	msgEnd      = "end"      // old: that is all; it changes nothing from here on
	msgReady    = "ready"    // new: it has all it needs
	msgUDP      = "udp"      // old, which accepts no more: some sessions of a port
	msgDatagram = "datagram" // old: one that came for a port and is still to be served
	msgQUIC     = "quic"     // old: a process that has connections on a UDP socket
	msgLeft     = "left"     // old: that is all
	msgServing  = "serving"  // new: it reads UDP as well
	msgReleased = "released" // old: the data directory, etcd and the node's name are free
)

// handoverVersion is raised where two versions of the program could not understand
// each other.
const handoverVersion = 1

type (
	helloBody struct {
		Protocol int
		Version  string
		PID      int
	}
	beginBody struct {
		Protocol  int
		Version   string
		PID       int
		PortsMode string
		Counts    upgradeCounts
	}
	socketsBody struct{ Sockets []proxy.Socket }
	elderBody   struct {
		PID     int
		Version string
		Since   time.Time
	}
	udpBody struct {
		Port      int
		HasSocket bool // the first file
		Sessions  []l4.UDPSession
	}
	datagramBody struct {
		Port int
		l4.Datagram
	}
)

// upgradeCounts go from process to process.
type upgradeCounts struct{ Done, Failed int64 }

// The variable by which a process learns that it is to take over: the numbers of
// two descriptors, the connection's and that of standard error as the old one has
// it.
const (
	handoverVariable = "SLUICE_HANDOVER"
	handoverFD       = 3
	stderrFD         = 4
)

// ownPath is where the program was found when this process began: whatever lies
// there when it is to be replaced is the new one.
var ownPath = sync.OnceValues(findOwnPath)

func findOwnPath() (string, error) {
	path, err := exec.LookPath(os.Args[0]) // with a slash in it, it is taken as it is
	if err == nil || errors.Is(err, exec.ErrDot) {
		if path, err = filepath.Abs(path); err == nil && isThisProgram(path) {
			return path, nil
		}
	}
	return os.Executable()
}

func isThisProgram(path string) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	self, err := os.Stat("/proc/self/exe")
	return err == nil && os.SameFile(at, self)
}

// successor is a new process while it gets ready.
type successor struct {
	process *os.Process
	conn    *handover.Conn
	said    *lastLines
	version string
}

// upgradeError says why an upgrade came to nothing, with what the new process said
// last.
type upgradeError struct {
	err  error
	said []string
}

func (e *upgradeError) Error() string { return e.err.Error() }
func (e *upgradeError) Unwrap() error { return e.err }

// saidLines is how many of the last lines of a new process are kept.
const saidLines = 20

// replace starts the program anew and hands everything over to it. On error this
// process serves on as if nothing had been.
func (n *node) replace(ctx context.Context) (*successor, error) {
	if os.Getpid() == 1 {
		return nil, errors.New("this process is the first of its container, which ends with it: start another container instead")
	}
	if parent := minder(); parent != "" && os.Getenv("NOTIFY_SOCKET") == "" {
		return nil, fmt.Errorf("%s, which started this process, minds no other: when this one ends, it would end the container or start the node a second time; "+
			"restart the node instead, or start another container", parent)
	}
	if !n.serving() {
		return nil, errors.New("this node has no state to hand over yet: wait until it is ready")
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Upgrade.Timeout)
	defer cancel()
	s, err := n.startSuccessor()
	if err != nil {
		return nil, err
	}
	unbound := bindTo(ctx, s.conn)
	left, err := n.handOver(ctx, s)
	unbound() // what is left cannot be taken back, and has a time of its own
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the new process was not ready within %v", n.cfg.Upgrade.Timeout)
			if errors.Is(context.Cause(ctx), context.Canceled) {
				err = errors.New("this process is to stop")
			}
		}
		if errors.Is(err, errNewEnded) || errors.Is(err, errNewFell) {
			s.said.wait() // it may be about to say why
		}
		s.process.Kill() // unless it has gone
		s.conn.Close()
		return nil, &upgradeError{err, s.said.wait()}
	}
	s.conn.SetDeadline(time.Now().Add(n.cfg.Upgrade.Timeout))
	n.leaveTo(s, left)
	return s, nil
}

// bindTo has what is sent and received fail once ctx ends. The function returned
// ends that: afterwards nobody but the caller sets the connection's deadline.
func bindTo(ctx context.Context, conn *handover.Conn) (unbind func()) {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-over
		}
	}
}

// serving reports whether the node has a state that another process could serve.
func (n *node) serving() bool {
	source, _ := n.control.Status()
	return source != "none"
}

// startSuccessor starts the program.
func (n *node) startSuccessor() (*successor, error) {
	path, err := ownPath()
	if err != nil {
		return nil, fmt.Errorf("find the program to start: %w", err)
	}
	conn, theirs, err := handover.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	said, w, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer w.Close()
	args := append([]string{os.Args[0]}, os.Args[1:]...)
	env := append(systemd.Environment(), fmt.Sprintf("%s=%d,%d", handoverVariable, handoverFD, stderrFD))
	process, err := os.StartProcess(path, args, &os.ProcAttr{
		Env: env, Files: []*os.File{os.Stdin, os.Stdout, w, theirs, os.Stderr},
		// It is a child of our parent, not ours: who supervises this process
		// learns of the new one's end, and does not inherit it when we end.
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT},
	})
	if err != nil {
		conn.Close()
		said.Close()
		return nil, fmt.Errorf("start the new process: %w", err)
	}
	return &successor{process: process, conn: conn, said: follow(said)}, nil
}

// lastLines passes on what a process says, and keeps the end of it.
type lastLines struct {
	done chan struct{} // closed when it says no more

	mu    sync.Mutex // guards the following field
	lines []string
}

func follow(from *os.File) *lastLines {
	l := &lastLines{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer from.Close()
		for r := bufio.NewReader(from); ; {
			line, err := r.ReadString('\n')
			if line != "" {
				io.WriteString(os.Stderr, line)
				l.keep(strings.TrimRight(line, "\n"))
			}
			if err != nil {
				return
			}
		}
	}()
	return l
}

func (l *lastLines) keep(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > saidLines {
		l.lines = l.lines[1:]
	}
}

// wait returns the last lines of a process that has ended, or is about to.
func (l *lastLines) wait() []string {
	select {
	case <-l.done:
	case <-time.After(2 * time.Second): // somebody else has its end of the pipe
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines
}

var (
	errNewEnded = errors.New("the new process has ended before it was ready")
	errNewFell  = errors.New("the new process has ended right after it was ready; connections that it had accepted are lost")
)

// hear returns the body of the next message, which must be of a kind.
func (s *successor) hear(kind string, body any) error {
	m, files, err := s.conn.Receive()
	handover.CloseAll(files)
	switch {
	case errors.Is(err, io.EOF):
		return errNewEnded
	case err != nil:
		return err
	case m.Kind != kind:
		return fmt.Errorf("the new process says %q where %q was expected", m.Kind, kind)
	case body == nil:
		return nil
	}
	return m.Into(body)
}

// probation is for how long the new process accepts TCP beside this one, before
// this one leaves everything to it: one that its first clients bring down costs
// these alone. Changes are held up meanwhile.
const probation = time.Second

// stays waits until the new process, which is ready, has proven to stay.
func (s *successor) stays(ctx context.Context, within time.Duration) error {
	s.conn.SetDeadline(time.Now().Add(within))
	m, files, err := s.conn.Receive()
	handover.CloseAll(files)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.Is(err, io.EOF):
		return errNewFell
	case err == nil:
		err = fmt.Errorf("the new process says %q where it was to wait", m.Kind)
	}
	return err
}

// handOver gives the new process all it needs, waits until it is ready and has
// proven to stay, and stops accepting. On error nothing has changed.
func (n *node) handOver(ctx context.Context, s *successor) (left proxy.Left, err error) {
	var hello helloBody
	if err := s.hear(msgHello, &hello); err != nil {
		return left, err
	}
	s.version = hello.Version
	if hello.Protocol != handoverVersion {
		return left, fmt.Errorf("the new program, version %s, hands over in another way than this one: restart the node instead", hello.Version)
	}
	// From here to the end nothing is changed: the state on disk is what is in
	// force, and stays so.
	n.gate.Lock()
	defer n.gate.Unlock()
	release, err := n.engine.Hold()
	if err != nil {
		return left, fmt.Errorf("this node cannot be upgraded, only restarted: %w", err)
	}
	defer release()
	if err := n.control.Save(ctx, true); err != nil {
		return left, errors.Join(fmt.Errorf("the state cannot be saved, by which the new process would begin: %w", err), n.resumeSaving())
	}
	if err = n.sendSockets(s.conn); err == nil {
		err = s.hear(msgReady, nil)
	}
	if err == nil {
		err = s.stays(ctx, min(probation, n.cfg.Upgrade.Timeout/4))
	}
	if err != nil {
		return left, errors.Join(err, n.resumeSaving())
	}
	left = n.engine.Retire()
	n.session.Leave()
	n.running.stop("session", "registrar") // so that no verdict is written that is not true of the new one
	return left, nil
}

// resumeSaving has the state be saved again. It is not waited for.
func (n *node) resumeSaving() error {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Upgrade.Timeout)
		defer cancel()
		if err := n.control.Save(ctx, false); err != nil {
			n.log.Error("cannot save the state", "err", err)
		}
	}()
	return nil
}

// sendSockets sends everything that the new process begins with.
func (n *node) sendSockets(to *handover.Conn) error {
	err := to.Send(msgBegin, beginBody{
		Protocol: handoverVersion, Version: versionString(), PID: os.Getpid(), PortsMode: string(n.engine.PortsMode()), Counts: n.upgrades.counts(),
	}, n.lock)
	if err != nil {
		return err
	}
	b := socketBatch{to: to}
	defer b.drop()
	if err := n.engine.EachSocket(b.add); err != nil {
		return fmt.Errorf("hand over the sockets: %w", err)
	}
	for _, own := range n.sockets {
		f, err := own.socket.File()
		if err == nil {
			err = b.add(own.Socket, f)
		}
		if err != nil {
			return fmt.Errorf("hand over the %s socket: %w", own.Network, err)
		}
	}
	if err := b.send(); err != nil {
		return err
	}
	if err := n.elders.sendTo(to); err != nil {
		return err
	}
	return to.Send(msgEnd, nil)
}

// socketBatch gathers sockets for one message.
type socketBatch struct {
	to      *handover.Conn
	sockets []proxy.Socket
	files   []*os.File
}

func (b *socketBatch) add(s proxy.Socket, f *os.File) error {
	b.sockets, b.files = append(b.sockets, s), append(b.files, f)
	if len(b.files) < handover.MaxFiles {
		return nil
	}
	return b.send()
}

func (b *socketBatch) send() error {
	if len(b.files) == 0 {
		return nil
	}
	err := b.to.Send(msgSockets, socketsBody{b.sockets}, b.files...)
	b.drop()
	return err
}

func (b *socketBatch) drop() {
	handover.CloseAll(b.files)
	b.sockets, b.files = nil, nil
}

// leaveTo gives the new process what is left, which is served by nobody meanwhile,
// and tells who supervises this one. What goes wrong here ends flows, and nothing
// can be taken back.
func (n *node) leaveTo(s *successor, left proxy.Left) {
	systemd.Notify(fmt.Sprintf("MAINPID=%d", s.process.Pid))
	for i := range left.UDP {
		if err := sendUDPPort(s.conn, &left.UDP[i]); err != nil {
			n.log.Error("cannot hand over the sessions of a mapped UDP port", "port", left.UDP[i].Number, "err", err)
		}
		left.UDP[i].Close()
	}
	for i := range left.QUIC {
		if err := s.conn.Send(msgQUIC, left.QUIC[i], left.QUIC[i].Socket); err != nil {
			n.log.Error("cannot hand over connections of HTTP/3", "err", err)
		}
		left.QUIC[i].Socket.Close()
	}
	err := s.conn.Send(msgLeft, nil)
	if err == nil {
		err = s.hear(msgServing, nil)
	}
	if err != nil {
		n.log.Error("the new process does not say that it serves", "err", err)
	}
}

// udpBatch is how many sessions of UDP go by one message.
const udpBatch = 100

// sendUDPPort sends what is left of a port. Sessions that cannot go over are lost
// alone.
func sendUDPPort(to *handover.Conn, p *l4.UDPPort) error {
	var errs []error
	socket := p.Socket
	for first := 0; first < len(p.Sessions); first += udpBatch {
		errs = append(errs, sendUDPSessions(to, p.Number, socket, p.Sessions[first:min(first+udpBatch, len(p.Sessions))]))
		socket = nil // went with the first ones
	}
	for _, d := range p.First {
		errs = append(errs, to.Send(msgDatagram, datagramBody{p.Number, d}))
	}
	return errors.Join(errs...)
}

// sendUDPSessions sends some sessions of a port, in halves where they are too long
// for a message, with the port's own socket unless that is nil.
func sendUDPSessions(to *handover.Conn, port int, socket *os.File, some []l4.UDPSession) error {
	body := udpBody{Port: port, HasSocket: socket != nil, Sessions: some}
	var files []*os.File
	if socket != nil {
		files = append(files, socket)
	}
	for i := range some {
		files = append(files, some[i].Socket)
	}
	err := to.Send(msgUDP, body, files...)
	switch half := len(some) / 2; {
	case !errors.Is(err, handover.ErrTooLong) || len(some) == 0:
		return err
	case half == 0: // the socket goes on without it
		if socket == nil {
			return err
		}
		return errors.Join(err, sendUDPSessions(to, port, socket, nil))
	default:
		return errors.Join(sendUDPSessions(to, port, socket, some[:half]), sendUDPSessions(to, port, nil, some[half:]))
	}
}

// takenUDP puts what sendUDPPort has sent together again.
type takenUDP map[int]*l4.UDPPort

func (t takenUDP) port(number int) *l4.UDPPort {
	if t[number] == nil {
		t[number] = &l4.UDPPort{Number: number}
	}
	return t[number]
}

func (t takenUDP) add(body *udpBody, files []*os.File) error {
	want := len(body.Sessions)
	if body.HasSocket {
		want++
	}
	if len(files) != want {
		handover.CloseAll(files)
		return fmt.Errorf("%d files came with %d sessions of UDP", len(files), len(body.Sessions))
	}
	p := t.port(body.Port)
	if body.HasSocket {
		p.CloseSocket()
		p.Socket, files = files[0], files[1:]
	}
	for i := range body.Sessions {
		body.Sessions[i].Socket = files[i]
	}
	p.Sessions = append(p.Sessions, body.Sessions...)
	return nil
}

func (t takenUDP) all() (ports []l4.UDPPort) {
	for _, p := range t {
		ports = append(ports, *p)
	}
	return ports
}

func decodeQUIC(m handover.Message, files []*os.File) (e proxyhttp.QUICElder, err error) {
	if err := m.Into(&e); err != nil || len(files) != 1 {
		handover.CloseAll(files)
		return e, cmpErr(err, errors.New("no file came with connections of HTTP/3"))
	}
	e.Socket = files[0]
	return e, nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// indented returns lines as they are shown below an error.
func indented(lines []string) string {
	var b bytes.Buffer
	for _, line := range lines {
		fmt.Fprintf(&b, "\n  | %s", line)
	}
	return b.String()
}

// upgradeResult is what a request for an upgrade is answered with.
type upgradeResult struct {
	PID       int      `json:"pid,omitempty"`
	Version   string   `json:"version,omitempty"`
	Was       string   `json:"was"`
	Remaining int      `json:"remaining"` // flows that the old process keeps
	Error     string   `json:"error,omitempty"`
	Said      []string `json:"said,omitempty"` // by the new process, last, where it failed
}

func (n *node) upgradeResult(s *successor, err error) upgradeResult {
	r := upgradeResult{Was: versionString()}
	if err != nil {
		r.Error = err.Error()
		if failed, ok := errors.AsType[*upgradeError](err); ok {
			r.Said = failed.said
		}
		return r
	}
	r.PID, r.Version, r.Remaining = s.process.Pid, s.version, n.engine.Remaining()
	return r
}

func (r upgradeResult) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain fields
	}
	return append(b, '\n')
}
