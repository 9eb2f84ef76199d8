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
// The program is assembled here, from instructions, and belongs to the network
// namespace of the process that opened it. Nothing is pinned: when the process
// ends, however it does, the program and the sockets go with it. It takes Linux
// 5.9 and the capabilities CAP_BPF and CAP_NET_ADMIN; Supported says what is
// missing.
//
// The package never accepts or reads: whoever opened a Steerer does.
package steer
