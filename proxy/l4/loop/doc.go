// Package loop relays raw TCP connections with a few event loops instead of
// goroutines: it accepts, asks a callback what to do, connects and copies until
// both sides are done, and an idle relay costs two file descriptors and less
// than 200 bytes.
//
// It owns the connections it accepts or is given, the epoll instances that
// watch them, the timeouts, the moving of bytes (by copying, and by splice(2)
// where they come in bulk) and why each flow ended. It never resolves a name,
// reads what clients send, decides who may connect or where to, knows a
// mapping, logs a flow or counts a metric: proxy/l4 does, in the callbacks.
//
// Invariants:
//
//   - A flow belongs to one loop, and nobody else touches its sockets. What other
//     goroutines may do (Flow.Cut, Flow.Bytes, Group.Relay, ...) goes through
//     atomics or commands to the loop.
//   - Callbacks run on the loop, between system calls: one that blocks stops
//     thousands of flows.
//   - An event carries the slot and the generation of the flow it is about, not a
//     file descriptor. A slot gets another generation when its flow ends, so
//     that an event that was under way is dropped, whoever has the descriptor's
//     number by then.
//   - epoll is edge-triggered: a side that may have bytes is marked so until a
//     read has proven the contrary. A read that does not fill its buffer is such
//     a proof, unless the event told of a FIN, an error or urgent data, which
//     spares the read that would only learn EAGAIN.
//   - A buffer or a pipe is held by a direction only while it has bytes that the
//     other side does not take.
//   - A flow that ended by anything but both sides' FIN ends with a reset on both
//     sides, so that a cut is never taken for a complete stream.
package loop
