package router

import "time"

// Events is how a route treats event streams (text/event-stream).
type Events struct {
	// Ping is how often the client gets a comment until the backend has sent the
	// first byte of the stream, so that nobody on the way takes the connection
	// for dead while a model thinks.
	Ping time.Duration `json:"ping"`
	// Early has that begin before the backend has sent a head: the node answers
	// 200 by itself then, and whatever else the backend answers becomes an event.
	Early bool `json:"early"`
}

const (
	minPing = 100 * time.Millisecond
	maxPing = time.Hour
)

// check refuses what makes no sense; e may be nil.
func (e *Events) check(path string) error {
	if e == nil {
		return nil
	}
	if e.Ping == 0 {
		return fieldErrorf(join(path, "ping"), "is missing; give how often, such as \"15s\"")
	}
	if e.Ping < minPing || e.Ping > maxPing {
		return fieldErrorf(join(path, "ping"), "must be from %v to %v, not %v", minPing, maxPing, e.Ping)
	}
	return nil
}
