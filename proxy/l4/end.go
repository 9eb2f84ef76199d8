package l4

import (
	"errors"
	"syscall"
)

// end is why a flow is over. The zero value means that it is not.
type end uint8

const (
	live          end = iota
	clientClosed      // both sides closed in order, the client first
	backendClosed     // both sides closed in order, the backend first
	clientReset       // the client's side was reset
	backendReset      // the backend's side was reset
	idle              // no byte moved for the idle timeout
	stalled           // one side took none of the bytes that waited for it
	deleted           // the mapping was deleted, or its backend changed
	expired           // the mapping's expires_at has come
	limited           // a limit of the mapping, or of the node, refused the flow
	denied            // the mapping's allow and deny lists refused the client
	cutOff            // an operator ended it; see Server.Cut
	drained           // the node stops
	evicted           // of UDP: another session needed its place
	connectFailed     // no target of the backend could be reached
	failed            // anything else; the log record has the error
	numEnds
)

// endNames are the values of the log key and metric label "end".
var endNames = [numEnds]string{
	"live", "client_closed", "backend_closed", "client_reset", "backend_reset", "idle", "stalled", "deleted", "expired",
	"limit", "denied", "cut", "drain", "evicted", "connect_failed", "error",
}

func (e end) String() string { return endNames[e] }

// isReset reports whether err is how a socket says that its peer has reset the
// connection: ECONNRESET once, EPIPE to whoever writes afterwards.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
