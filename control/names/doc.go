// Package names keeps DNS names true: for every key under names/ the A and AAAA
// records at its provider are the addresses of the nodes that clients are to be
// sent to, or of the sources that answer.
//
// It owns the decision (Decide, a function of what is wanted, what was read and
// the time), the order in which it is carried out, and the loop around both,
// which runs on the node that leads. It never speaks HTTP or DNS with a
// provider: a Provider does, and cmd/sluice makes those of certs/dns. Nor does
// it know who is healthy: package control/fleet says so.
//
// What it never does, whatever happens:
//
//   - It changes no record of a name that bears no marker of this cluster, a TXT
//     record beside it (Marker). A name that has records and no marker is
//     somebody else's until a person adopts it.
//   - It leaves no name without an address: if nobody is healthy, the last
//     records stay. What is added is there before anything is removed, or both
//     happen in one update.
//   - It publishes nothing that is not wanted, and changes nothing while it is
//     not known who is there.
//   - It makes no more than a few changes of a name in a row, and then one in
//     each interval. The last of them are for removals, so that a node that
//     comes and goes ends up outside.
package names
