package l4

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
	"github.com/remotegpu/sluice/proxy/listen"
)

// udpLoop is an event loop that serves some UDP ports and their sessions. A
// port and its sessions belong to one loop, and nobody else touches their
// sockets; other goroutines ask for things by commands. Events are
// level-triggered: a datagram that is left in a socket is told of again, which
// spares the read that would only learn that there is none.
type udpLoop struct {
	server *Server
	poll   event.Poller[udpCommand]
	slots  []udpSlot // what events are about, by number
	free   []uint32  // numbers of unused slots
	wheel  sessionWheel

	tick  uint32 // loop time when events were last taken, in ticks of the wheel
	round uint32 // waits so far

	in     *batch   // from clients
	inHand *udpPort // that what is in was received for, while commands are carried out
	// Answers that wait to be sent together, all through one port.
	out     *batch
	outPort *udpPort
	outOf   [batchSize]reply
	waiting int             // of them
	spans   [batchSize]span // the answers that each message of out has
	cut     [batchSize][maxSource + segmentControl]byte

	stopping bool
	ports    int // guarded by udpLoops.mu: that it serves
}

// udpSlot is what an event may be about: a port or a session. An event of
// another generation is about what had the slot before.
type udpSlot struct {
	gen     uint32
	port    *udpPort
	session *session
}

// ofCommands marks events of commands; slots begin with generation 1.
const ofCommands = 0

func newUDPLoop(s *Server) (*udpLoop, error) {
	l := &udpLoop{server: s}
	if err := l.poll.Open(); err != nil {
		return nil, err
	}
	l.in, l.out = newBatch(), newBatch()
	return l, nil
}

// run works until it is told to quit, which it is when it serves no port.
func (l *udpLoop) run() {
	for !l.stopping {
		n := l.wait()
		l.wheel.advance(l.tick, l.due)
		for i := range l.poll.Events[:n] {
			l.dispatch(&l.poll.Events[i])
		}
		l.flush()
		if l.poll.Pending() {
			l.poll.Obey(l.carryOut)
		}
	}
	l.close()
}

// close ends the loop, whose commands nobody obeys from here on.
func (l *udpLoop) close() {
	l.poll.Refuse()
	l.poll.Close()
}

// wait returns how many events have come.
func (l *udpLoop) wait() int {
	n, err := l.poll.Wait(l.wheel.due, false)
	if err != nil {
		// Nothing but a descriptor that is not ours any more can be the reason.
		panic(fmt.Sprintf("l4: look for datagrams: %v", err))
	}
	l.tick = uint32(l.poll.Now >> udpTickBits)
	l.round++
	return n
}

func (l *udpLoop) dispatch(ev *unix.EpollEvent) {
	if ev.Pad == ofCommands {
		return // obeyed at the end of the round
	}
	switch slot := &l.slots[ev.Fd]; {
	case slot.gen != uint32(ev.Pad):
	case slot.session != nil:
		l.bringDown(slot.session)
	case slot.port != nil:
		l.takeIn(slot.port)
	}
}

// watch has events of fd dispatched to what is in the slot whose number it
// returns.
func (l *udpLoop) watch(fd int32, what udpSlot) (uint32, error) {
	if len(l.free) == 0 {
		l.free = append(l.free, uint32(len(l.slots)))
		l.slots = append(l.slots, udpSlot{})
	}
	n := l.free[len(l.free)-1]
	slot := &l.slots[n]
	what.gen = max(slot.gen+1, 1)
	if err := l.poll.Add(fd, unix.EPOLLIN, n, what.gen); err != nil {
		return 0, fmt.Errorf("watch a socket: %w", err)
	}
	*slot = what
	l.free = l.free[:len(l.free)-1]
	return n, nil
}

// unwatch forgets the slot n. Events of it that are under way reach nobody.
func (l *udpLoop) unwatch(n uint32) {
	l.slots[n] = udpSlot{gen: l.slots[n].gen}
	l.free = append(l.free, n)
}

// reply is what a place of udpLoop.out is about: datagrams of a size, of which
// the last may be shorter.
type reply struct {
	session       *session
	size, segment int // bytes, of all and of each
}

// span is answers that are sent as one message: first to end-1.
type span struct{ first, end int }

