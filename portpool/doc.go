// Package portpool decides which ports an environment gets. It knows pools (the
// public ports of a service), allocations (who holds a port, or when it may be
// used again), and keeps a Book of them, from which it chooses.
//
// It decides and never acts: no input or output, no goroutine, no clock of its
// own, only the standard library and router's words. What it chooses is held
// once a transaction has written it, on the condition that the allocations are
// still as the Book had them (Claim): two nodes that choose the same port at the
// same time cannot both be right. control reads the keys pools/<service> through
// this package.
package portpool
