package loop

import "net/netip"

// command is something that another goroutine has a loop do.
type command struct {
	kind     commandKind
	flow     *flow           // of cmdRelay, cmdCut and cmdDial
	gen      uint32          // of cmdCut and cmdDial: that of flow
	err      error           // of cmdCut and cmdDial: the cause
	terms    Terms           // of cmdRelay
	listener *Listener       // of cmdListen, cmdUnlisten and cmdAdmit
	fd       int32           // of cmdAdmit
	from     netip.AddrPort  // of cmdAdmit
	next     Next            // of cmdDial
	done     chan<- struct{} // of cmdPulse
}

type commandKind uint8

const (
	cmdStop commandKind = iota
	cmdRelay
	cmdCut
	cmdDial
	cmdListen
	cmdUnlisten
	cmdPulse // say that the loop turns
	cmdAdmit // a connection that another loop accepted
)

// post hands the loop a command. It returns false if the loop has stopped.
func (l *loop) post(c command) bool { return l.poll.Post(c) }

func (l *loop) carryOut(c *command) {
	switch c.kind {
	case cmdStop:
		l.stopping = true
	case cmdRelay:
		l.takeOver(c.flow, &c.terms)
	case cmdCut:
		if c.flow.gen.Load() == c.gen && c.flow.state != free {
			l.cut(c.flow, Cut, c.err)
		}
	case cmdDial:
		if c.flow.gen.Load() == c.gen && c.flow.state == waiting {
			l.dialAfterWait(c.flow, c.next, c.err)
		}
	case cmdListen:
		l.listen(c.listener)
	case cmdUnlisten:
		l.unlisten(c.listener)
	case cmdPulse:
		c.done <- struct{}{}
	case cmdAdmit:
		l.admit(c.listener, c.fd, c.from)
	}
}

// refuse deals with commands that came too late for the loop to obey them, and
// with those that come from here on.
func (l *loop) refuse() {
	for _, c := range l.poll.Refuse() {
		switch c.kind {
		case cmdRelay:
			l.prepare(c.flow, &c.terms)
			l.cut(c.flow, Stopped, nil)
		case cmdListen:
			c.listener.release()
		case cmdAdmit:
			resetFD(c.fd)
		}
	}
}
