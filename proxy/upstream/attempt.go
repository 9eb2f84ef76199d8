package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/remotegpu/sluice/router"
)

// State says what Attempt.Next came to.
type State uint8

const (
	// Exhausted means that nothing is left to try; Err tells what became of all
	// that was.
	Exhausted State = iota
	// Ready means that there is an address to connect to. Connected, Failed or
	// Done comes next.
	Ready
	// Unresolved means that the target's name is to be resolved first, which
	// may take a while: Resolve comes next, then Next again.
	Unresolved
)

// Attempt is one flow's way to a backend: the targets in the order to try, and
// the addresses of each, those of a name by turns. It waits for nothing but in Resolve, so that an event
// loop can walk it. For one target that is an IP address it allocates nothing.
//
// An Attempt is of one goroutine at a time and must not be copied once Next was
// called. Whoever has it calls Done in the end, exactly when the flow is over;
// a second Done does nothing.
type Attempt struct {
	// Timeout bounds the time for one target, its name's resolving included;
	// 0 means router.DefaultConnectTimeout. It may be set until Next is called.
	Timeout time.Duration

	dialer  *Dialer
	backend *router.Backend
	eps     []Endpoint // the targets, where they hold variables; else backend has them
	order   []int32    // of the targets; nil where there is one
	begun   int        // targets so far
	key     uint64     // what balance goes by, where it goes by something
	at      int32      // which target is under way
	stuck   int32      // one more than the target that the client is to stay at; 0: none
	stuckAt uint64     // the tag of the address that it is to stay at there; 0: none
	balance policy
	zone    zoning
	udp     bool
	routed  bool // of a route, not of a mapping
	quiet   bool // a check: no flow's, and what it learns is kept elsewhere
	over    bool // whoever asked has given up

	// The target under way.
	ep      Endpoint
	addr    netip.AddrPort
	more    []netip.AddrPort // addresses yet to try
	step    step
	itself  bool // addr is what ep says, and yet to try
	several bool // addresses in all
	named   bool // the addresses are not what ep says
	outcome outcome
	spent   time.Duration
	failed  error // of its addresses
	lease   Lease

	err error // of the targets before
}

// step is how far an Attempt is with its target.
type step uint8

const (
	atNone       step = iota // no target under way
	atName                   // its name is to be resolved
	atAddress                // addresses are left to try
	atConnecting             // the address addr is being tried
	atConnected
)

// Attempt returns a flow's way to b, whose variables stand for the values in v
// (nil where there are none). client is the flow's client, for the policies that
// go by it; the zero Addr if that is not known. The error says which value of v
// cannot be part of an address.
func (d *Dialer) Attempt(b *router.Backend, v *router.Vars, client netip.Addr) (Attempt, error) {
	return d.AttemptFor(b, v, Asker{Client: client})
}

// AttemptFor is Attempt for a flow of which more is known than its client.
func (d *Dialer) AttemptFor(b *router.Backend, v *router.Vars, by Asker) (Attempt, error) {
	a := Attempt{dialer: d, backend: b, routed: b.OfRoute()}
	if len(b.Targets) == 0 {
		return a, errors.New("the backend has no targets")
	}
	if !isLiteral(b) {
		var err error
		if a.eps, err = expand(b, v); err != nil {
			return a, err
		}
	}
	a.choose(by)
	return a, nil
}

// AttemptUDP is Attempt for a UDP flow: nothing of it shows in the metrics of
// connecting. Ready addresses are there to be taken, and Failed is for what goes
// wrong with a socket, such as an ICMP port unreachable.
func (d *Dialer) AttemptUDP(b *router.Backend, v *router.Vars, client netip.Addr) (Attempt, error) {
	a, err := d.Attempt(b, v, client)
	a.udp = true
	return a, err
}

func isLiteral(b *router.Backend) bool {
	for i := range b.Targets {
		if !b.Targets[i].Address.IsLiteral() {
			return false
		}
	}
	return true
}

func expand(b *router.Backend, v *router.Vars) ([]Endpoint, error) {
	if v == nil {
		v = &router.Vars{}
	}
	eps := make([]Endpoint, len(b.Targets))
	for i := range b.Targets {
		host, port, err := b.Targets[i].Address.Expand(v)
		if err != nil {
			return nil, err
		}
		eps[i] = EndpointOf(b, i, host, port)
	}
	return eps, nil
}

