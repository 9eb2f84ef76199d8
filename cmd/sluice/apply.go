package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/keys"
)

// pruned are the folders that apply removes keys from.
var pruned = func() []string {
	folders := make([]string, len(keyKinds))
	for i, k := range keyKinds {
		folders[i] = k.folder
	}
	return folders
}()

func newApplyCommand() *cobra.Command {
	var cf clusterFlags
	f := changeFlags{clusterFlags: &cf}
	var paths, prune []string
	var yes bool
	cmd := &cobra.Command{
		Use:   "apply -f DIR|FILE|-",
		Short: "Make the keys in etcd as files say",
		Long: `Apply reads files of keys and brings etcd to what they say: it shows what that
changes, checks it, writes it, 128 keys in a transaction, and waits for the
nodes' verdicts. A file is YAML or JSON, keys and their values:

    ports/tcp/20022: 10.0.3.17:22
    routes/jupyter:
      host: "*.jupyter.x-gpu.com"
      backend: 10.0.3.17:8888

or several such documents with --- between them. An input without any key is
refused: a program that failed to write it is not to have all keys removed.
Keys that no file has are left alone, unless --prune names their folder. To
remove keys takes --yes. If nodes would refuse anything, nothing is written.`,
		Example: `  sluice apply -f keys/ --dry-run
  sluice apply -f keys/ --prune routes/ --prune ports/tcp/ --yes`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q: give files by -f %s", args[0], args[0])
			}
			return nil
		},
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			wishes, err := keys.ReadFiles(paths, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if slices.Contains(prune, "") || len(prune) == 0 && cmd.Flags().Changed("prune") {
				return usageError{fmt.Errorf("--prune: names no folder; write one of %s, or one below them", strings.Join(pruned, ", "))}
			}
			if at := slices.IndexFunc(wishes, func(w keys.Wish) bool { return strings.HasPrefix(w.Key, "removals/") }); at >= 0 {
				return usageError{fmt.Errorf("%s: that is no key of a configuration; to confirm deletions there is `sluice confirm`", wishes[at].Key)}
			}
			if wishes, err = withPruned(cmd, p, wishes, prune); err != nil {
				return err
			}
			return f.change(cmd, p, wishes, removalNeeds(yes, f.dryRun))
		}),
	}
	cf.addBoth(cmd)
	f.add(cmd)
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "a file of keys, a directory of such files, or - for standard input; several times for several")
	cmd.Flags().StringSliceVar(&prune, "prune", nil, "remove the keys below this folder that no file has, such as routes/")
	cmd.Flags().BoolVar(&yes, "yes", false, "do remove keys")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// withPruned adds to wishes that keys below folders which are not among them
// go.
func withPruned(cmd *cobra.Command, p plane, wishes []keys.Wish, folders []string) ([]keys.Wish, error) {
	wanted := map[string]bool{}
	for _, w := range wishes {
		wanted[w.Key] = true
	}
	for _, folder := range folders {
		if !slices.ContainsFunc(pruned, func(known string) bool { return strings.HasPrefix(folder, known) }) {
			return nil, usageError{fmt.Errorf("--prune: %q is no folder of keys; write one of %s, or one below them", folder, strings.Join(pruned, ", "))}
		}
		there, err := p.list(cmd.Context(), folder)
		if err != nil {
			return nil, err
		}
		for _, e := range there {
			if !wanted[e.Key] {
				wanted[e.Key] = true
				wishes = append(wishes, keys.Wish{Key: e.Key, Delete: true})
			}
		}
	}
	return wishes, nil
}
