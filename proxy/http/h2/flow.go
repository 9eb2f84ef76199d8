package h2

// SendWindow is what may be sent before the peer gives leave for more, in bytes
// (RFC 9113 section 5.2). A change of SETTINGS_INITIAL_WINDOW_SIZE can make it
// negative.
type SendWindow int64

// Widen adds n, which may be negative, and reports whether the result is a window
// that may be.
func (w *SendWindow) Widen(n int64) bool {
	if *w += SendWindow(n); *w > MaxWindow {
		return false
	}
	return true
}

// RecvWindow is what the peer may send before it gets leave for more. What was
// used is given back in large parts: a WINDOW_UPDATE for each DATA frame would
// cost as much as the frame.
type RecvWindow struct {
	size int32
	left int32
	owed int32 // used up here, and not given back yet
}

// NewRecvWindow returns a window of size bytes.
func NewRecvWindow(size int32) RecvWindow { return RecvWindow{size: size, left: size} }

// Take has the peer's n bytes come, and reports whether it had leave to send
// them.
func (w *RecvWindow) Take(n int) bool {
	if int64(n) > int64(w.left) {
		return false
	}
	w.left -= int32(n)
	return true
}

// Release says that n bytes that came are used up. The peer is to be told of the
// increment that is returned, unless it is 0.
func (w *RecvWindow) Release(n int) (increment uint32) {
	w.owed += int32(n)
	if w.owed < w.size/2 && w.owed < w.left {
		return 0 // with less left than that, others may be waiting for it
	}
	increment = uint32(w.owed)
	w.left += w.owed
	w.owed = 0
	return increment
}

// ReleaseAll is Release for all that came and was not released. It holds nothing
// back.
func (w *RecvWindow) ReleaseAll() (increment uint32) {
	increment = uint32(w.size - w.left)
	w.left, w.owed = w.size, 0
	return increment
}
