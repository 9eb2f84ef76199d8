package control

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// stateVersion changes when an older program could not read the file.
const stateVersion = 3

// The first line of a state file names its version, in JSON. These lines follow:
//
//	put 412 "ports/tcp/20022" "127.0.0.1:22"
//	delete "ports/tcp/20023"
//	held 431 412 "ports/tcp/20024" "127.0.0.1:24"
//	as-of 412 5f3a crc 1b2c3d4e
//
// The first as-of closes a whole state, and each later one closes changes of
// it, which were appended. It names the revision and the cluster ("-" where it
// is not known), and has the CRC-32C of the file up to the word crc. So a set
// of changes counts whole or not at all, and an end that was being written when
// power failed is told from what is good. A held line is a put of a key that was
// deleted at its first revision, where that is held back. Version 2 has none.
const (
	putWord    = "put "
	deleteWord = "delete "
	heldWord   = "held "
	asOfWord   = "as-of "
	crcWord    = " crc "
	noCluster  = "-"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stateWriter writes a state file or appends to one. An error of writing is
// told by flush.
type stateWriter struct {
	to   *bufio.Writer
	sum  uint32 // of the file so far
	size int64  // of the file so far
	line []byte // reused
}

func (w *stateWriter) write(line []byte) {
	w.sum = crc32.Update(w.sum, castagnoli, line)
	w.size += int64(len(line))
	_, _ = w.to.Write(line) // flush tells
	w.line = line
}

// begin writes the first line.
func (w *stateWriter) begin() {
	w.write(append(w.line[:0], fmt.Sprintf("{\"version\":%d}\n", stateVersion)...))
}

func (w *stateWriter) change(ch stateChange) {
	line := w.line[:0]
	if ch.gone {
		line = appendQuoted(append(line, deleteWord...), ch.Key)
	} else {
		if ch.Held != 0 {
			line = append(strconv.AppendInt(append(line, heldWord...), ch.Held, 10), ' ')
		} else {
			line = append(line, putWord...)
		}
		line = strconv.AppendInt(line, ch.Rev, 10)
		line = appendQuoted(append(line, ' '), ch.Key)
		line = appendQuoted(append(line, ' '), ch.Value)
	}
	w.write(append(line, '\n'))
}

// asOf closes what was written before it.
func (w *stateWriter) asOf(h stateHeader) {
	line := strconv.AppendInt(append(w.line[:0], asOfWord...), h.rev, 10)
	line = append(append(line, ' '), cmp.Or(h.cluster, noCluster)...)
	w.write(append(line, crcWord...))
	w.write(append(w.line[:0], fmt.Sprintf("%08x\n", w.sum)...))
}

func (w *stateWriter) flush() error { return w.to.Flush() }

// appendQuoted quotes s as Go does, in the form that JSON is easiest to read in.
func appendQuoted(to []byte, s string) []byte {
	if strconv.CanBackquote(s) {
		return append(append(append(to, '`'), s...), '`')
	}
	return strconv.AppendQuote(to, s)
}

// ReadState reads a state file of this or the first version.
func ReadState(path string) (State, error) {
	f, err := os.Open(path)
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	from := bufio.NewReaderSize(f, 64<<10)
	head, err := from.ReadBytes('\n')
	if err != nil && err != io.EOF {
		return State{}, fmt.Errorf("read %s: %w", path, err)
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(head, &version); err != nil {
		return State{}, fmt.Errorf("read %s: the first line is damaged: %w", path, err)
	}
	var s State
	switch version.Version {
	case 1:
		s, err = readFirstVersion(head, from)
	case 2, stateVersion:
		r := stateReader{from: from, sum: crc32.Checksum(head, castagnoli)}
		s, err = r.read()
	default:
		err = fmt.Errorf("it has version %d, this program reads up to version %d", version.Version, stateVersion)
	}
	if err != nil {
		return State{}, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// stateReader reads what follows the first line.
type stateReader struct {
	from *bufio.Reader
	sum  uint32 // of the file so far
	long []byte // a line that is longer than the reader's buffer; reused

	entries []StateEntry // as they come; Rev 0: deleted
}

// read takes all that is closed by an as-of.
func (r *stateReader) read() (State, error) {
	var s State
	closed, after := -1, int64(0) // entries and, since then, bytes
	lost := asOfFinder{}
	for {
		line, err := r.next()
		after += int64(len(line))
		if err == io.EOF {
			break
		}
		if err != nil {
			return State{}, err
		}
		end, ok := r.take(line)
		if !ok {
			_, _ = lost.Write(line)
			rest, err := io.Copy(&lost, r.from)
			if err != nil {
				return State{}, err
			}
			after += rest
			break
		}
		if end != nil {
			s.Rev, s.Cluster = end.rev, end.cluster
			closed, after = len(r.entries), 0
		}
	}
	if closed < 0 {
		return State{}, errors.New("the checksum does not match, or the end is missing; the file is damaged")
	}
	s.Entries, s.Dropped, s.Damaged = latest(r.entries[:closed]), after, lost.found
	return s, nil
}

// asOfFinder finds whether what is written to it has the begin of a line that
// closes changes: one that was written whole, unlike the end of a file that power
// failed for.
type asOfFinder struct {
	found bool
	tail  []byte
}

func (f *asOfFinder) Write(p []byte) (int, error) {
	text := append(f.tail, p...)
	f.found = f.found || bytes.HasPrefix(text, []byte(asOfWord)) || bytes.Contains(text, []byte("\n"+asOfWord))
	f.tail = slices.Clone(text[max(0, len(text)-len(asOfWord)):])
	return len(p), nil
}

// next returns the next line with its end, valid until the next call. A line
// without an end comes with io.EOF.
func (r *stateReader) next() ([]byte, error) {
	line, err := r.from.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	r.long = append(r.long[:0], line...)
	for err == bufio.ErrBufferFull {
		line, err = r.from.ReadSlice('\n')
		r.long = append(r.long, line...)
	}
	return r.long, err
}

// take reads one line, and reports whether it is good. What an as-of says it
// returns.
func (r *stateReader) take(line []byte) (asOf *stateHeader, ok bool) {
	text := strings.TrimSuffix(string(line), "\n")
	head, sum, isAsOf := strings.Cut(text, crcWord)
	if isAsOf && strings.HasPrefix(head, asOfWord) {
		r.sum = crc32.Update(r.sum, castagnoli, line[:len(head)+len(crcWord)])
		if sum != fmt.Sprintf("%08x", r.sum) {
			return nil, false
		}
		r.sum = crc32.Update(r.sum, castagnoli, line[len(head)+len(crcWord):])
		number, cluster, _ := strings.Cut(strings.TrimPrefix(head, asOfWord), " ")
		rev, err := strconv.ParseInt(number, 10, 64)
		return &stateHeader{rev: rev, cluster: strings.TrimPrefix(cluster, noCluster)}, err == nil
	}
	r.sum = crc32.Update(r.sum, castagnoli, line)
	e, ok := parseChange(text)
	r.entries = append(r.entries, e)
	return nil, ok
}

// parseChange reads a put, or a delete, whose Rev is 0.
func parseChange(text string) (e StateEntry, ok bool) {
	if rest, isDelete := strings.CutPrefix(text, deleteWord); isDelete {
		key, rest, ok := cutQuoted(rest)
		return StateEntry{Key: key}, ok && rest == ""
	}
	rest, isPut := strings.CutPrefix(text, putWord)
	held := int64(0)
	if !isPut {
		rest, isPut = strings.CutPrefix(text, heldWord)
		if held, rest, ok = cutRevision(rest); !isPut || !ok {
			return StateEntry{}, false
		}
	}
	rev, rest, ok := cutRevision(rest)
	if !ok {
		return StateEntry{}, false
	}
	key, rest, ok := cutQuoted(rest)
	if !ok || !strings.HasPrefix(rest, " ") {
		return StateEntry{}, false
	}
	value, rest, ok := cutQuoted(rest[1:])
	return StateEntry{key, value, rev, held}, ok && rest == ""
}

func cutRevision(text string) (rev int64, rest string, ok bool) {
	number, rest, _ := strings.Cut(text, " ")
	rev, err := strconv.ParseInt(number, 10, 64)
	return rev, rest, err == nil && rev > 0
}

func cutQuoted(text string) (s, rest string, ok bool) {
	quoted, err := strconv.QuotedPrefix(text)
	if err != nil {
		return "", "", false
	}
	s, err = strconv.Unquote(quoted)
	return s, text[len(quoted):], err == nil
}

// latest returns the last entry of each key, those of deleted ones left out, in
// the order of keys.
func latest(entries []StateEntry) []StateEntry {
	byKey := func(a, b StateEntry) int { return strings.Compare(a.Key, b.Key) }
	if !slices.IsSortedFunc(entries, byKey) {
		slices.SortStableFunc(entries, byKey)
	}
	left := entries[:0]
	for i, e := range entries {
		if e.Rev != 0 && (i+1 == len(entries) || entries[i+1].Key != e.Key) {
			left = append(left, e)
		}
	}
	return left
}

// readFirstVersion reads a file of two lines: a header with the checksum of the
// other one, and the entries.
func readFirstVersion(head []byte, from io.Reader) (State, error) {
	var h struct {
		Rev     int64  `json:"rev"`
		Cluster string `json:"cluster"`
		SHA256  string `json:"sha256"`
	}
	if err := json.Unmarshal(head, &h); err != nil {
		return State{}, fmt.Errorf("the first line is damaged: %w", err)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		return State{}, err
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.SHA256 {
		return State{}, errors.New("the checksum does not match; the file is damaged")
	}
	s := State{Rev: h.Rev, Cluster: h.Cluster}
	return s, json.Unmarshal(body, &s.Entries)
}

// writeFileAtomically leaves either the old file or the whole new one behind,
// also after a power cut. The mode is 0600: mappings name tenants' machines.
func writeFileAtomically(path string, write func(io.Writer) error) (err error) {
	name := path + ".new" // one program at a time has the directory
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(name)
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(name, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
