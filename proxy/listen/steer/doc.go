// Package steer has one socket set take the connections and datagrams of any
// number of ports: a TCP listener (or several that share the load), a UDP
// socket, and an sk_lookup program in the kernel that sends to them what comes
// to the ports of a set. 40,000 ports cost as many file descriptors as one, no
// time to open, and a few instructions per connection.
//
// The set holds one bit for each port and protocol, in memory shared with the
// kernel. A port that is not in it is looked up as if the program were not
// there: it refuses connections, or another program listens on it. What is in
// it comes here, before whatever other sockets there are; that is why Add asks
// who listens on a port before it takes it, and why Foreign reports who came
// later.
//
// A UDP port with sessions has a socket of its own, from Bind: mostly an
// ordinary one, out of the set. Where another program has the port at some
// address, so that this cannot be had, it is one at an address that nobody has,
// to which the program sends what comes to the port. Sockets that are connected
// to a peer come before the program, and get what that sends as ever.
//
// The program is assembled here, from instructions, and belongs to the network
// namespace of the process that opened it. Nothing is pinned: when the process
// ends, however it does, the program and the sockets go with it. It takes Linux
// 5.9 and the capabilities CAP_BPF and CAP_NET_ADMIN, and UDP ports below 1024
// CAP_NET_BIND_SERVICE; Supported says what is missing of the former, Add of the
// latter.
//
// The package never accepts or reads: whoever opened a Steerer does.
package steer
