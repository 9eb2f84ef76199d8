package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
)

func newStateCommand() *cobra.Command {
	var prefix, endpoints string
	cmd := &cobra.Command{
		Use:   "state FILE",
		Short: "Write the state that a node kept on disk as etcdctl commands",
		Long: `State reads a file that a node keeps below its data directory: state, the last
good value of every key, or state.prev, that of before etcd was emptied or went
back in time. It writes a shell script that puts those keys into etcd again. It
deletes nothing, and touches nothing by itself.`,
		Example: `  sluice state /var/lib/sluice/state.prev | less
  sluice state /var/lib/sluice/state.prev | sh`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := control.ReadState(args[0])
			if err != nil {
				return err
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			fmt.Fprintf(w, "# %d keys as of revision %d\n", len(s.Entries), s.Rev)
			if s.Dropped > 0 {
				fmt.Fprintf(w, "# The last %d bytes of the file are damaged, or were not written whole, and are left out.\n", s.Dropped)
			}
			fmt.Fprintln(w, "set -e")
			for _, e := range s.Entries {
				fmt.Fprintf(w, "etcdctl --endpoints %s put -- %s %s\n", quoted(endpoints), quoted(prefix+"/"+e.Key), quoted(e.Value))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "/sluice", "what all keys begin with, as in the node's file")
	cmd.Flags().StringVar(&endpoints, "endpoints", "127.0.0.1:2379", "of etcd, for etcdctl")
	return cmd
}

// quoted writes a word as a shell takes it literally.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
