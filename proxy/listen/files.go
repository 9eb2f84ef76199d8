package listen

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// Scarce reports whether the process has few files left, going by a descriptor
// that it was just given: the kernel gives the lowest free number, so a high one
// means that all below are in use. Connections that were accepted as such are
// refused, since the rest of the files, an eighth, is for connecting to backends
// and for what keeps the node in hand: its admin address, etcd, the state on
// disk. It may be called from any goroutine and costs nothing.
func Scarce(fd int) bool { return fd >= scarceFrom() }

var scarceFrom = sync.OnceValue(func() int {
	var files unix.Rlimit // Go raised it at start, and nobody changes it since
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(files.Cur - files.Cur/8)
})
