package loop

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"
)

// End is why a flow is over.
type End uint8

const (
	ClientClosed  End = iota + 1 // both sides closed in order, the client first
	BackendClosed                // both sides closed in order, the backend first
	ClientReset                  // the client's side was reset
	BackendReset                 // the backend's side was reset
	Idle                         // no byte moved for the idle timeout
	Stalled                      // one side took none of the bytes that waited for it, for the stall timeout
	Cut                          // Flow.Cut; Report.Err is its cause
	Stopped                      // the context of Group.Run ended
	ConnectFailed                // no backend could be connected to; Report.Err says why
	Failed                       // anything else; Report.Err says what
)

var endNames = [...]string{
	ClientClosed: "client_closed", BackendClosed: "backend_closed", ClientReset: "client_reset", BackendReset: "backend_reset",
	Idle: "idle", Stalled: "stalled", Cut: "cut", Stopped: "stopped", ConnectFailed: "connect_failed", Failed: "error",
}

// String returns the end in one word.
func (e End) String() string {
	if int(e) < len(endNames) && e > 0 {
		return endNames[e]
	}
	return "unknown"
}

// Report is what became of a flow.
type Report struct {
	End      End
	Err      error // of Cut, ConnectFailed and Failed; else nil
	Up, Down int64 // bytes passed on, to the backend and to the client
	Duration time.Duration
}

// nobody owns flows that nobody asks about.
type nobody struct{}

func (nobody) Dialed(time.Duration, error) Next { return Next{} }
func (nobody) Ended(Report)                     {}

// Next is where a flow goes after a connect has failed. The zero value gives
// up.
type Next struct {
	To      netip.AddrPort
	Timeout time.Duration // of connecting; 0 means DefaultConnectTimeout
	// Wait leaves the client where it is until Flow.Dial is called, which must
	// then happen.
	Wait bool
}

// Owner is the caller's side of a flow. The loop calls it, so that its methods
// must not block. They may call Flow.Cut, of any flow.
type Owner interface {
	// Dialed is told the outcome of connecting to the backend, and how long it
	// took; err is os.ErrDeadlineExceeded where it took too long. After a failure it returns where to try next; after a success what
	// it returns is ignored. Flows that came in through Group.Relay are not
	// dialed.
	Dialed(took time.Duration, err error) Next
	// Ended is the last call about the flow, when its sockets are closed. Every
	// flow that has an owner gets exactly one. Until it returns Flow.Bytes goes
	// on to tell what the report says.
	Ended(Report)
}

// Flow refers to a flow from anywhere, for as long as one likes: once the flow
// has ended it refers to none. The zero value refers to none. Methods may be
// called from any goroutine, and from callbacks.
type Flow struct {
	flow *flow
	gen  uint32
}

// Bytes returns how many bytes have been passed on so far, to the backend and to
// the client, or false if the flow has ended.
func (h Flow) Bytes() (up, down int64, live bool) {
	if h.flow == nil || h.flow.gen.Load() != h.gen {
		return 0, 0, false
	}
	up, down = max(h.flow.side[client].moved.Load(), 0), h.flow.side[backend].moved.Load()
	// The slot may have gone to another flow meanwhile.
	if h.flow.gen.Load() != h.gen {
		return 0, 0, false
	}
	return up, down, true
}

// Cut ends the flow with a reset on both sides. It does not wait for that: the
// owner's Ended does the telling. The first cause counts; nil is a cause. To cut
// a flow that has ended does nothing.
func (h Flow) Cut(cause error) {
	if h.flow != nil && h.flow.gen.Load() == h.gen {
		h.flow.loop.post(command{kind: cmdCut, flow: h.flow, gen: h.gen, err: cause})
	}
}

// Dial says where to connect a flow that waits for that, or, by a Next without a
// valid To, that it ends because of err. It does nothing for any other flow.
func (h Flow) Dial(next Next, err error) {
	if h.flow != nil && h.flow.gen.Load() == h.gen {
		h.flow.loop.post(command{kind: cmdDial, flow: h.flow, gen: h.gen, next: next, err: err})
	}
}

var errGroupStopped = errors.New("loop: the group has stopped")

// A flow's sides, which index flow.side.
const (
	client  = 0
	backend = 1
)

// state is what a flow is at.
type state uint8

const (
	free       state = iota // the slot has no flow, or one that is not the loop's yet
	waiting                 // for Flow.Dial
	connecting              // to the backend
	relaying
	flushing // the flow is over, but what the victim of a reset was sent is still under way
)

// flow is a slot of a slab. All but gen and the counters belongs to the loop.
type flow struct {
	gen   atomic.Uint32 // another one for each flow in the slot; never 0
	index uint32        // of the slot
	loop  *loop
	owner Owner
	pace  Pace
	side  [2]side
	timer node

	state     state
	end       End    // whose FIN came first; 0: none came
	broken    uint8  // 1 + the side that could not be written to any more; 0: none
	tries     uint8  // connects begun: tells the events of one from those of another
	errno     uint16 // what the broken side failed with, once the flow is over
	keepalive bool   // is on
	stallSeen bool   // is in the wheel because of a queue
	next      uint32 // the next free slot
	idle      uint32 // ticks; 0: no timeout
	stall     uint32 // ticks; 0: no timeout
	active    uint32 // tick of the last byte
	deadline  uint32 // tick at which connecting, flushing or the time of a broken flow is over
	since     int64  // loop time
	dialed    int64  // loop time at which the connect in progress began
}

// side is one of a flow's two connections, and the direction of the bytes that
// come from it.
type side struct {
	fd    int32
	flags sideFlags
	full  uint8        // reads in a row that filled the buffer, or splices in a row that were poor
	moved atomic.Int64 // bytes from here that the other side took; below 0: of the header
	until uint32       // tick until which it is paused
	queue *queue       // bytes from here that the other side has not taken; nil: none
}

type sideFlags uint16

const (
	readable sideFlags = 1 << iota // a read may give something
	drain                          // reads must go on until EAGAIN: something that is not bytes comes behind them
	eof                            // the peer's FIN was read
	deaf                           // there is nobody to pass bytes on to, and they are not read
	bulk                           // bytes are spliced
	wrote                          // something was written to the socket
	noDelay                        // TCP_NODELAY is on
	inLine                         // it waits for its turn
	paused                         // its pace has no bytes from here move for a while
)

func (s *side) has(f sideFlags) bool { return s.flags&f != 0 }

// peer returns the other side.
func peer(s int) int { return s ^ 1 }
