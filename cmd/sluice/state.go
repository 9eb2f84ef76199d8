package main

import (
	"bufio"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
)

func newStateCommand() *cobra.Command {
	var prefix, endpoints string
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "state FILE",
		Short: "Write the state that a node kept on disk as etcdctl commands",
		Long: `State reads a file that a node keeps below its data directory: state, the last
good value of every key, or state.prev, that of before etcd was emptied or went
back in time. It writes a shell script that puts those keys into etcd again, 128
in a transaction; with -o json, the keys. It deletes nothing, and touches nothing by itself. It exits with
1 where the file is damaged: the script has the keys as they were earlier then,
which may be far fewer, and says so as well.`,
		Example: `  sluice state /var/lib/sluice/state.prev | less
  sluice state /var/lib/sluice/state.prev | sh`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			s, err := control.ReadState(args[0])
			if err != nil {
				return err
			}
			// These are said to the nodes, once; said again they would have deletions
			// applied that are held back.
			s.Entries = slices.DeleteFunc(s.Entries, func(e control.StateEntry) bool { return strings.HasPrefix(e.Key, "removals/") })
			w := bufio.NewWriter(cmd.OutOrStdout())
			if out.json() {
				enc := encoder(w)
				for _, e := range s.Entries {
					_ = enc.Encode(e) // Flush tells
				}
			} else {
				writeScript(w, s, "etcdctl --endpoints "+quoted(endpoints), prefix)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if s.Damaged {
				return fmt.Errorf("%s: %s", args[0], leftOut(s))
			}
			if s.Dropped > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "sluice: %s: %s\n", args[0], leftOut(s))
			}
			return nil
		},
	}
	out.add(cmd)
	cmd.Flags().StringVar(&prefix, "prefix", "/sluice", "what all keys begin with, as in the node's file")
	cmd.Flags().StringVar(&endpoints, "endpoints", "127.0.0.1:2379", "of etcd, for etcdctl")
	return cmd
}

// A transaction may have as many operations as etcd takes by default. Its bytes
// stay far below the 1.5 MB that etcd takes, but for a single value of that size.
const (
	txnKeys  = 128
	txnBytes = 512 << 10
)

// endOfKeys ends the input of one etcdctl. No line of a transaction is alike:
// each begins with put.
const endOfKeys = "KEYS"

// writeScript writes a shell script that puts s below prefix: a transaction for
// many keys, since an etcdctl for each would take many minutes for all the keys
// of a large node. An error of writing is the writer's, to be told by Flush.
func writeScript(w *bufio.Writer, s control.State, etcdctl, prefix string) {
	fmt.Fprintf(w, "# %d keys as of revision %d\n", len(s.Entries), s.Rev)
	if s.Dropped > 0 {
		fmt.Fprintf(w, "echo %s >&2\n", quoted(leftOut(s)))
	}
	fmt.Fprintln(w, "set -e")
	for rest := s.Entries; len(rest) > 0; {
		n := firstBatch(rest)
		// What follows are the transaction's conditions, what it does where they
		// hold, and what else: each up to an empty line. There is only the second.
		fmt.Fprintf(w, "%s txn > /dev/null << '%s'\n\n", etcdctl, endOfKeys)
		for _, e := range rest[:n] {
			fmt.Fprintf(w, "put -- %q %q\n", prefix+"/"+e.Key, e.Value) // quoted as Go does, says etcdctl
		}
		fmt.Fprintf(w, "\n\n%s\n", endOfKeys)
		rest = rest[n:]
	}
	fmt.Fprintf(w, "echo %s\n", quoted(fmt.Sprintf("put %d keys", len(s.Entries))))
}

// leftOut says what of a file is not in the script.
func leftOut(s control.State) string {
	if s.Damaged {
		return fmt.Sprintf("the file is damaged: these are the %d keys as of revision %d, and %d bytes of what came later are lost; is there a state.prev?",
			len(s.Entries), s.Rev, s.Dropped)
	}
	return fmt.Sprintf("the last %d bytes of the file were not written whole, and are left out", s.Dropped)
}

// firstBatch returns how many of entries, at least one, go into a transaction.
func firstBatch(entries []control.StateEntry) int {
	size := 0
	for i, e := range entries {
		size += len(e.Key) + len(e.Value)
		if i == txnKeys || i > 0 && size > txnBytes {
			return i
		}
	}
	return len(entries)
}

// quoted writes a word as a shell takes it literally.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
