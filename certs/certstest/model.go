package certstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
)

// StorageIsLikeFiles does steps random operations with s, which is empty, and
// the same ones with certmagic's own storage in files, and has each come to the
// same.
func StorageIsLikeFiles(t *testing.T, s certmagic.Storage, steps int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := model{t: t, is: s, like: &certmagic.FileStorage{Path: t.TempDir()}, rand: rand.New(rand.NewPCG(seed, 0))}
	for range steps {
		m.step()
	}
}

type model struct {
	t        *testing.T
	is, like certmagic.Storage
	rand     *rand.Rand
}

// file returns the key of a file. No file has the name of a folder: in etcd
// that may be, on a disk it cannot.
func (m *model) file() string {
	dir := m.folder()
	if dir == "" {
		return m.pick("f1", "f2")
	}
	return dir + "/" + m.pick("f1", "f2", "f-3.key", "x.json")
}

func (m *model) folder() string {
	parts := make([]string, m.rand.IntN(4))
	for i := range parts {
		parts[i] = m.pick("a", "a-b", "b", "wildcard_.x.test")
	}
	return strings.Join(parts, "/")
}

func (m *model) pick(from ...string) string { return from[m.rand.IntN(len(from))] }

func (m *model) step() {
	m.t.Helper()
	ctx := m.t.Context()
	switch m.rand.IntN(9) {
	case 0, 1, 2:
		key, value := m.file(), bytes.Repeat([]byte{byte(m.rand.IntN(256))}, m.rand.IntN(64))
		m.same("Store", key, m.is.Store(ctx, key, value), m.like.Store(ctx, key, value))
	case 3:
		key := m.either()
		if key == "" {
			return // all of it, with the directory that the test works in
		}
		m.same("Delete", key, m.is.Delete(ctx, key), m.like.Delete(ctx, key))
		m.prune(key)
	case 4:
		key := m.either()
		got, err := m.is.Load(ctx, key)
		want, wantErr := m.like.Load(ctx, key)
		m.same("Load", key, err, wantErr)
		if !bytes.Equal(got, want) {
			m.t.Fatalf("Load(%q) = %x, want %x", key, got, want)
		}
	case 5:
		key := m.either()
		if got, want := m.is.Exists(ctx, key), m.like.Exists(ctx, key); got != want && key != "" {
			m.t.Fatalf("Exists(%q) = %v, want %v", key, got, want)
		}
	case 6:
		m.stat(ctx, m.either())
	default:
		m.list(ctx, m.either(), m.rand.IntN(2) == 0)
	}
}

func (m *model) either() string {
	if m.rand.IntN(2) == 0 {
		return m.folder()
	}
	return m.file()
}

// same wants both to have succeeded or failed, and if because something is not
// there, for that reason.
func (m *model) same(what, key string, got, want error) {
	m.t.Helper()
	if (got == nil) != (want == nil) || errors.Is(want, fs.ErrNotExist) && !errors.Is(got, fs.ErrNotExist) {
		m.t.Fatalf("%s(%q): %v, want as with files: %v", what, key, got, want)
	}
}

// prune removes the empty folders that a deletion leaves on a disk. In the
// contract folders are but a part of keys.
func (m *model) prune(key string) {
	root := m.like.(*certmagic.FileStorage).Path
	for dir := filepath.Dir(filepath.Join(root, key)); dir != root && strings.HasPrefix(dir, root); dir = filepath.Dir(dir) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return // not empty
		}
	}
}

func (m *model) stat(ctx context.Context, key string) {
	m.t.Helper()
	got, err := m.is.Stat(ctx, key)
	want, wantErr := m.like.Stat(ctx, key)
	if key == "" {
		return // of a storage that has nothing yet
	}
	m.same("Stat", key, err, wantErr)
	if err != nil {
		return
	}
	if !want.IsTerminal {
		want.Size = got.Size // of a directory
	}
	// The clock of files is coarse.
	if want.IsTerminal && got.Modified.Sub(want.Modified).Abs() > time.Minute {
		m.t.Fatalf("Stat(%q): modified at %v, want %v", key, got.Modified, want.Modified)
	}
	got.Modified = want.Modified
	if got != want {
		m.t.Fatalf("Stat(%q) = %+v, want %+v", key, got, want)
	}
}

func (m *model) list(ctx context.Context, dir string, recursive bool) {
	m.t.Helper()
	got, err := m.is.List(ctx, dir, recursive)
	want, wantErr := m.like.List(ctx, dir, recursive)
	if dir == "" && len(want) == 0 {
		return // a storage that has nothing yet
	}
	m.same(fmt.Sprintf("List recursive=%v", recursive), dir, err, wantErr)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Fatalf("List(%q, %v) is not as with files (-want +got):\n%s", dir, recursive, diff)
	}
}
