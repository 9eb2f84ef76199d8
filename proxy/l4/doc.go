// Package l4 moves raw bytes between clients and backends: TCP connections and
// UDP sessions of mapped ports, and TLS connections that a route passes through
// or unwraps.
//
// It owns every flow from the moment it is handed one until both ends are
// closed: who may connect and how many at once, the PROXY header on either
// side, what a port that also speaks HTTP does with a connection's first bytes,
// the copying of what passes through TLS (all else is copied by proxy/l4/loop,
// whose loops accept and connect as well), why the flow ended, its access log record and its
// metrics. Connections that turn out to be HTTP are handed to Config.HTTP, and
// stay in the list of their mapping until they are closed, so that withdrawing
// the mapping ends them too. Where such a connection, or one of a listener, has
// changed protocols, Join has the loops copy what passes over it; whose it is
// stays as it was.
//
// It never opens a listener, never reads the table and never decides which
// mapping or route applies: the engine in proxy does, and calls ListenTCP, Relay
// and ServeUDP with the answer. It resolves and dials through proxy/upstream only.
//
// Invariants: an idle TCP relay holds two sockets and neither a goroutine nor a
// buffer nor a pipe (but for one that ends TLS, which has two goroutines); a UDP session holds one socket and neither a goroutine nor a
// buffer. A flow that ended by anything but both sides' FIN ends with a reset on
// both sides, so that a cut is never taken for a complete stream. Every goroutine
// belongs to a flow, to a ServeUDP call or to the event loops, and Shutdown
// returns when no flow is left and no loop runs. What the loops call (everything
// in accept.go and approach.go) does not block.
package l4
