package fleet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Instance returns what tells the node whose data lies in dir from any other:
// a random text made at its first start and kept in the file "instance" of
// dir, which must exist. A copy of the directory is the same instance.
func Instance(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeInstance(path)
	}
	if err != nil {
		return "", fmt.Errorf("read the node's instance: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", fmt.Errorf("read the node's instance: %s is empty; remove it, and a new one is made", path)
	}
	return id, nil
}

// makeInstance writes the file whole or not at all: an empty one left by a
// crash would keep the node from starting.
func makeInstance(path string) (string, error) {
	id := rand.Text()
	tmp, err := os.CreateTemp(filepath.Dir(path), "instance-*")
	if err != nil {
		return "", fmt.Errorf("make the node's instance: %w", err)
	}
	_, err = tmp.WriteString(id + "\n")
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("make the node's instance: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return id, nil
}
