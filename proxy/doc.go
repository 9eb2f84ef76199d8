// Package proxy is the data plane of a node. It holds the table in force, keeps
// the public sockets in step with it, tells by the first bytes of a TLS
// connection who takes it, and drains.
//
// Values are swapped, resources are reconciled: Apply stores a new table behind
// one atomic pointer, and opens and closes ports in step with it. Each mapped
// port has a socket of its own, or all of them are steered to a few. A flow keeps the table it began with; HTTP looks its
// route up per exchange. Cutting the flows of a withdrawn mapping is an act of
// its own, governed by the mapping's on_delete.
//
// The package and the rooms below it never import etcd, certmagic, libdns or
// control. cmd/sluice makes the one Engine and control hands it tables.
package proxy
