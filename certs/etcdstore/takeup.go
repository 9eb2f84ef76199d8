package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs"
)

// takeUpAgain is how long after a failure the directory is looked at again.
const takeUpAgain = 5 * time.Second

// TakeUp brings accounts and certificates that a node has in files of its own,
// as nodes had them before they shared them, to where they are shared, unless
// there are such already. The files, which are in clear, are removed once what
// they hold is there; one that cannot be used stays, and is named in the log. It
// returns nil once there is nothing more to do, or ctx ends.
func (s *Store) TakeUp(ctx context.Context, dir string) error {
	told := false
	for {
		left, err := s.takeUp(ctx, dir)
		if err == nil || ctx.Err() != nil {
			for _, file := range left {
				s.cfg.Logger.Error("a certificate or an account of before is not usable, and its files stay where they are", "file", filepath.Join(dir, file))
			}
			return nil
		}
		if !told {
			told = true
			s.cfg.Logger.Warn("the certificates and accounts in this node's own files are not shared yet", "dir", dir, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(takeUpAgain):
		}
	}
}

// takeUp does it once, and returns what stays.
func (s *Store) takeUp(ctx context.Context, dir string) (left []string, err error) {
	storage := &certmagic.FileStorage{Path: dir}
	keys, err := storage.List(ctx, "", true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	done := 0
	for _, key := range keys {
		info, err := storage.Stat(ctx, key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsTerminal {
			continue // it went with another file of its certificate, or is a folder
		}
		if err != nil {
			return nil, err
		}
		used, err := s.takeUpFile(ctx, storage, key)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", key, err)
		case !used:
			left = append(left, key)
		default:
			done++
		}
	}
	if done > 0 {
		s.cfg.Logger.Info("the certificates and accounts in this node's own files are shared now", "dir", dir, "files", done)
	}
	if len(left) == 0 {
		return nil, os.RemoveAll(dir)
	}
	return left, nil
}

// takeUpFile takes one file up, and with that of a certificate its others.
func (s *Store) takeUpFile(ctx context.Context, from certmagic.Storage, key string) (used bool, err error) {
	issuer, name, _, isCert := certs.FileOf(key)
	switch {
	case isCert:
		crt, _, _ := filesOf(issuer, name)
		c, err := certs.LoadStored(ctx, from, issuer, name)
		if err != nil {
			return false, nil // it is not usable, and stays
		}
		if err := s.unlessThere(ctx, crt, func() error { return s.PutStored(ctx, c) }); err != nil {
			return false, err
		}
		return true, from.Delete(ctx, certs.FolderOf(issuer, name))
	case strings.HasPrefix(key, "acme/"): // accounts
		return s.takeUpAccount(ctx, from, key)
	case slices.Contains([]string{"locks", "ocsp"}, strings.SplitN(key, "/", 2)[0]):
		return true, from.Delete(ctx, key)
	}
	return false, nil
}

// takeUpAccount takes an account up by one of the two files that certmagic had of
// it: acme/<authority>/users/<contact>/<user>.json, and .key.
func (s *Store) takeUpAccount(ctx context.Context, from certmagic.Storage, file string) (used bool, err error) {
	parts := strings.Split(file, "/")
	if len(parts) != 5 || parts[2] != "users" {
		return false, nil
	}
	base := strings.TrimSuffix(file, path.Ext(file))
	description, err := from.Load(ctx, base+".json")
	if err != nil {
		return false, nil // one alone is not usable, and stays
	}
	private, err := from.Load(ctx, base+".key")
	if err != nil {
		return false, nil
	}
	key, value, err := certs.AccountOfBefore(parts[1], parts[3], description, private)
	if err != nil {
		return false, nil
	}
	if err := s.unlessThere(ctx, key, func() error { return s.Store(ctx, key, value) }); err != nil {
		return false, err
	}
	return true, errors.Join(from.Delete(ctx, base+".json"), from.Delete(ctx, base+".key"))
}

// unlessThere stores something where there is nothing yet. Of an error to find
// that out it does not say that there is nothing.
func (s *Store) unlessThere(ctx context.Context, key string, store func() error) error {
	_, err := s.Stat(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return store()
	}
	return err
}
