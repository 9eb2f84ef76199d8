package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// A shell that completes a word waits for it, and shows so many.
const (
	completeLimit = time.Second
	completeMost  = 100
)

// completion returns what a shell may make of a word.
type completion = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeKeys completes words by the names of keys below folder, as the cluster has
// them: the first so many arguments, all where most is 0.
func (f *clusterFlags) completeKeys(folder string, most int) completion {
	return f.completeWords(most, func(ctx context.Context, p plane, word string) ([]string, error) {
		keys, err := p.names(ctx, folder+word, completeMost)
		names := make([]string, len(keys))
		for i, key := range keys {
			names[i] = key[len(folder):]
		}
		return names, err
	})
}

// completeWords completes words by the names that begin so, as find has them of the
// cluster: the first so many arguments, all where most is 0.
func (f *clusterFlags) completeWords(most int, find func(ctx context.Context, p plane, word string) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
		defer cancel()
		cmd.SetContext(ctx)
		p, err := f.openPlane(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer p.close()
		names, err := find(ctx, p, word)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names[:min(len(names), completeMost)], cobra.ShellCompDirectiveNoFileComp
	}
}
