// Package router holds the words of Sluice and its pure decisions: what a
// mapping, a route, a backend and a domain are, how their etcd values are read,
// and which of them applies to a port, a TLS server name or an HTTP request.
//
// Values are parsed by ParseMapping, ParseRoute and ParseDomain, which refuse
// with a *FieldError whatever they do not fully understand. A Builder gathers
// the accepted ones and compiles them into a Table, immutable and safe for any
// number of readers. Consecutive tables of one Builder share whatever did not
// change, so that one edit among 40,000 mappings costs microseconds. Match
// neither scans nor allocates: host expressions are found by text they demand.
//
// The package does no input or output, starts no goroutine and imports the
// standard library only. control builds tables; proxy and its rooms read them.
package router
