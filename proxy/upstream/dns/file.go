package dns

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

const (
	// recheck is how often at most a file is looked at for changes.
	recheck = time.Second
	// maxFile bounds what is read of one: hosts files that block advertisements
	// have hundreds of thousands of lines.
	maxFile = 32 << 20
)

// file is a file of the system as of its last change.
type file[T any] struct {
	path  string
	parse func(text []byte) T

	mu      sync.Mutex // guards the following fields
	known   bool
	value   T
	stamp   fs.FileInfo // nil: there was no file
	checked time.Time
}

// get returns what the file says. One that is not there is as good as an empty
// one; one that cannot be read leaves what it said before.
func (f *file[T]) get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known && time.Since(f.checked) < recheck {
		return f.value
	}
	f.checked = time.Now()
	stamp, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !f.known || f.stamp != nil {
			f.value, f.stamp = f.parse(nil), nil
		}
	case err == nil && (!f.known || changed(f.stamp, stamp)):
		if text, err := read(f.path); err == nil {
			f.value, f.stamp = f.parse(text), stamp
		}
	}
	if !f.known && f.stamp == nil {
		f.value = f.parse(nil)
	}
	f.known = true
	return f.value
}

func changed(was, is fs.FileInfo) bool {
	return was == nil || !os.SameFile(was, is) || was.Size() != is.Size() || !was.ModTime().Equal(is.ModTime())
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}
