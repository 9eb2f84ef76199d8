package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
)

func newStatusCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster: nodes, how far each is, and the keys that are amiss",
		Long: `Status shows the live nodes, as each wrote of itself to etcd, and the keys that
some node refuses or has in force with something amiss. BEHIND is how many keys
were changed or deleted after the revision that a node last said it has applied;
nodes say so within a second. GOOD is how many keys are in force with nothing amiss.
FINGERPRINT is the same on nodes that have the same keys with
the same values in force. Members of the nodes' own etcd of which no node is live
are named as well. It exits with 0 whatever it finds.`,
		Args: cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			st, err := p.status(cmd.Context())
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), st, func(w io.Writer) { writeStatus(w, st) })
		}),
	}
	f.addBoth(cmd)
	return cmd
}

func writeStatus(w io.Writer, st *keys.Status) {
	fmt.Fprintf(w, "%d keys, the newest change at revision %d\n", st.Keys, st.Revision)
	if len(st.Nodes) == 0 {
		fmt.Fprintln(w, "no node is live")
		return
	}
	fmt.Fprintln(w)
	writeRow(w, "NODE", "STATE", "UP", "APPLIED", "BEHIND", "FINGERPRINT", "GOOD", "REFUSED", "DEGRADED", "VERSION", "ADDRESSES")
	for _, n := range st.Nodes {
		addresses := make([]string, len(n.Addresses))
		for i, a := range n.Addresses {
			addresses[i] = a.String()
		}
		writeRow(w, n.Name, string(n.State), ago(n.Started), fmt.Sprint(n.Applied), fmt.Sprint(n.Behind), orDash(n.Fingerprint), fmt.Sprint(n.AppliedKeys),
			fmt.Sprint(n.RefusedKeys), fmt.Sprint(n.DegradedKeys), n.Version, orDash(strings.Join(addresses, ",")))
	}
	for _, n := range st.Nodes {
		writeOlder(w, n.Name, n.Older)
	}
	for _, name := range st.Absent {
		if name == "" {
			fmt.Fprintln(w, "! etcd expects a member that has not started yet: `sluice etcd members`")
			continue
		}
		fmt.Fprintf(w, "! %s is a member of etcd, and no such node is live: `sluice etcd members` asks it\n", printable(name))
	}
	if len(st.Troubles) == 0 {
		return
	}
	if held := heldKeys(st); held > 0 {
		fmt.Fprintf(w, "\n%s held back: `sluice confirm` applies, `sluice rollback` calls off\n", counted(held, "deletion"))
	}
	fmt.Fprintln(w)
	writeRow(w, "KEY", "NODES", "VERDICT")
	shown := map[string]int{}
	for _, t := range st.Troubles {
		state := string(t.Verdict.State)
		if shown[state]++; shown[state] > shownTroubles {
			continue
		}
		nodes := strings.Join(t.Nodes, ",")
		if len(t.Nodes) == len(st.Nodes) && len(t.Nodes) > 1 {
			nodes = "all"
		}
		writeRow(w, printable(t.Key), nodes, printable(t.Verdict.Text))
	}
	for _, state := range sortedKeys(shown) {
		if more := shown[state] - shownTroubles; more > 0 {
			fmt.Fprintf(w, "... and %d more %s; -o json has all\n", more, state)
		}
	}
}

// shownTroubles is how many keys of each state are shown: a great many deletions
// that are held back are not to hide the one value that is refused.
const shownTroubles = 20

func newWaitCommand() *cobra.Command {
	var f clusterFlags
	var rev int64
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until every live node has applied a revision",
		Long: `Wait returns once every live node has said that it applied the revision, which
nodes do within a second of having done so. It exits with 1, and names the
nodes that have not, when the time is over, and where no node is live.`,
		Example: `  sluice wait
  sluice wait --rev 4711 --timeout 30s`,
		Args: cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) (err error) {
			if rev < 0 || timeout <= 0 {
				return usageError{errors.New("--rev: must be 0 (the newest) or more, and --timeout more than 0")}
			}
			began := time.Now()
			if rev, err = p.applied(cmd.Context(), rev, timeout); err != nil {
				return err
			}
			done := struct {
				Rev  int64   `json:"revision"`
				Took float64 `json:"seconds"`
			}{rev, time.Since(began).Seconds()}
			return f.write(cmd.OutOrStdout(), done, func(w io.Writer) { fmt.Fprintf(w, "every live node has applied revision %d\n", rev) })
		}),
	}
	f.addBoth(cmd)
	cmd.Flags().Int64Var(&rev, "rev", 0, "of etcd; 0: of the newest change of a key that nodes act on")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}

// heldKeys returns how many keys there are whose deletion some node holds back.
func heldKeys(st *keys.Status) int {
	held := map[string]bool{}
	for _, t := range st.Troubles {
		if t.Verdict.State == control.Held {
			held[t.Key] = true
		}
	}
	return len(held)
}

func newConfirmCommand() *cobra.Command {
	var f clusterFlags
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "confirm",
		Short: "Have the nodes apply the deletions that they hold back",
		Long: `Confirm says that the deletions which nodes hold back, since they were so many
at once, are meant: every node applies those that were made up to now. To call
them off, put the keys again, such as by sluice rollback.`,
		Args: cobra.NoArgs,
		RunE: f.withStore(func(cmd *cobra.Command, _ []string, store *keys.Store) error {
			if err := store.SomeoneLives(cmd.Context()); err != nil {
				return err
			}
			st, err := store.Status(cmd.Context())
			if err != nil {
				return err
			}
			done := struct {
				Confirmed int   `json:"confirmed"` // keys
				Rev       int64 `json:"revision,omitempty"`
			}{Confirmed: heldKeys(st)}
			if done.Confirmed > 0 {
				ctx, cancel := context.WithTimeout(cmd.Context(), wait)
				defer cancel()
				done.Rev, err = store.Client.Commit(ctx, []etcd.Edit{{Key: control.ConfirmedKey, Value: []byte(store.By), Blind: true}}, store.By)
				if err == nil {
					_, err = store.Await(ctx, done.Rev, nil)
				}
				if err != nil {
					return err
				}
			}
			return f.write(cmd.OutOrStdout(), done, func(w io.Writer) {
				if done.Confirmed == 0 {
					fmt.Fprintln(w, "no deletions are held back")
					return
				}
				fmt.Fprintf(w, "confirmed %s\n", counted(done.Confirmed, "deletion"))
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the nodes")
	return cmd
}
