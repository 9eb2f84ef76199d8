// Package listen opens the data plane's sockets and says in words why one
// cannot be opened: who holds the port, which right is missing.
//
// It owns the options that every listening socket of Sluice has and the control
// messages by which a UDP reply leaves from the address that the client wrote
// to. It never accepts, reads or writes, and keeps no socket: whoever asked for
// one owns it. The engine in proxy opens sockets here, one for each port;
// proxy/l4 uses the control messages. Who holds a port is asked apart, of
// Owners, since the answer takes a look at every process.
//
// The room below, listen/steer, has one socket set serve any number of ports.
package listen
