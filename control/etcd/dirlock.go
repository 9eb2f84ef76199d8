package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// dirLock keeps two processes out of one data directory. etcd itself would
// wait for the other one, forever and without a word.
type dirLock struct {
	dir  string
	file *os.File
}

func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "sluice.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock etcd's data directory: %w", err)
	}
	if err := tryLock(f); err != nil {
		return nil, errors.Join(inUse(dir, err), f.Close())
	}
	l := &dirLock{dir: dir, file: f}
	if err := probeDatabase(dir); err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

// probeDatabase finds an etcd that is not ours at work in dir.
func probeDatabase(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "member", "snap", "db"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open etcd's database: %w", err)
	}
	defer f.Close() // and with it the lock that etcd takes next
	if err := tryLock(f); err != nil {
		return inUse(dir, err)
	}
	return nil
}

func tryLock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

func inUse(dir string, err error) error {
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("lock etcd's data directory %s: %w", dir, err)
	}
	return fmt.Errorf("etcd's data directory %s is in use by another process; `fuser %s` names it; stop it, or choose another directory",
		dir, filepath.Join(dir, "member", "snap", "db"))
}

func (l *dirLock) release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("unlock etcd's data directory: %w", err)
	}
	return nil
}
