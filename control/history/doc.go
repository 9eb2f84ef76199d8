// Package history keeps who changed which key when, and from what to what, for
// longer than etcd itself remembers: weeks rather than an hour. It is kept in
// etcd as well, below history/, by whichever node leads; any node or command
// reads it, and works out from it what the keys were at a revision.
package history
