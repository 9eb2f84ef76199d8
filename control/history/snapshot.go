package history

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
	"unicode/utf8"

	"github.com/remotegpu/sluice/control/etcd"
)

// Snapshot is all keys of a cluster as of one revision, but for what nodes
// write for each other.
type Snapshot struct {
	Rev  int64
	Time time.Time
	Keys []SnapshotKey // in the order of etcd
}

// SnapshotKey is a key and its value.
type SnapshotKey struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	// Binary is the value where it is not UTF-8, and Value is empty.
	Binary []byte `json:"binary,omitempty"`
	// BinaryKey is the key where it is not, and Key is empty.
	BinaryKey []byte `json:"binary_key,omitempty"`
}

// The lines of a snapshot's file: JSON, the first and the last of these types
// and those between of keys.
type (
	snapshotHead struct {
		Format  string    `json:"sluice_snapshot"`
		Version int       `json:"version"`
		Rev     int64     `json:"revision"`
		Time    time.Time `json:"time"`
		Keys    int       `json:"keys"`
	}
	snapshotEnd struct {
		Sum string `json:"sha256"` // of all bytes before this line
	}
)

const (
	snapshotFormat  = "keys"
	snapshotVersion = 1
	// maxLine is more than any key takes: etcd takes 1.5 MiB, each byte of which is
	// six characters at most.
	maxLine = 32 << 20
)

// TakeSnapshot reads the keys as they are now.
func TakeSnapshot(ctx context.Context, c *etcd.Client) (*Snapshot, error) {
	kvs, rev, err := c.ReadRecorded(ctx, 0)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Rev: rev, Time: time.Now().UTC().Truncate(time.Second)}
	for _, kv := range kvs {
		if IsNote(kv.Key) {
			continue
		}
		k := SnapshotKey{Key: kv.Key, Value: string(kv.Value)}
		if !utf8.Valid(kv.Value) {
			k.Value, k.Binary = "", kv.Value
		}
		s.Keys = append(s.Keys, k)
	}
	return s, nil
}

// Write writes s to w.
func (s *Snapshot) Write(w io.Writer) error {
	sum := sha256.New()
	b := bufio.NewWriter(io.MultiWriter(w, sum))
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(snapshotHead{snapshotFormat, snapshotVersion, s.Rev, s.Time, len(s.Keys)}); err != nil {
		return err
	}
	for _, k := range s.Keys {
		if !utf8.ValidString(k.Key) {
			k.Key, k.BinaryKey = "", []byte(k.Key)
		}
		if err := enc.Encode(k); err != nil {
			return err
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(snapshotEnd{hex.EncodeToString(sum.Sum(nil))})
}

// ReadSnapshot reads what Write wrote. A file that was cut or altered is an
// error, and nothing of it is returned.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	sum := sha256.New()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var head snapshotHead
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &head) != nil || head.Format != snapshotFormat {
		return nil, errors.Join(errors.New("this is no snapshot, or its first line is damaged"), lines.Err())
	}
	if head.Version != snapshotVersion {
		return nil, fmt.Errorf("this snapshot is of version %d; this program reads version %d", head.Version, snapshotVersion)
	}
	add(sum, lines.Bytes())
	s := &Snapshot{Rev: head.Rev, Time: head.Time}
	for range head.Keys {
		if !lines.Scan() {
			return nil, errors.Join(fmt.Errorf("the snapshot is cut: it has %d of %d keys", len(s.Keys), head.Keys), lines.Err())
		}
		var k SnapshotKey
		if err := json.Unmarshal(lines.Bytes(), &k); err != nil {
			return nil, fmt.Errorf("the snapshot is damaged at its key %d: %w", len(s.Keys)+1, err)
		}
		add(sum, lines.Bytes())
		if k.Binary != nil {
			k.Value = string(k.Binary)
		}
		if k.BinaryKey != nil {
			k.Key, k.BinaryKey = string(k.BinaryKey), nil
		}
		s.Keys = append(s.Keys, k)
	}
	var end snapshotEnd
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &end) != nil {
		return nil, errors.Join(errors.New("the snapshot is cut: its last line, with the checksum, is missing"), lines.Err())
	}
	want, err := hex.DecodeString(end.Sum)
	if err != nil || !bytes.Equal(want, sum.Sum(nil)) {
		return nil, errors.New("the snapshot is damaged: its checksum is another one")
	}
	return s, nil
}

func add(sum hash.Hash, line []byte) {
	sum.Write(line)
	sum.Write([]byte{'\n'})
}
