package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/keys"
)

func newNodeCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "List and show nodes, and take them out and back in",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	f.add(cmd)
	cmd.AddCommand(newNodeList(&f), newNodeShow(&f), newNodeDrain(&f), newNodeUndrain(&f))
	return cmd
}

// nodeView is a node as it says of itself, and as the others see it.
type nodeView struct {
	fleet.Node
	Healthy bool              `json:"healthy"`          // clients are to be sent to it
	Why     string            `json:"why,omitempty"`    // it is not healthy
	Wanted  *fleet.Drain      `json:"wanted,omitempty"` // somebody wants it drained
	Votes   map[string]string `json:"votes,omitempty"`  // what its watchers say, by watcher and address: "up", or why not
}

// readFleet returns what etcd has of all nodes, by name, those included that are
// to be drained and do not run.
func readFleet(ctx context.Context, from *etcd.Client) ([]nodeView, error) {
	records, rev, err := from.ReadUnder(ctx, "nodes/", 0)
	if err != nil {
		return nil, err
	}
	var kvs []etcd.KV
	for _, folder := range fleet.Folders {
		some, _, err := from.ReadUnder(ctx, folder, rev)
		if err != nil {
			return nil, err
		}
		kvs = append(kvs, some...)
	}
	reg := fleet.NewRegistry("")
	reg.Load(rev, kvs)
	members, _ := reg.Members()
	votes := votesIn(kvs)
	all := map[string]*nodeView{}
	node := func(name string) *nodeView {
		if all[name] == nil {
			all[name] = &nodeView{Node: fleet.Node{Name: name, State: fleet.Down}, Why: "it does not run, or does not reach etcd", Votes: votes[name]}
		}
		return all[name]
	}
	for _, kv := range records {
		v := node(strings.TrimPrefix(kv.Key, "nodes/"))
		if json.Unmarshal(kv.Value, &v.Node) != nil {
			v.State = "unreadable"
		}
		v.Name, v.Instance = strings.TrimPrefix(kv.Key, "nodes/"), "" // the node derives secrets of it
		v.Why = "it has not told the others of itself"
	}
	for _, m := range members {
		v := node(m.Node)
		v.Healthy, v.Why = m.Healthy, m.Why
	}
	for _, kv := range kvs {
		if name, drained := strings.CutPrefix(kv.Key, "drain/"); drained {
			d, _ := fleet.ParseDrain(kv.Value)
			node(name).Wanted = &d
		}
	}
	list := make([]nodeView, 0, len(all))
	for _, v := range all {
		list = append(list, *v)
	}
	slices.SortFunc(list, func(a, b nodeView) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// votesIn returns what watchers say, by node, watcher and address.
func votesIn(kvs []etcd.KV) map[string]map[string]string {
	votes := map[string]map[string]string{}
	note := func(watcher, subject, vote string) {
		node, addr, _ := strings.Cut(subject, " ")
		if votes[node] == nil {
			votes[node] = map[string]string{}
		}
		votes[node][watcher+" "+addr] = vote
	}
	for _, kv := range kvs {
		watcher, is := strings.CutPrefix(kv.Key, "health/")
		v, err := fleet.ParseView(kv.Value)
		if !is || err != nil {
			continue
		}
		for _, subject := range v.Up {
			note(watcher, subject, "up")
		}
		for subject, why := range v.Down {
			note(watcher, subject, why)
		}
	}
	return votes
}

// drainText says how a node's drain stands; "" where there is none.
func (v *nodeView) drainText() string {
	switch p := v.Drain; {
	case v.Wanted == nil && p == nil:
		return ""
	case v.Wanted == nil:
		return "coming back"
	case p == nil:
		return "wanted"
	case p.Phase == fleet.LeavingDNS:
		return "serves until DNS has let go, " + shortDuration(max(time.Until(p.Until), 0))
	case p.Phase == fleet.EndingFlows:
		return counted(p.Left, "flow") + " left"
	}
	return "done"
}

func addressList(v *nodeView) string {
	texts := make([]string, len(v.Addresses))
	for i, a := range v.Addresses {
		texts[i] = a.String()
	}
	return orDash(strings.Join(texts, ","))
}

func newNodeList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the nodes, and whether clients are sent to them",
		Long: `Ls lists the nodes that run and reach etcd, and those that are to be drained. HEALTH
is ok where clients are to be sent to a node, by what the nodes that watch it say;
DRAIN is how far it is where somebody wants it drained.`,
		Args: cobra.NoArgs,
		RunE: f.withStore(func(cmd *cobra.Command, _ []string, store *keys.Store) error {
			all, err := readFleet(cmd.Context(), store.Client)
			if err != nil {
				return err
			}
			return f.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "NODE", "STATE", "HEALTH", "DRAIN", "REGION", "WEIGHT", "UP", "VERSION", "ADDRESSES")
				for i := range all {
					v := &all[i]
					health := "ok"
					if !v.Healthy {
						health = oneLine(v.Why, 60)
					}
					writeRow(w, printable(v.Name), printable(string(v.State)), health, orDash(v.drainText()), orDash(printable(v.Region)), fmt.Sprint(max(v.Weight, 1)),
						ago(v.Started), orDash(printable(v.Version)), addressList(v))
				}
			})
		}),
	}
}

