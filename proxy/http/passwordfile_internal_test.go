package http

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/router"
)

const (
	someHash    = "$2y$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
	anotherHash = "$2y$05$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
)

// TestPasswordFileIsReadAnew edits, breaks and removes a file, by a clock of the
// test's own.
func TestPasswordFileIsReadAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staff")
	age := time.Unix(1e9, 0)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		age = age.Add(time.Second) // two edits within the clock's tick are two
		if err := os.Chtimes(path, age, age); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		log := &strings.Builder{}
		f := passwordFiles(map[string]string{"staff": path}, slog.New(slog.NewTextHandler(log, nil)))["staff"]
		s := &Server{passwordFiles: map[string]*passwordFile{"staff": f}}
		hash := func() string { return f.users().hashes["ann"].Text }
		if err := s.CheckBasicAuth(&router.BasicAuth{File: "staff"}); err == nil || !strings.Contains(err.Error(), "file: password_files.staff") {
			t.Errorf("error %v of a file that is missing", err)
		}
		write("# staff\n\nann:" + someHash + "\r\n")
		time.Sleep(lookAtBadFile)
		if err := s.CheckBasicAuth(&router.BasicAuth{File: "staff"}); err != nil || hash() != someHash {
			t.Errorf("%v, %q once the file is there", err, hash())
		}
		write("ann:" + anotherHash + "\nbob:" + someHash + "\n")
		if hash() != someHash {
			t.Error("the file is read all the time")
		}
		time.Sleep(lookAtFile)
		if hash() != anotherHash || f.users().hashes["bob"].Text != someHash {
			t.Error("an edit has no effect")
		}
		write("ann:s3cret\n")
		time.Sleep(lookAtFile)
		if hash() != anotherHash {
			t.Error("a bad file took the place of a good one")
		}
		os.Remove(path)
		time.Sleep(lookAtFile)
		if hash() != anotherHash {
			t.Error("a file that is gone took the place of a good one")
		}
		if n := strings.Count(log.String(), "cannot be read"); n != 1 || strings.Contains(log.String(), "s3cret") {
			t.Errorf("the log: %s", log)
		}
		write("bob:" + someHash + "\n")
		time.Sleep(lookAtBadFile)
		if hash() != "" {
			t.Error("who was taken out of the file is still let in")
		}
		if err := s.CheckBasicAuth(&router.BasicAuth{File: "nobody"}); err == nil {
			t.Error("a file that sluice.yaml does not have: no error")
		}
	})
}

func TestPasswordFilesRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "names no user",
		"# nobody\n":                         "names no user",
		"ann\n":                              "line 1 is not",
		"ann:" + someHash + "\n:" + someHash: "line 2 is not",
		"ann:s3cret":                         "line 1: what follows the name",
		"ann:" + someHash + "\n\nann:" + someHash: "line 3 names a user for the second time",
	} {
		_, _, err := parsePasswords([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}
