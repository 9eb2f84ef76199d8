// Package sniff tells from the first bytes of a connection what its client
// speaks, and to which name: bytes in, answer out.
//
// It owns the parsing of a TLS ClientHello as far as routing needs it (server
// name and application protocols) and the choice between TLS, HTTP and anything
// else on ports that serve several protocols. It never reads from a connection,
// holds no state, keeps no reference to what it is given and never panics,
// whatever it is given. The engine in proxy and the relay in proxy/l4 call it
// with bytes that they have read and will pass on.
package sniff
