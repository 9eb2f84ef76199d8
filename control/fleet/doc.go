// Package fleet knows the nodes of a cluster. For now it says what this node
// is: its record under nodes/, kept true by a Registrar.
//
// It never speaks to etcd: records go to a keeper that puts them there under
// the node's lease, and are gone when the node is. cmd/sluice wires the two.
package fleet
