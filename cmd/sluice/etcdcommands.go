package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/etcd"
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
		Short: "List the members of the etcd cluster, and which of them are there",
		Long: `Members lists the members of the etcd cluster, each of which is asked whether it
is there, with the certificate of etcd.cluster.tls in the node's file. STATE is
leads, follows, "no answer" or "not started yet". It exits with 1 if no member
leads: then most of them are down or do not reach each other, nodes serve what
they have, and nobody can change a key.`,
		Args: cobra.NoArgs,
		RunE: f.withStore(func(cmd *cobra.Command, _ []string, store *keys.Store) error {
			peers, _, err := f.peers()
			if err != nil {
				return err
			}
			all, err := store.Client.Members(cmd.Context(), peers)
			if err != nil {
				return err
			}
			err = f.list(cmd.OutOrStdout(), len(all.Members), func(i int) any { return all.Members[i] }, func(w io.Writer) {
				writeRow(w, "NAME", "STATE", "ID", "PEERS", "")
				for _, m := range all.Members {
					writeRow(w, orDash(m.Name), string(m.State), m.ID, strings.Join(m.Peers, ","), m.Detail)
				}
			})
			if err == nil && all.Leader == "" {
				err = errors.New("no member leads: until most of them are up and reach each other, no key can be changed")
			}
			return err
		}),
	}
}

// peers returns what members are asked with, and where the node's file says
// that they are.
func (f *clusterFlags) peers() (*tls.Config, map[string]string, error) {
	c, err := f.node()
	if err != nil {
		return nil, nil, err
	}
	member := etcdMember(c)
	if member == nil {
		return nil, nil, nil
	}
	asking, err := member.PeerTLS()
	return asking, member.Peers, err
}

func newReplaceCommand(f *clusterFlags) *cobra.Command {
	var r etcd.Replacement
	cmd := &cobra.Command{
		Use:   "replace NODE",
		Short: "Have the cluster expect a node anew whose etcd lost its data",
		Long: `Replace has the cluster forget the member called NODE and expect a new one at
the same address. Run it where a healthy member is, and then start NODE with an
empty etcd directory and etcd.cluster.joining set. It changes nothing where too
few other members are up, and asks for --yes where NODE itself is. What came to
a stop half way is completed by running it again.`,
		Args: cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys("nodes/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			peers, known, err := f.peers()
			if err != nil {
				return err
			}
			r.Name, r.Peers = args[0], peers
			if r.URL == "" {
				r.URL = known[r.Name]
			}
			err = store.Client.ReplaceMember(cmd.Context(), r)
			if errors.Is(err, etcd.ErrHealthy) && !r.Healthy {
				err = usageError{fmt.Errorf("%w; add --yes if that is meant", err)}
			}
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), map[string]string{"expected": r.Name}, func(w io.Writer) {
				fmt.Fprintf(w, "the cluster expects %s anew: stop it, and start it with an empty etcd directory and etcd.cluster.joining\n", r.Name)
			})
		}),
	}
	cmd.Flags().BoolVar(&r.Healthy, "yes", false, "do replace a member that is up")
	cmd.Flags().StringVar(&r.URL, "url", "", "where the other members reach it (default: where they did, or as the node's file says)")
	return cmd
}