// flush sends the answers that wait. What the kernel refuses is dropped, as a
// router would: a sender that fills the socket's buffer is too fast for the
// link.
func (l *udpLoop) flush() {
	messages := l.compose()
	for sent := 0; sent < messages; {
		n, errno := l.out.send(l.outPort.fd, sent, messages)
		for _, at := range l.spans[sent : sent+n] {
			l.count(at)
		}
		if sent += n; errno != 0 || n == 0 {
			l.refused(l.spans[sent], errno)
			sent++
		}
	}
	clear(l.outOf[:l.waiting])
	l.waiting, l.outPort = 0, nil
}

// compose makes messages of the answers that wait. Those in a row to one client
// that are of one size are one message, which the kernel cuts up: the way through
// it costs as much for 40 datagrams as for one.
func (l *udpLoop) compose() (messages int) {
	for first := 0; first < l.waiting; messages++ {
		a := &l.outOf[first]
		end, size := l.together(first)
		control := a.session.source
		if size > a.segment {
			control = appendSegment(append(l.cut[messages][:0], control...), a.segment)
		}
		l.spans[messages] = span{first, end}
		l.out.put(messages, first, end, &a.session.name, a.session.nameLen, control)
		first = end
	}
	return messages
}

// together returns where the answers end that can be one message from first on, and
// its size: of one size each, but for the last, which may be shorter.
func (l *udpLoop) together(first int) (end, size int) {
	a := &l.outOf[first]
	end, size = first+1, a.size
	if a.size != a.segment || a.size == 0 {
		return end, size
	}
	for ; end < l.waiting; end++ {
		next := &l.outOf[end]
		if next.session != a.session || next.size != next.segment || next.size > a.size || next.size == 0 || size+next.size > maxJoinedSize {
			break
		}
		size += next.size
		if next.size < a.size {
			return end + 1, size
		}
	}
	return end, size
}

// count takes answers that were sent into the books.
func (l *udpLoop) count(at span) {
	for _, a := range l.outOf[at.first:at.end] {
		a.session.flow.down.Add(int64(a.size))
		a.session.flow.datagrams.Add(int64(segments(a.size, a.segment)))
	}
}

// refused deals with answers that could not be sent together: if it is for that
// they are sent one by one.
func (l *udpLoop) refused(at span, errno syscall.Errno) {
	for i := at.first; i < at.end; i++ {
		a := &l.outOf[i]
		p := unsafe.Slice(l.out.iovs[i].Base, a.size)
		if at.end-at.first == 1 && a.size <= a.segment || !refusesJoined(errno) {
			l.server.metrics.dropped[dropSend].Add(float64(segments(a.size, a.segment)))
			continue
		}
		for {
			one := p[:min(a.segment, len(p))]
			if l.sendAnswer(a.session, one) == 0 {
				a.session.flow.down.Add(int64(len(one)))
				a.session.flow.datagrams.Add(1)
			} else {
				l.server.metrics.drop(dropSend)
			}
			if p = p[len(one):]; len(p) == 0 {
				break
			}
		}
	}
}

func (l *udpLoop) sendAnswer(s *session, p []byte) syscall.Errno {
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	hdr := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.name)), Namelen: s.nameLen, Iov: &iov, Control: unsafe.SliceData(s.source)}
	hdr.SetIovlen(1)
	hdr.SetControllen(len(s.source))
	return sendmsg(s.port.fd, &hdr)
}

// udpCommand is something that another goroutine has a loop do.
type udpCommand struct {
	kind    udpCommandKind
	port    *udpPort
	session *session
	done    chan<- struct{} // of cmdPulse
}

type udpCommandKind uint8

const (
	cmdQuit      udpCommandKind = iota
	cmdServe                    // begin with the port
	cmdClose                    // end the port and its sessions
	cmdWithdrawn                // its mapping is gone
	cmdRest                     // it had no session for long enough
	cmdUnmute                   // try to receive again
	cmdEnd                      // the session's flow was stopped
	cmdPulse                    // say that the loop turns
	cmdLeave                    // leave the port to another process
	cmdSeek                     // the name of the session's backend was looked up
)

// post hands the loop a command. Nobody obeys it if the loop has stopped.
func (l *udpLoop) post(c udpCommand) { l.poll.Post(c) }