// findNode returns a node by its name.
func findNode(all []nodeView, name string) (*nodeView, error) {
	i := slices.IndexFunc(all, func(v nodeView) bool { return v.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no node %q: none of that name runs and reaches etcd; `sluice node ls` lists them", name)
	}
	return &all[i], nil
}

func newNodeShow(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a node, what it says of itself and what the others say of it",
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys("nodes/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			all, err := readFleet(cmd.Context(), store.Client)
			if err != nil {
				return err
			}
			v, err := findNode(all, args[0])
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { writeNode(w, v) })
		}),
	}
}

func writeNode(w io.Writer, v *nodeView) {
	row := func(what, is string) { writeRow(w, what, printable(is)) }
	row("node", v.Name)
	row("state", string(v.State))
	if v.Healthy {
		row("health", "ok: clients are to be sent to it")
	} else {
		row("health", v.Why)
	}
	if d := v.drainText(); d != "" {
		if v.Wanted != nil && v.Wanted.Reason != "" {
			d += " (" + v.Wanted.Reason + ")"
		}
		row("drain", d)
	}
	row("addresses", addressList(v))
	row("region", orDash(v.Region))
	row("weight", fmt.Sprint(max(v.Weight, 1)))
	if l := v.Load; l != nil {
		row("load", fmt.Sprintf("%.0f %% CPU, %s, %s, %s/s in, %s/s out", l.CPU*100, counted(l.Flows, "flow"), counted(l.Files, "open file"), shortBytes(float64(l.In)), shortBytes(float64(l.Out))))
	}
	row("version", orDash(v.Version))
	row("up", ago(v.Started))
	row("applied", fmt.Sprint(v.Applied))
	for _, watcher := range sortedKeys(v.Votes) {
		row("seen by "+watcher, v.Votes[watcher])
	}
}

func newNodeDrain(f *clusterFlags) *cobra.Command {
	var reason string
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "drain NAME",
		Short: "Take a node out: of DNS first, then of service, without cutting a flow",
		Long: `Drain has a node serve until clients are sent elsewhere (fleet.drain_wait), then take
up nothing new, send clients of HTTP away, and keep the flows that it has until
they end. It stays so, over restarts too, until sluice node undrain. With --wait the
command returns once no flow is left; it exits with 1, and says what is left, when
--timeout is over first.`,
		Example: "  sluice node drain hk1 --reason 'new disk' --wait",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys("nodes/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			all, err := readFleet(cmd.Context(), store.Client)
			if err != nil {
				return err
			}
			v, err := findNode(all, args[0])
			if err != nil {
				return err
			}
			if err := lastOne(all, v.Name); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "!", err)
			}
			value, err := json.Marshal(fleet.Drain{Reason: reason})
			if err != nil {
				return err
			}
			if _, err := store.Client.Commit(cmd.Context(), []etcd.Edit{{Key: fleet.DrainKey(v.Name), Value: value, Blind: true}}, store.By); err != nil {
				return err
			}
			if wait {
				v, err = awaitNode(cmd.Context(), store.Client, v.Name, timeout, func(v *nodeView) bool { return v.Drain != nil && v.Drain.Phase == fleet.Drained })
			} else {
				v.Wanted = &fleet.Drain{Reason: reason}
			}
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", printable(v.Name), orDash(v.drainText())) })
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for others to read")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until no flow is left")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "how long to wait for that")
	return cmd
}

// lastOne says so where no other node serves.
func lastOne(all []nodeView, name string) error {
	for _, v := range all {
		if v.Name != name && v.Healthy {
			return nil
		}
	}
	return errors.New("no other node is healthy: once this one is drained nobody serves")
}

func newNodeUndrain(f *clusterFlags) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "undrain NAME",
		Short: "Have a node that was drained serve again, and wait until it does",
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys("drain/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			all, err := readFleet(cmd.Context(), store.Client)
			if err != nil {
				return err
			}
			v, err := findNode(all, args[0])
			if err != nil {
				return err
			}
			if v.Wanted == nil {
				return fmt.Errorf("nobody wants %s drained", args[0])
			}
			if _, err := store.Client.Commit(cmd.Context(), []etcd.Edit{{Key: fleet.DrainKey(v.Name), Delete: true, Blind: true}}, store.By); err != nil {
				return err
			}
			if v.Started.IsZero() || timeout == 0 { // it does not run
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is not waited for; it serves once it runs\n", printable(v.Name))
				return nil
			}
			if v, err = awaitNode(cmd.Context(), store.Client, v.Name, timeout, func(v *nodeView) bool { return v.Drain == nil && v.State == fleet.Ready }); err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "%s serves\n", printable(v.Name)) })
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; 0: not at all")
	return cmd
}

// awaitNode looks at a node until it is as done says.
func awaitNode(ctx context.Context, from *etcd.Client, name string, limit time.Duration, done func(*nodeView) bool) (*nodeView, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	const every = 500 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last *nodeView
	for {
		all, err := readFleet(ctx, from)
		if err == nil {
			if last, err = findNode(all, name); err == nil && done(last) {
				return last, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			switch {
			case err != nil:
				return nil, err
			case last != nil && last.drainText() != "":
				return nil, fmt.Errorf("%s is not there within %v: %s; it goes on by itself", name, limit, last.drainText())
			}
			return nil, fmt.Errorf("%s is not there within %v: it is %s", name, limit, last.State)
		}
	}
}
