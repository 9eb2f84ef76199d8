package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a recipe makes is there whole or not at all, and made once.
func TestRecipe(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	runs, fails := 0, errors.New("no network")
	thing := tool{file: "bin/thing", made: &recipe{dir: "thing-v1", how: "make a thing", make: func(_ context.Context, dir string) error {
		runs++
		if fails != nil {
			os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
			return fails
		}
		os.Mkdir(filepath.Join(dir, "bin"), 0o755)
		return os.WriteFile(filepath.Join(dir, "bin", "thing"), nil, 0o755)
	}}}
	var out bytes.Buffer
	if err := provide(t.Context(), []tool{thing}, false, &out); err == nil || !strings.Contains(err.Error(), "make a thing") || runs != 0 {
		t.Errorf("where nothing may be made: %v after %d runs, want the way to it and none", err, runs)
	}
	if err := provide(t.Context(), []tool{thing}, true, &out); !errors.Is(err, fails) {
		t.Errorf("provide = %v, want %v", err, fails)
	}
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
		t.Errorf("a recipe that failed left %v, %v", left, err)
	}
	fails = nil
	for range 2 {
		if err := provide(t.Context(), []tool{thing}, true, &out); err != nil {
			t.Fatal(err)
		}
	}
	if runs != 2 {
		t.Errorf("made %d times, want 2: one that failed and one that did not", runs)
	}
	if path, err := thing.path(); err != nil || path != filepath.Join(cache, "thing-v1/bin/thing") {
		t.Errorf("path = %s, %v", path, err)
	}
}
