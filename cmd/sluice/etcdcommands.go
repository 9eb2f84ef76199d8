package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/keys"
)

func newEtcdCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "etcd",
		Short: "Look after the etcd that holds the keys",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	f.add(cmd)
	cmd.AddCommand(newBackupCommand(&f), newMembersCommand(&f), newReplaceCommand(&f))
	return cmd
}

func newBackupCommand(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all of etcd's data to a file",
		Long: `Backup writes everything that etcd holds, whoever it belongs to, to FILE, which
appears once it is whole. To go back to it, stop the nodes whose etcd it was and
make their data directories anew by "etcdutl snapshot restore". For the keys of
sluice alone, which any etcd can take back while it runs, there is sluice
snapshot.`,
		Args: cobra.ExactArgs(1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			var size countingWriter
			err := saveWhole(args[0], func(w io.Writer) error {
				return store.Client.Backup(cmd.Context(), io.MultiWriter(w, &size))
			})
			if err != nil {
				return err
			}
			saved := struct {
				File  string `json:"file"`
				Bytes int64  `json:"bytes"`
			}{args[0], int64(size)}
			return f.write(cmd.OutOrStdout(), saved, func(w io.Writer) {
				fmt.Fprintf(w, "saved %s of etcd's data\n", shortBytes(float64(saved.Bytes)))
			})
		}),
	}
}

type countingWriter int64

func (n *countingWriter) Write(p []byte) (int, error) {
	*n += countingWriter(len(p))
	return len(p), nil
}

func newMembersCommand(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List the members of the etcd cluster",
		Args:  cobra.NoArgs,
		RunE: f.withStore(func(cmd *cobra.Command, _ []string, store *keys.Store) error {
			all, err := store.Client.Members(cmd.Context())
			if err != nil {
				return err
			}
			return f.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "NAME", "ID", "PEERS")
				for _, m := range all {
					name := m.Name
					if name == "" {
						name = "(not started yet)"
					}
					writeRow(w, name, m.ID, strings.Join(m.Peers, ","))
				}
			})
		}),
	}
}

func newReplaceCommand(f *clusterFlags) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "replace NODE",
		Short: "Have the cluster expect a node anew whose etcd lost its data",
		Long: `Replace has the cluster forget the member called NODE and expect a new one at
the same address. Run it where a healthy member is, and then start NODE with an
empty etcd directory and etcd.cluster.joining set. Most members must be up, NODE
not counted. It takes --yes: whatever that member has is of no use afterwards, and
of a cluster with another member down it would be the end.`,
		Args: cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys("nodes/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			if !yes {
				return usageError{fmt.Errorf("this takes the member %s out of the cluster, whatever it has: see that its data is lost and that all others are up, and add --yes", args[0])}
			}
			if err := store.Client.ReplaceMember(cmd.Context(), args[0]); err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), map[string]string{"expected": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "the cluster expects %s anew: start it with an empty etcd directory and etcd.cluster.joining\n", args[0])
			})
		}),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do remove the member")
	return cmd
}