func (l *udpLoop) carryOut(c *udpCommand) {
	switch c.kind {
	case cmdQuit:
		l.stopping = true
	case cmdServe:
		l.serve(c.port)
	case cmdClose:
		l.closePort(c.port, nil)
	case cmdWithdrawn:
		c.port.withdrawn = true
		l.leaveIfWithdrawn(c.port)
	case cmdRest:
		switch u := c.port; {
		case u.over || !u.isQuiet():
		case u == l.inHand:
			u.restless.Reset(u.options.Rest)
		default:
			l.finishPort(u, nil)
		}
	case cmdUnmute:
		if !c.port.over {
			l.listen(c.port)
		}
	case cmdPulse:
		c.done <- struct{}{}
	case cmdLeave:
		l.surrender(c.port)
	case cmdEnd:
		l.end(c.session)
	case cmdSeek:
		l.seekOn(c.session)
	}
}

// udpLoops are the loops of a server: as many as Go may use processors, each
// there while it has a port. The zero value is none.
type udpLoops struct {
	running sync.WaitGroup

	mu    sync.Mutex // guards the following fields
	loops []*udpLoop // nil where none runs
	ports map[uint16][]*udpPort
}

// join has u served by the loop that has the fewest ports, begun if need be.
func (g *udpLoops) join(s *Server, u *udpPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.loops == nil {
		g.loops, g.ports = make([]*udpLoop, runtime.GOMAXPROCS(0)), map[uint16][]*udpPort{}
	}
	best := 0
	for i, l := range g.loops {
		if l == nil {
			best = i
			break
		}
		if l.ports < g.loops[best].ports {
			best = i
		}
	}
	if g.loops[best] == nil {
		l, err := newUDPLoop(s)
		if err != nil {
			return err
		}
		g.loops[best] = l
		g.running.Go(l.run)
	}
	u.loop = g.loops[best]
	u.loop.ports++
	g.ports[u.number] = append(g.ports[u.number], u)
	return nil
}

// leave takes back what join did, when the loop is through with u.
func (g *udpLoops) leave(u *udpPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	same := g.ports[u.number]
	for i := range same {
		if same[i] == u {
			same[i] = same[len(same)-1]
			same[len(same)-1] = nil
			g.ports[u.number] = same[:len(same)-1]
			break
		}
	}
	if len(g.ports[u.number]) == 0 {
		delete(g.ports, u.number)
	}
	if u.loop.ports--; u.loop.ports > 0 {
		return
	}
	u.loop.post(udpCommand{kind: cmdQuit})
	last := true
	for i, l := range g.loops {
		if l == u.loop {
			g.loops[i] = nil
		}
		last = last && g.loops[i] == nil
	}
	if last { // nothing of them is left when the last ServeUDP returns
		g.running.Wait()
	}
}

// each calls visit with a descriptor of the socket of each port, which visit owns,
// until an error. No lock is held then, and no other of the descriptors open.
func (g *udpLoops) each(visit func(number int, f *os.File) error) error {
	g.mu.Lock()
	var all []*udpPort
	for _, same := range g.ports {
		all = append(all, same...)
	}
	g.mu.Unlock()
	for _, u := range all {
		f, err := g.duplicate(u)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		if err := visit(int(u.number), f); err != nil {
			return err
		}
	}
	return nil
}

// duplicate returns another descriptor of u's socket, or nil where u has left.
func (g *udpLoops) duplicate(u *udpPort) (*os.File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.ports[u.number], u) {
		return nil, nil
	}
	return listen.DuplicateFD(int(u.fd), u.name)
}

// pulse waits until every loop has turned once, or ctx ends.
func (g *udpLoops) pulse(ctx context.Context) error {
	g.mu.Lock()
	done, asked := make(chan struct{}, len(g.loops)), 0
	for _, l := range g.loops {
		if l != nil && l.poll.Post(udpCommand{kind: cmdPulse, done: done}) {
			asked++
		}
	}
	g.mu.Unlock()
	for asked > 0 {
		select {
		case <-done:
			asked--
		case <-ctx.Done():
			return fmt.Errorf("an event loop for UDP does not turn: %w", ctx.Err())
		}
	}
	return nil
}

// withdrawn tells the ports of the given number that a mapping of it is gone.
func (g *udpLoops) withdrawn(number int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, u := range g.ports[uint16(number)] {
		u.loop.post(udpCommand{kind: cmdWithdrawn, port: u})
	}
}