// target returns target i of the backend.
func (a *Attempt) target(i int) Endpoint {
	if a.eps != nil {
		return a.eps[i]
	}
	host, port, _ := a.backend.Targets[i].Address.Expand(nil) // of a literal: no error
	return EndpointOf(a.backend, i, host, port)
}

// Next moves on to the next address, or says what has to come first. The
// Endpoint is the target that the address belongs to, also where it is
// unresolved yet.
func (a *Attempt) Next() (netip.AddrPort, Endpoint, State) {
	for {
		switch a.step {
		case atAddress:
			if !a.nextAddress() {
				a.settle()
			} else if err := a.forbidden(); err != nil {
				a.fail(0, err, outOther)
			} else {
				return a.addr, a.ep, Ready
			}
		case atName:
			if !a.recall() {
				return netip.AddrPort{}, a.ep, Unresolved
			}
		case atConnecting:
			a.step = atAddress // the caller passes it over
		default:
			if a.over || !a.nextTarget() {
				return netip.AddrPort{}, Endpoint{}, Exhausted
			}
		}
	}
}

// NextTarget moves on to the next target, for callers that keep connections to
// targets by themselves; ok is false where none is left.
func (a *Attempt) NextTarget() (ep Endpoint, ok bool) {
	if a.over || !a.nextTarget() {
		return Endpoint{}, false
	}
	return a.ep, true
}

func (a *Attempt) nextTarget() bool {
	if a.backend == nil || a.begun == len(a.backend.Targets) {
		a.step = atNone
		return false
	}
	i := a.pick()
	a.at = int32(i)
	a.begin(a.target(i))
	if a.eps == nil {
		if addr, ok := a.backend.Targets[i].Address.IP(); ok {
			a.addr, a.itself, a.step = unmap(addr), true, atAddress
		}
	}
	return true
}

// begin makes ep the target under way.
func (a *Attempt) begin(ep Endpoint) {
	a.begun++
	a.ep, a.step = ep, atName
	a.addr, a.more, a.itself, a.several, a.named = netip.AddrPort{}, nil, false, false, false
	a.outcome, a.spent, a.failed = outConnected, 0, nil
}

// nextAddress takes the next address of the target, if there is one and time.
func (a *Attempt) nextAddress() bool {
	switch {
	case a.spent >= a.timeout():
		return false
	case a.itself:
		a.itself = false
	case len(a.more) == 0:
		return false
	default:
		a.addr, a.more = a.more[0], a.more[1:]
	}
	a.step = atConnecting
	return true
}

// forbidden returns why the address must not be connected to.
func (a *Attempt) forbidden() error {
	if a.ep.Barred {
		if err := a.dialer.barred(a.addr.Addr()); err != nil {
			return &ForbiddenError{err}
		}
	}
	if a.dialer.forbid == nil {
		return nil
	}
	to := Connecting{Proto: router.TCP, Endpoint: a.ep, Addr: a.addr, Routed: a.routed}
	if a.udp {
		to.Proto = router.UDP
	}
	if err := a.dialer.forbid(to); err != nil {
		return &ForbiddenError{err}
	}
	return nil
}

