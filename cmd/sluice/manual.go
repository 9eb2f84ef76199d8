package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManualCommand writes the manual pages that packages have: one for each
// command, made of what --help shows.
func newManualCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "manual DIR",
		Short:  "Write manual pages, one for each command",
		Hidden: true, // packages are built by it
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			// The date is that of SOURCE_DATE_EPOCH, or else today's.
			header := &doc.GenManHeader{Section: "1", Source: "sluice", Manual: "Sluice"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(args[0], "sluice*.1"))
			if err != nil {
				return err
			}
			for _, page := range pages {
				if err := mendPage(page); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// mendPage has the NAME of a page say the command as its file is called, by
// which man and apropos find it: the generator writes "sluice map" there.
func mendPage(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(filepath.Base(path), ".1")
	spaced := strings.ReplaceAll(name, "-", " ")
	mended := strings.Replace(string(text), ".SH NAME\n"+spaced+" \\-", ".SH NAME\n"+name+" \\-", 1)
	return os.WriteFile(path, []byte(mended), 0o644)
}
