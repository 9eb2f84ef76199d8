// Package etcd is everything that Sluice says to etcd: it follows the keys
// below the prefix (Client.Watch), keeps what this node has to tell under a
// lease (Session, Verdicts), and runs the embedded server of an edge that has
// no etcd of its own (StartServer).
//
// It knows keys, values and revisions, and nothing of what they mean: values
// are read by router, tables are built and applied by control, which calls
// Watch with the callbacks it needs. The data plane never imports this package.
//
// # What is watched
//
// A node watches the whole prefix except the subtrees that no data plane has a
// use for: verdicts/, nodes/, history/, envs/, allocations/ and acme/. In the
// order of keys these cut the prefix into a handful of ranges, and each range
// is one watcher on one gRPC stream. So the verdicts of a thousand nodes wake
// nobody and cost no decoding, yet a mistyped key such as prots/tcp/1 lies in
// a watched range and can be refused by name. Watching the prefix as one range
// and dropping events in the client was the other choice: every node would
// then receive every verdict of every other node, which grows with the square
// of the fleet.
//
// Subtrees of the latter can be passed to a handler of their own, on the same
// stream (Aside): what a node has of the cluster's certificates comes that way.
//
// # What is promised
//
// The changes of one key arrive in the order etcd made them, none left out
// between the load and its end, except that a key changed again before it was
// delivered may arrive with both changes in one batch. ports/, routes/ and
// pools/ are neighbours in key order and share a watcher, so a transaction
// over them arrives as one batch. Nothing delays a single edit; whatever has
// queued up while the callback ran is delivered in one batch.
//
// The revision passed with a batch is one that every range has reached. It may
// lag behind the batch's own changes; a batch without changes then follows as
// soon as etcd has said that nothing older is outstanding.
//
// Servers before etcd 3.4.25 and 3.5.8 answer a progress request before the
// events it covers. With them a revision may be passed to Change before all its
// changes, which follow; ChangesSince finds out and does without the answers.
package etcd
