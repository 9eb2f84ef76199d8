package control

import (
	"bytes"

	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// stateVersion changes when an older program could not read the file.
const stateVersion = 1

// A state file has two lines, a header with the checksum of the second, and the
// entries.
type stateHeader struct {
	Version int    `json:"version"`
	Rev     int64  `json:"rev"`
	Cluster string `json:"cluster,omitempty"` // ID of the etcd cluster that rev is of
	Keys    int    `json:"keys"`
	SHA256  string `json:"sha256"`
}

// StateEntry is the value in force of one key.
type StateEntry struct {
	Key   string `json:"key"` // below the prefix
	Value string `json:"value"`
	Rev   int64  `json:"rev"` // etcd revision of the value
}

// state is what a state file holds.
type state struct {
	rev     int64
	cluster string
	entries []StateEntry
}

// state collects what is in force, in the order of keys.
func (c *Controller) state() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := state{rev: c.rev, cluster: c.cluster()}
	for _, key := range slices.Sorted(maps.Keys(c.entries)) {
		if e := c.entries[key]; e.goodRev != 0 {
			s.entries = append(s.entries, StateEntry{key, e.good, e.goodRev})
		}
	}
	return s
}

// header describes what is in force.
func (c *Controller) header() stateHeader {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := stateHeader{Version: stateVersion, Rev: c.rev, Cluster: c.cluster()}
	for _, e := range c.entries {
		if e.goodRev != 0 {
			h.Keys++
		}
	}
	return h
}

// cluster returns the ID of the etcd cluster, "" where it is not known.
func (c *Controller) cluster() string {
	if c.cfg.Cluster == nil {
		return ""
	}
	if id := c.cfg.Cluster(); id != 0 {
		return strconv.FormatUint(id, 16)
	}
	return ""
}

// Restore puts the last good state on disk in force, and reports whether there
// is one. It is called before Run. A file that cannot be used is reported, and
// the one before it used, if there is one; without any the node waits for etcd.
func (c *Controller) Restore() bool {
	path := c.cfg.StateFile
	if path == "" {
		return false
	}
	s, err := readState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		var older error
		if s, older = readState(path + prevSuffix); older != nil {
			c.cfg.Logger.Error("cannot use the last good state on disk; serving nothing until etcd answers", "err", err)
			return false
		}
		c.cfg.Logger.Error("cannot use the last good state on disk; serving an older one until etcd answers", "err", err, "file", path+prevSuffix)
	}
	c.saver.last = s.header()
	c.mu.Lock()
	for _, e := range s.entries {
		c.put(e.Key, e.Value, e.Rev)
	}
	c.settle(nil)
	table := c.builder.Table(s.rev)
	domains := slices.Collect(maps.Values(c.domains))
	c.dirty = dirtiness{}
	c.mu.Unlock()
	c.cfg.Applier.Apply(table)
	c.mu.Lock()
	c.restored = s.rev
	c.mu.Unlock()
	if c.cfg.Domains != nil {
		c.cfg.Domains(domains)
	}
	c.cfg.Logger.Info("serving the last good state from disk until etcd answers", "rev", s.rev, "keys", len(s.entries))
	return true
}

// ReadState returns the entries of a state file, in the order of keys, and the
// etcd revision that they are as of.
func ReadState(path string) (rev int64, entries []StateEntry, err error) {
	s, err := readState(path)
	return s.rev, s.entries, err
}

func readState(path string) (state, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return state{}, err
	}
	head, body, _ := bytes.Cut(text, []byte("\n"))
	var h stateHeader
	if err := json.Unmarshal(head, &h); err != nil {
		return state{}, fmt.Errorf("read %s: the first line is damaged: %w", path, err)
	}
	if h.Version != stateVersion {
		return state{}, fmt.Errorf("read %s: it has version %d, this program reads version %d", path, h.Version, stateVersion)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.SHA256 {
		return state{}, fmt.Errorf("read %s: the checksum does not match; the file is damaged", path)
	}
	s := state{rev: h.Rev, cluster: h.Cluster}
	if err := json.Unmarshal(body, &s.entries); err != nil {
		return state{}, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

func (s state) header() stateHeader {
	return stateHeader{Version: stateVersion, Rev: s.rev, Cluster: s.cluster, Keys: len(s.entries)}
}

func writeState(path string, s state) error {
	body, err := json.Marshal(s.entries)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	h := s.header()
	h.SHA256 = hex.EncodeToString(sum[:])
	head, err := json.Marshal(h)
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
