package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRunbooksNameCommandsThatThereAre looks at every `sluice ...` of the
// runbooks: somebody will type it in the middle of the night.
func TestRunbooksNameCommandsThatThereAre(t *testing.T) {
	t.Parallel()
	books, err := filepath.Glob("../../deploy/runbooks/*.md")
	if err != nil || len(books) == 0 {
		t.Fatalf("found no runbooks: %v", err)
	}
	command := regexp.MustCompile("(?:`|&& |\\| |; )sluice((?: [a-z][a-z-]*)+)")
	word := regexp.MustCompile(`--[a-z-]+`)
	found := 0
	for _, book := range books {
		text, err := os.ReadFile(book)
		if err != nil {
			t.Fatal(err)
		}
		for _, quoted := range regexp.MustCompile("(?s)`[^`]+`").FindAllString(string(text), -1) {
			quoted = strings.Join(strings.Fields(quoted), " ")
			for _, m := range command.FindAllStringSubmatch(quoted, -1) {
				found++
				help := helpOf(t, strings.Fields(m[1]))
				if help == "" {
					t.Errorf("%s: there is no command as in %s", filepath.Base(book), quoted)
				}
				for _, flag := range word.FindAllString(quoted[strings.Index(quoted, m[0]):], -1) {
					if !strings.Contains(help, flag) {
						t.Errorf("%s: there is no flag %s as in %s", filepath.Base(book), flag, quoted)
					}
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("found %d commands", found)
	}
}

// helpOf returns the help of the longest command that words begin with, where
// the rest can be its arguments; "" where there is none.
func helpOf(t *testing.T, words []string) string {
	t.Helper()
	for n := len(words); n > 0; n-- {
		var out strings.Builder
		if err := run(append(words[:n:n], "--help"), nil, nil, &out, &out); err != nil {
			continue
		}
		// A command that only holds others takes no arguments.
		usage := regexp.MustCompile(`(?m)^  sluice ` + strings.Join(words[:n], " ") + `( .*)?$`).FindString(out.String())
		switch {
		case usage == "":
		case n < len(words) && (strings.Contains(out.String(), "Available Commands:") || !regexp.MustCompile(`[A-Z]{3}`).MatchString(usage)):
		default:
			return out.String()
		}
	}
	return ""
}
