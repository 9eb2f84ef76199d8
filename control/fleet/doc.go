// Package fleet knows the nodes of a cluster. A Registrar says what this node is,
// a Registry what all are and who of them is out, and a Watcher looks at the
// peers that this node is to watch, and votes.
//
// It never speaks to etcd: what it says goes to a keeper that puts it there under
// the node's lease, to be gone when the node is, and what others say comes from
// the watch that the node has anyway. Who is out is decided by functions of what
// is known and the time. cmd/sluice wires all this.
package fleet