// barred says why addr must not be connected to where Endpoint.Barred says so.
func (d *Dialer) barred(addr netip.Addr) error {
	at := router.EndOf(addr)
	if at.IsUnspecified() { // where this machine answers as well
		at = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	for _, net := range d.bar {
		if net.Contains(at) {
			return fmt.Errorf("%v lies in %v, where no name leads that an environment has for a backend (api.deny_backends in sluice.yaml); give the address itself", addr, net)
		}
	}
	return nil
}

// recall takes the addresses of the target's name from memory. It reports false
// where it has to be looked up.
func (a *Attempt) recall() bool {
	addrs, err, known := a.dialer.recall(a.ep)
	if !known {
		return false
	}
	a.resolved(addrs, err)
	return true
}

// resolved takes the outcome of resolving the target's name.
func (a *Attempt) resolved(addrs []netip.AddrPort, err error) {
	if err != nil {
		a.fail(0, err, outcomeOf(context.Background(), err))
		return
	}
	a.arrange(addrs)
	a.more, a.several = addrs, len(addrs) > 1
	_, isIP := a.ep.ip()
	a.named = !isIP
	a.step = atAddress
}

// Resolve looks up the name of the target that Next called unresolved, and waits
// for the answer until ctx ends or the target's time is over. Next then goes on,
// with the name's addresses or, where it has none, with the next target; the
// error, which Err tells as well, is for those who want to know at once.
func (a *Attempt) Resolve(ctx context.Context) error {
	if a.step != atName {
		return nil
	}
	began := time.Now()
	bounded, cancel := context.WithTimeoutCause(ctx, a.timeout(), errTimeLimit)
	defer cancel()
	addrs, err := a.dialer.Resolve(bounded, a.ep)
	if err != nil {
		a.fail(time.Since(began), err, outcomeOf(bounded, err))
		return err
	}
	a.resolved(addrs, nil)
	a.spent += time.Since(began)
	return nil
}

func (a *Attempt) timeout() time.Duration {
	if a.Timeout > 0 {
		return a.Timeout
	}
	return router.DefaultConnectTimeout
}

// Limit returns how long to wait for a connection to the address that Next gave:
// an equal share of the time that its target has left.
func (a *Attempt) Limit() time.Duration {
	return (a.timeout() - a.spent) / time.Duration(len(a.more)+1)
}

// Connected says that the address Next gave took the connection, after so long.
func (a *Attempt) Connected(took time.Duration) {
	if a.step != atConnecting {
		return
	}
	a.step = atConnected
	if a.quiet {
		return
	}
	if !a.udp {
		a.dialer.metrics.dialed(outConnected, a.spent+took)
	}
	a.dialer.failedEndpoints.forget(a.ep)
	if a.several {
		a.dialer.failedAddrs.forget(a.addr)
	}
}

// Failed says that the address Next gave could not be connected to, and why, after
// so long. The kernel's errors come as they are; os.ErrDeadlineExceeded stands
// for the end of Limit, context.Canceled for a caller who has given up, which
// counts against nobody, and after which Next is Exhausted.
//
// A failure that is not this node's own is remembered for a short while, and the
// target (or the address, if its name has several) comes last in the attempts
// that begin meanwhile.
func (a *Attempt) Failed(took time.Duration, err error) {
	if a.step == atConnecting {
		a.fail(took, err, outcomeOf(context.Background(), err))
	}
}

// fail takes the failure of an address, or of the name as a whole.
func (a *Attempt) fail(took time.Duration, err error, o outcome) {
	a.spent += took
	if a.several && a.step == atConnecting && o.blamesBackend() && !a.quiet {
		a.dialer.failedAddrs.remember(a.addr)
	}
	err = inWords(err)
	if a.named && a.step == atConnecting {
		err = fmt.Errorf("%v: %w", a.addr, err)
	}
	a.failed = alsoFailed(a.failed, err)
	if a.outcome != outLocal {
		a.outcome = o
	}
	a.over = o == outCanceled
	if a.over || len(a.more) == 0 || a.spent >= a.timeout() {
		a.settle()
	} else {
		a.step = atAddress
	}
}

// settle ends the target under way, which took no connection.
func (a *Attempt) settle() {
	a.step = atNone
	a.lease.Done()
	if a.failed == nil {
		return // passed over
	}
	if !a.udp && !a.quiet {
		a.dialer.metrics.dialed(a.outcome, a.spent)
	}
	if a.outcome.blamesBackend() && !a.quiet {
		a.dialer.failedEndpoints.remember(a.ep)
	}
	by := ""
	if a.udp {
		by = " by UDP"
	}
	if a.outcome == outTimedOut {
		a.failed = fmt.Errorf("no connection within %v: %w", a.timeout(), a.failed)
	}
	a.err = alsoFailed(a.err, fmt.Errorf("dial backend %v%s: %w", a.ep, by, a.failed))
	a.failed = nil
}

// alsoFailed is errors.Join on one line, for logs.
func alsoFailed(before, err error) error {
	if before == nil {
		return err
	}
	return fmt.Errorf("%w; %w", before, err)
}

// Err returns the failures of all targets so far, on one line; nil without any.
func (a *Attempt) Err() error { return a.err }

// Done says that the flow is over, or the attempt given up. Where the backend
// balances by connections the flow counts against its target until then.
func (a *Attempt) Done() {
	if a.step == atConnecting && !a.udp {
		a.dialer.metrics.dialed(outCanceled, 0)
	}
	a.step, a.over = atNone, true
	a.lease.Done()
}

// Lease takes the place of Done once a connection is there, for a flow that has
// no use for the rest of the Attempt: its Done is then to be called instead.
func (a *Attempt) Lease() Lease {
	l := a.lease
	a.lease = Lease{}
	return l
}
