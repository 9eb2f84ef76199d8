package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// recipe makes a tool that no package of this Debian brings. What it makes is
// kept in the user's cache, in a directory of its own for each version, and
// nothing outside of that directory changes.
type recipe struct {
	dir  string // of the tool, below the bench's cache; names the version
	how  string // in words, for who waits for it
	make func(ctx context.Context, dir string) error
}

// cacheDir is where recipes leave what they make.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for tools: %w", err)
	}
	return filepath.Join(dir, "sluice-bench"), nil
}

// path returns where the file is that the recipe made.
func (r *recipe) path(file string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, r.dir, file)
	_, err = os.Stat(path)
	return path, err
}

// makeMissing makes those of the tools that have a recipe and are not there.
func makeMissing(ctx context.Context, tools []tool, may bool, out io.Writer) error {
	for _, t := range tools {
		if t.made == nil {
			continue
		}
		if _, err := t.path(); err == nil {
			continue
		}
		if !may {
			return fmt.Errorf("missing: %s; -install makes it: %s", t.file, t.made.how)
		}
		fmt.Fprintln(out, t.made.how)
		if err := t.made.run(ctx); err != nil {
			return fmt.Errorf("%s: %w; -contenders can leave it out", t.made.how, err)
		}
		if _, err := t.path(); err != nil {
			return fmt.Errorf("%s: it succeeded, but %w", t.made.how, err)
		}
	}
	return nil
}

// run makes the tool beside its place and then puts it there at once, so that
// what is there is always whole.
func (r *recipe) run(ctx context.Context) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	// apt's own user has to reach it.
	if err := errors.Join(os.Chmod(fresh, 0o755), r.make(ctx, fresh)); err != nil {
		return err
	}
	place := filepath.Join(cache, r.dir)
	if err := os.RemoveAll(place); err != nil {
		return err
	}
	return os.Rename(fresh, place)
}
