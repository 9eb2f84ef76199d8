package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// stateVersion changes when an older program could not read the file.
const stateVersion = 1

// stateFile is the last good state on disk: two lines, a header with the
// checksum of the second, and the entries.
type stateHeader struct {
	Version int    `json:"version"`
	Rev     int64  `json:"rev"`
	SHA256  string `json:"sha256"`
}

// stateEntry is the value in force of one key.
type stateEntry struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Rev   int64  `json:"rev"`
}

// state collects what is in force, in the order of keys.
func (c *Controller) state() (rev int64, entries []stateEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(c.entries)) {
		if e := c.entries[key]; e.goodRev != 0 {
			entries = append(entries, stateEntry{key, e.good, e.goodRev})
		}
	}
	return c.rev, entries
}

// restore puts the state on disk in force, if there is one. A file that cannot
// be used is reported and left where it is: the node then waits for etcd.
func (c *Controller) restore() {
	if c.cfg.StateFile == "" {
		return
	}
	rev, entries, err := readState(c.cfg.StateFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		c.cfg.Logger.Error("cannot use the last good state on disk; serving nothing until etcd answers", "err", err)
		return
	}
	c.mu.Lock()
	for _, e := range entries {
		c.put(e.Key, e.Value, e.Rev)
	}
	c.settle(nil)
	table := c.builder.Table(rev)
	domains := slices.Collect(maps.Values(c.domains))
	c.dirty = dirtiness{}
	c.mu.Unlock()
	c.cfg.Applier.Apply(table)
	c.mu.Lock()
	c.restored = rev
	c.mu.Unlock()
	if c.cfg.Domains != nil {
		c.cfg.Domains(domains)
	}
	c.cfg.Logger.Info("serving the last good state from disk until etcd answers", "rev", rev, "keys", len(entries))
}

func readState(path string) (rev int64, entries []stateEntry, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, nil, err
	}
	head, body, _ := bytes.Cut(text, []byte("\n"))
	var h stateHeader
	if err := json.Unmarshal(head, &h); err != nil {
		return 0, nil, fmt.Errorf("read %s: the first line is damaged: %w", path, err)
	}
	if h.Version != stateVersion {
		return 0, nil, fmt.Errorf("read %s: it has version %d, this program reads version %d", path, h.Version, stateVersion)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.SHA256 {
		return 0, nil, fmt.Errorf("read %s: the checksum does not match; the file is damaged", path)
	}
	if err := json.Unmarshal(body, &entries); err != nil {
		return 0, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return h.Rev, entries, nil
}

func writeState(path string, rev int64, entries []stateEntry) error {
	body, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	head, err := json.Marshal(stateHeader{Version: stateVersion, Rev: rev, SHA256: hex.EncodeToString(sum[:])})
	if err != nil {
		return err
	}
	return writeFileAtomically(path, slices.Concat(head, []byte("\n"), body, []byte("\n")))
}

// writeFileAtomically leaves either the old file or the whole new one behind,
// also after a power cut. The mode is 0600: mappings name tenants' machines.
func writeFileAtomically(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// saver writes the state to disk some time after it changed: edits come in
// bursts, and a state that is a second old serves as well.
type saver struct {
	path    string
	collect func() (rev int64, entries []stateEntry)
	log     *slog.Logger
	changed chan struct{} // holds one
}

// saveDelay is how long a change may wait before it is on disk.
const saveDelay = time.Second

func newSaver(path string, collect func() (int64, []stateEntry), log *slog.Logger) *saver {
	return &saver{path: path, collect: collect, log: log, changed: make(chan struct{}, 1)}
}

func (s *saver) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// run saves until ctx ends, and whatever is unsaved then.
func (s *saver) run(ctx context.Context) {
	if s.path == "" {
		return
	}
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.changed:
				s.save()
			default:
			}
			return
		case <-s.changed:
		}
		wait := time.NewTimer(saveDelay)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		s.save()
	}
}

func (s *saver) save() {
	rev, entries := s.collect()
	if err := writeState(s.path, rev, entries); err != nil {
		s.log.Error("cannot save the last good state; after a restart without etcd the node would serve an older one", "file", s.path, "err", err)
	}
}
