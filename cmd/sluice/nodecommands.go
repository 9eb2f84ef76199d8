package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/wire"
)

func newNodeCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "List and show nodes, and take them out and back in",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	f.addBoth(cmd)
	cmd.AddCommand(newNodeList(&f), newNodeShow(&f), newNodeDrain(&f), newNodeUndrain(&f))
	return cmd
}

// completeNodes completes a word by the names of nodes: of all, or of those that
// somebody wants drained.
func (f *clusterFlags) completeNodes(drained bool) completion {
	return f.completeWords(1, func(ctx context.Context, p plane, word string) (names []string, err error) {
		all, err := p.nodes(ctx)
		for _, v := range all {
			if (v.Wanted != nil || !drained) && strings.HasPrefix(v.Name, word) {
				names = append(names, v.Name)
			}
		}
		return names, err
	})
}

// drainText says how a node's drain stands; "" where there is none.
func drainText(v *wire.NodeView) string {
	switch p := v.Drain; {
	case v.Wanted == nil && p == nil:
		return ""
	case v.Wanted == nil:
		return "coming back"
	case p == nil:
		return "wanted"
	case fleet.Phase(p.Phase) == fleet.LeavingDNS:
		return "serves until DNS has let go, " + shortDuration(max(time.Until(p.Until), 0))
	case fleet.Phase(p.Phase) == fleet.EndingFlows:
		return counted(p.Left, "flow") + " left"
	}
	return "done"
}

// writeOlder says what older processes of a node have, if there are any.
func writeOlder(w io.Writer, node string, o *fleet.Older) {
	if o != nil {
		fmt.Fprintf(w, "%s: %s\n", printable(node), olderText(o))
	}
}

func olderText(o *fleet.Older) string {
	text := fmt.Sprintf("%d older processes", o.Processes)
	if o.Processes == 1 {
		text = "1 older process"
	}
	text += ", " + counted(o.Flows, "flow")
	if !o.Until.IsZero() {
		text += ", until " + o.Until.Format(time.RFC3339)
	}
	return text + "; `sluice flows` on the node lists them"
}

func addressList(v *wire.NodeView) string {
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
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			all, err := p.nodes(cmd.Context())
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
					writeRow(w, printable(v.Name), printable(v.State), health, orDash(drainText(v)), orDash(printable(v.Region)), fmt.Sprint(max(v.Weight, 1)),
						ago(v.Started), orDash(printable(v.Version)), addressList(v))
				}
				for _, v := range all {
					writeOlder(w, v.Name, (*fleet.Older)(v.Older))
				}
			})
		}),
	}
}

func newNodeShow(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a node, what it says of itself and what the others say of it",
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: f.completeNodes(false),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			v, err := p.node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { writeNode(w, v) })
		}),
	}
}

func writeNode(w io.Writer, v *wire.NodeView) {
	row := func(what, is string) { writeRow(w, what, printable(is)) }
	row("node", v.Name)
	row("state", v.State)
	if v.Healthy {
		row("health", "ok: clients are to be sent to it")
	} else {
		row("health", v.Why)
	}
	if d := drainText(v); d != "" {
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
	if v.Older != nil {
		row("upgraded", olderText((*fleet.Older)(v.Older)))
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

		ValidArgsFunction: f.completeNodes(false),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			ctx, name := cmd.Context(), args[0]
			if err := p.drain(ctx, name, reason); err != nil {
				return err
			}
			all, err := p.nodes(ctx)
			if err != nil {
				return err
			}
			if err := lastOne(all, name); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "!", err)
			}
			at := slices.IndexFunc(all, func(v wire.NodeView) bool { return v.Name == name })
			if at < 0 {
				return fmt.Errorf("%s was to be drained, and somebody else has called that off; look with `sluice history drain/%[1]s`", name)
			}
			v := &all[at]
			if wait {
				v, err = awaitNode(ctx, p, name, timeout, func(v *wire.NodeView) bool {
					return v.Drain != nil && fleet.Phase(v.Drain.Phase) == fleet.Drained
				})
			}
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", printable(v.Name), orDash(drainText(v))) })
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for others to read")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until no flow is left")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "how long to wait for that")
	return cmd
}

// lastOne says so where no other node serves.
func lastOne(all []wire.NodeView, name string) error {
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

		ValidArgsFunction: f.completeNodes(true),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			ctx, name := cmd.Context(), args[0]
			v, err := p.node(ctx, name)
			if err != nil {
				return err
			}
			if err := p.undrain(ctx, name); err != nil {
				return err
			}
			if v.Started.IsZero() || timeout == 0 { // it does not run
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is not waited for; it serves once it runs\n", printable(name))
				return nil
			}
			if v, err = awaitNode(ctx, p, name, timeout, func(v *wire.NodeView) bool { return v.Drain == nil && v.State == string(fleet.Ready) }); err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "%s serves\n", printable(v.Name)) })
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; 0: not at all")
	return cmd
}

// awaitNode looks at a node until it is as done says: often at first, and then as
// often as nodes say how far they are.
func awaitNode(ctx context.Context, p plane, name string, limit time.Duration, done func(*wire.NodeView) bool) (*wire.NodeView, error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	const first, most = 250 * time.Millisecond, 2 * time.Second
	var last *wire.NodeView
	for pause := first; ; pause = min(pause*3/2, most) {
		v, err := p.node(within, name)
		if err == nil {
			if last = v; done(v) {
				return v, nil
			}
		}
		select {
		case <-time.After(pause):
			continue
		case <-within.Done():
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case last == nil:
			return nil, fmt.Errorf("%s could not be looked at within %v: %w", name, limit, err)
		case drainText(last) != "":
			return nil, fmt.Errorf("%s is not there within %v: %s; it goes on by itself", name, limit, drainText(last))
		}
		return nil, fmt.Errorf("%s is not there within %v: it is %s", name, limit, last.State)
	}
}
