// Package event is what the event loops of proxy/l4 have in common: an epoll
// instance that a goroutine waits at, the commands that other goroutines have
// for it, and system calls that never wait.
//
// It owns the epoll instance and the eventfd by which a command wakes the loop.
// It knows nothing of what is watched: events carry two numbers of the caller's.
package event
