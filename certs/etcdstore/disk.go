package etcdstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// disk keeps units: the files of one certificate, or one shared value, sealed
// as they are in etcd. Each is a file of its own, which is replaced as a whole,
// so that the cost of a renewal does not grow with the number of names, and
// damage to one harms no other. That of before is kept beside it.
type disk struct {
	dir     string // empty: nothing is kept
	log     *slog.Logger
	metrics *metrics
	ready   chan struct{} // holds a token while something is due

	mu  sync.Mutex            // guards due
	due map[string][]diskFile // what is to be written, by unit; nil: to be removed
}

// diskFile is a key below the prefix and what it has.
type diskFile struct {
	key string
	sealed
}

// prevSuffix is what the name of the file of before ends in.
const prevSuffix = ".prev"

// openDisk makes the directory.
func openDisk(dir string, log *slog.Logger, m *metrics) (*disk, error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the directory of shared certificates: %w", err)
		}
	}
	return &disk{dir: dir, log: log, metrics: m, ready: make(chan struct{}, 1), due: map[string][]diskFile{}}, nil
}

// fileName returns the name of a unit's file: readable, of bounded length, and
// its own.
func fileName(unit string) string {
	sum := sha256.Sum256([]byte(unit))
	readable := certmagic.StorageKeys.Safe(strings.ReplaceAll(unit, "/", "-"))
	return readable[:min(len(readable), 150)] + "." + hex.EncodeToString(sum[:8])
}

// read passes each file that is kept to each, or, where it is damaged, the one
// of before.
func (d *disk) read(each func(key string, s sealed)) error {
	if d.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("read the shared certificates on disk: %w", err)
	}
	bases := map[string]bool{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			_ = os.Remove(filepath.Join(d.dir, e.Name())) // was being written when the node died
			continue
		}
		bases[strings.TrimSuffix(e.Name(), prevSuffix)] = true
	}
	for base := range bases {
		unit, err := d.readUnit(base)
		if err != nil {
			d.log.Error("a shared certificate or value on disk cannot be read, nor the one of before; etcd has to have it", "err", err)
			continue
		}
		for _, f := range unit {
			each(f.key, f.sealed)
		}
	}
	return nil
}

func (d *disk) readUnit(base string) ([]diskFile, error) {
	path := filepath.Join(d.dir, base)
	unit, err := readDiskFile(path)
	if err == nil {
		return unit, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		d.metrics.damaged.Inc()
		d.log.Error("a shared certificate or value on disk is damaged; the one of before is used", "file", path, "err", err)
	}
	unit, prevErr := readDiskFile(path + prevSuffix)
	if prevErr != nil {
		return nil, errors.Join(err, prevErr)
	}
	return unit, nil
}

func readDiskFile(path string) ([]diskFile, error) {
	blob, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	unit, err := decodeUnit(blob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return unit, nil
}

// A file begins with this, and ends with the CRC-32C of all before it. Between
// the two are, of each key: its length and itself, its revision, the length of
// the sealed value and itself; numbers as uvarints.
const diskHead = "sluice shared 1\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeUnit(unit []diskFile) []byte {
	blob := []byte(diskHead)
	for _, f := range unit {
		blob = appendString(blob, f.key)
		blob = binary.AppendUvarint(blob, uint64(f.rev))
		blob = appendString(blob, f.data)
	}
	return binary.BigEndian.AppendUint32(blob, crc32.Checksum(blob, castagnoli))
}

func appendString(to []byte, s string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(s))), s...)
}

var errDamaged = errors.New("it was cut or altered: the checksum does not match")

func decodeUnit(blob []byte) ([]diskFile, error) {
	end := len(blob) - crc32.Size
	if end < len(diskHead) || !bytes.HasPrefix(blob, []byte(diskHead)) {
		return nil, fmt.Errorf("it does not begin with %q", diskHead)
	}
	if binary.BigEndian.Uint32(blob[end:]) != crc32.Checksum(blob[:end], castagnoli) {
		return nil, errDamaged
	}
	var unit []diskFile
	for rest := blob[len(diskHead):end]; len(rest) > 0; {
		var f diskFile
		var rev uint64
		ok := true
		f.key, rest, ok = cutString(rest, ok)
		rev, rest, ok = cutNumber(rest, ok)
		f.data, rest, ok = cutString(rest, ok)
		if f.rev = int64(rev); !ok || f.rev <= 0 {
			return nil, errDamaged
		}
		unit = append(unit, f)
	}
	return unit, nil
}

func cutNumber(from []byte, ok bool) (uint64, []byte, bool) {
	n, size := binary.Uvarint(from)
	if !ok || size <= 0 {
		return 0, nil, false
	}
	return n, from[size:], true
}

func cutString(from []byte, ok bool) (string, []byte, bool) {
	n, rest, ok := cutNumber(from, ok)
	if !ok || n > uint64(len(rest)) {
		return "", nil, false
	}
	return string(rest[:n]), rest[n:], true
}

// save has a unit written soon, or removed where it has nothing. It returns at
// once.
func (d *disk) save(unit string, has []diskFile) {
	if d.dir == "" {
		return
	}
	d.mu.Lock()
	d.due[unit] = has
	d.mu.Unlock()
	d.poke()
}

// forget has nothing be due.
func (d *disk) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.due)
}

func (d *disk) poke() {
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

// saveAgain is how long after a failure the disk is tried again.
const saveAgain = 5 * time.Second

// run writes what is due until ctx ends, and then what is due by then.
func (d *disk) run(ctx context.Context) {
	again := time.NewTimer(saveAgain)
	defer again.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			_ = d.flush() // what does not get there etcd has
			return
		case <-d.ready:
		case <-again.C:
		}
		err := d.flush()
		if err != nil && !told {
			d.log.Error("cannot keep shared certificates on disk; a restart without etcd would serve older ones", "dir", d.dir, "err", err)
		}
		if told = err != nil; told {
			again.Reset(saveAgain)
		}
	}
}

// flush writes what is due. What fails stays due.
func (d *disk) flush() error {
	d.mu.Lock()
	due := d.due
	d.due = map[string][]diskFile{}
	d.mu.Unlock()
	var errs []error
	for unit, has := range due {
		err := d.write(fileName(unit), has)
		if err == nil {
			continue
		}
		d.metrics.saveFailures.Inc()
		errs = append(errs, err)
		d.mu.Lock()
		if _, newer := d.due[unit]; !newer {
			d.due[unit] = has
		}
		d.mu.Unlock()
	}
	if len(due) > 0 {
		errs = append(errs, syncDir(d.dir))
	}
	return errors.Join(errs...)
}

// write replaces a unit's file. At any moment either the old or the new one is
// there, whole.
func (d *disk) write(base string, has []diskFile) (err error) {
	path := filepath.Join(d.dir, base)
	if len(has) == 0 {
		return errors.Join(remove(path), remove(path+prevSuffix))
	}
	f, err := os.CreateTemp(d.dir, "."+base[:min(len(base), 100)]+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(encodeUnit(has))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	err = remove(path + prevSuffix)
	if err == nil {
		if err = os.Link(path, path+prevSuffix); errors.Is(err, fs.ErrNotExist) {
			err = nil // the first of its kind
		}
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
