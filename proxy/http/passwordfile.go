package http

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

const (
	// lookAtFile is how long a file of passwords is taken to be what it was when
	// last looked at, and lookAtBadFile the same for one that could not be read.
	lookAtFile    = 5 * time.Second
	lookAtBadFile = time.Second
	// maxPasswordFile bounds what is read of one, in bytes.
	maxPasswordFile = 16 << 20
)

// passwordFile is a file of users and the hashes of their passwords, as htpasswd
// makes it. It is read when first needed and anew once it has changed; what could
// be read stays in use while that fails. Exchanges take no lock for it but the
// one that is the first to look again.
type passwordFile struct {
	name, path string
	log        *slog.Logger
	known      atomic.Pointer[fileUsers] // nil: never looked

	mu sync.Mutex // held by whoever looks
}

// fileUsers is what is known of a file. It is never modified.
type fileUsers struct {
	hashes  map[string]router.PasswordHash
	decoy   router.PasswordHash // for those who are not among them
	err     error               // why there are no hashes
	failing bool                // the file could not be read anew
	changed time.Time
	size    int64
	until   time.Time // when to look again
}

// passwordFiles makes what there is to know of files, by their names.
func passwordFiles(paths map[string]string, log *slog.Logger) map[string]*passwordFile {
	files := make(map[string]*passwordFile, len(paths))
	for name, path := range paths {
		files[name] = &passwordFile{name: name, path: path, log: log}
	}
	return files
}

// users returns who is in the file now.
func (f *passwordFile) users() *fileUsers {
	known := f.known.Load()
	if known != nil && time.Now().Before(known.until) {
		return known
	}
	if known == nil {
		f.mu.Lock()
	} else if !f.mu.TryLock() {
		return known // somebody looks already
	}
	defer f.mu.Unlock()
	if later := f.known.Load(); later != known {
		return later
	}
	is := f.look(known)
	f.known.Store(is)
	return is
}

// look returns what is known of the file from now on, was being what was known
// before, or nil.
func (f *passwordFile) look(was *fileUsers) *fileUsers {
	is, err := f.read(was)
	if err == nil {
		is.until = time.Now().Add(lookAtFile)
		return is
	}
	err = fmt.Errorf("password_files.%s of sluice.yaml: %w", f.name, err)
	is = &fileUsers{err: err}
	if was != nil && was.err == nil {
		if !was.failing {
			f.log.Error("a file of passwords cannot be read; what was read before stays in use", "name", f.name, "err", err)
		}
		kept := *was
		kept.failing = true
		is = &kept
	}
	is.until = time.Now().Add(lookAtBadFile)
	return is
}

// read reads the file, unless it is as it was.
func (f *passwordFile) read(was *fileUsers) (*fileUsers, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", f.path)
	}
	if was != nil && was.err == nil && !was.failing && info.ModTime().Equal(was.changed) && info.Size() == was.size {
		same := *was
		return &same, nil
	}
	text, err := io.ReadAll(io.LimitReader(file, maxPasswordFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxPasswordFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", f.path, maxPasswordFile)
	}
	is := &fileUsers{changed: info.ModTime(), size: info.Size()}
	if is.hashes, is.decoy, err = parsePasswords(text); err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return is, nil
}

// parsePasswords reads lines of name and hash with a colon between. Errors name
// the line, and nothing that stands there.
func parsePasswords(text []byte) (hashes map[string]router.PasswordHash, decoy router.PasswordHash, err error) {
	hashes = map[string]router.PasswordHash{}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		entry := strings.TrimRight(string(line), " \t\r\n")
		if entry == "" || strings.HasPrefix(entry, "#") {
			continue
		}
		name, written, ok := strings.Cut(entry, ":")
		if !ok || !router.IsUserName(name) {
			return nil, decoy, fmt.Errorf("line %d is not a user's name, a colon and a hash", number)
		}
		var hash router.PasswordHash
		if err := hash.UnmarshalText([]byte(written)); err != nil {
			return nil, decoy, fmt.Errorf("line %d: what follows the name %w", number, err)
		}
		if _, twice := hashes[name]; twice {
			return nil, decoy, fmt.Errorf("line %d names a user for the second time", number)
		}
		if len(hashes) == 0 {
			decoy = hash
		}
		hashes[name] = hash
	}
	if len(hashes) == 0 {
		return nil, decoy, errors.New("it names no user")
	}
	return hashes, decoy, nil
}

// passwordHash returns the hash that a user's password is held against. One who
// is not known gets another's, so that it takes as long.
func (s *Server) passwordHash(b *router.BasicAuth, user string) (hash router.PasswordHash, known bool, err error) {
	hashes, decoy := b.Users, b.Decoy()
	if b.File != "" {
		f := s.passwordFiles[b.File]
		if f == nil {
			return hash, false, noPasswordFile(b.File)
		}
		users := f.users()
		if users.err != nil {
			return hash, false, users.err
		}
		hashes, decoy = users.hashes, &users.decoy
	}
	if hash, known = hashes[user]; !known {
		hash = *decoy
	}
	return hash, known, nil
}

func noPasswordFile(name string) error {
	return fmt.Errorf("sluice.yaml of this node has no password_files.%s; add it, or give users", name)
}

// CheckBasicAuth says what this node lacks to let users in as b, which may be
// nil, has it. The error is a *router.FieldError whose path begins behind that of
// b.
func (s *Server) CheckBasicAuth(b *router.BasicAuth) error {
	if b == nil || b.File == "" {
		return nil
	}
	err := noPasswordFile(b.File)
	if f := s.passwordFiles[b.File]; f != nil {
		err = f.users().err
	}
	if err != nil {
		return &router.FieldError{Path: "file", Msg: err.Error()}
	}
	return nil
}
