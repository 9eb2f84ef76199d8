package upstream

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// outcome is how an attempt to connect ended.
type outcome uint8

const (
	outConnected   outcome = iota
	outRefused             // by the backend's machine
	outTimedOut            // no answer in time
	outUnreachable         // no way there
	outUnresolved          // the name has no address, or none can be learnt
	outCanceled            // by whoever asked
	outLocal               // this node cannot: out of files, ports, memory or rights
	outOther
	numOutcomes
)

var outcomeNames = [numOutcomes]string{
	"connected", "refused", "timeout", "unreachable", "unresolved", "canceled", "local", "other",
}

// blamesBackend reports whether another target is the better choice for now.
func (o outcome) blamesBackend() bool {
	switch o {
	case outRefused, outTimedOut, outUnreachable, outUnresolved, outOther:
		return true
	}
	return false
}

// errTimeLimit is the cause of the end of a context that was made here to bound
// an attempt; any other end is its asker's wish.
var errTimeLimit = errors.New("time limit reached")

// outcomeOf finds the outcome of an attempt under ctx.
func outcomeOf(ctx context.Context, err error) outcome {
	if err == nil {
		return outConnected
	}
	// The socket's own deadline is that of ctx and may have been first by an
	// instant. Only the end of ctx says whose limit it was.
	if deadline, ok := ctx.Deadline(); ok && isPast(deadline) {
		<-ctx.Done()
	}
	var dns *net.DNSError
	var network net.Error
	switch {
	case ctx.Err() != nil && context.Cause(ctx) != errTimeLimit, errors.Is(err, context.Canceled):
		return outCanceled
	case anyOf(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EACCES, syscall.EPERM):
		return outLocal
	case anyOf(err, syscall.ECONNREFUSED, syscall.ECONNRESET):
		return outRefused
	case anyOf(err, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EAFNOSUPPORT):
		return outUnreachable
	case errors.As(err, &dns):
		return outUnresolved
	case errors.As(err, &network) && network.Timeout():
		return outTimedOut
	}
	return outOther
}

func anyOf(err error, errnos ...syscall.Errno) bool {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
