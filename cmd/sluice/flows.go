package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api"
)

// flowFilters are the flags that pick flows.
var flowFilters = []string{"env", "service", "port", "proto", "client", "listener", "route", "backend", "id"}

func newFlowsCommand() *cobra.Command {
	var node adminClient
	var filter api.Filter
	var o listOptions
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the live flows of a node, and cut them",
		Long: `Flows lists the TCP connections and UDP sessions that a node serves at the
moment: those of mappings, and of routes that take connections whole. Of the
public listeners it lists the HTTP exchanges under way, upgraded ones included;
on mapped ports the connections that carry some. Flags pick those that are like
them in every respect. Flows that an older process of the node keeps since an
upgrade are listed with its number.`,
		Example: `  sluice flows --env 6hiflzwte2xnkroq
  sluice flows --client 203.0.113.0/24 --sort rate
  sluice flows cut --port 20022 --client 203.0.113.7
  sluice flows top`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check("age", "bytes", "rate"); err != nil {
				return err
			}
			done, err := node.open(cmd)
			if err != nil {
				return err
			}
			defer done()
			flows, err := readFlows(cmd, &node, filter, o.pause())
			if err != nil {
				return err
			}
			slices.SortStableFunc(flows, flowOrders[o.sort])
			return o.write(cmd.OutOrStdout(), len(flows), func(i int) any { return flows[i] }, func(w io.Writer, n int) {
				writeFlows(w, flows[:n], o.pause() > 0)
			})
		},
	}
	node.addBothFlags(cmd)
	addFilterFlags(cmd, &filter, flowFilters...)
	o.addFlags(cmd, "age", "age (the oldest first), bytes or rate (the most first)")
	cmd.AddCommand(newCutCommand(&node, &o.outputFlag), newTopCommand(&node))
	return cmd
}

func newCutCommand(node *adminClient, out *outputFlag) *cobra.Command {
	var filter api.Filter
	var all bool
	cmd := &cobra.Command{
		Use:   "cut",
		Short: "End the live flows that flags pick",
		Long: `Cut resets the connections of the flows that are like the flags in every
respect, and says how many those were. The access log has them end by "cut".
Clients may connect again: to keep them out, edit the mapping.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			switch picks := filter != (api.Filter{}); {
			case !picks && !all:
				return usageError{fmt.Errorf("say which flows to cut, by flags such as --env or --client, or --all")}
			case picks && all:
				return usageError{fmt.Errorf("--all goes with no other flag that picks flows; leave one of them out")}
			}
			done, err := node.open(cmd)
			if err != nil {
				return err
			}
			defer done()
			n, err := node.cut(cmd.Context(), filter, all)
			if err != nil {
				return err
			}
			if err := out.write(cmd.OutOrStdout(), n, func(w io.Writer) { fmt.Fprintf(w, "cut %d flows\n", n.Cut) }); err != nil {
				return err
			}
			if n.Unseen != "" {
				return fmt.Errorf("some flows could not be looked at: %s", n.Unseen)
			}
			return nil
		},
	}
	addFilterFlags(cmd, &filter, flowFilters...)
	cmd.Flags().BoolVar(&all, "all", false, "every flow of the node")
	return cmd
}

// listOptions are the flags of lists.
type listOptions struct {
	outputFlag
	sort     string
	limit    int
	interval time.Duration
}

func (o *listOptions) addFlags(cmd *cobra.Command, sort, orders string) {
	o.outputFlag.add(cmd)
	cmd.Flags().StringVar(&o.sort, "sort", sort, "order: "+orders)
	cmd.Flags().IntVarP(&o.limit, "limit", "n", 0, "show so many; 0: all")
	cmd.Flags().DurationVar(&o.interval, "interval", time.Second, "between the two readings that a rate takes")
}

func (o *listOptions) check(orders ...string) error {
	if err := o.outputFlag.check(); err != nil {
		return err
	}
	switch {
	case !slices.Contains(orders, o.sort):
		return usageError{fmt.Errorf("--sort: %q is not known; write one of %s", o.sort, strings.Join(orders, ", "))}
	case o.limit < 0:
		return usageError{fmt.Errorf("--limit: must be 0 (all) or more")}
	case o.interval <= 0:
		return usageError{fmt.Errorf("--interval: must be more than nothing, such as 1s")}
	}
	return nil
}

// pause returns how long to wait for a second reading, 0 for not to take one.
func (o *listOptions) pause() time.Duration {
	if o.sort == "rate" {
		return o.interval
	}
	return 0
}

// write writes the first of n items, as one of JSON lines or as a table.
func (o *listOptions) write(w io.Writer, n int, item func(i int) any, table func(w io.Writer, n int)) error {
	if o.limit > 0 {
		n = min(n, o.limit)
	}
	return o.list(w, n, item, func(w io.Writer) { table(w, n) })
}

// measuredFlow is a flow and what it moves per second at the moment, where two
// readings told.
type measuredFlow struct {
	api.Flow
	UpRate   float64 `json:"up_per_second,omitempty"`
	DownRate float64 `json:"down_per_second,omitempty"`
}

func (f measuredFlow) rate() float64 { return f.UpRate + f.DownRate }

// readFlows reads the flows, twice where there is a pause to come in between.
func readFlows(cmd *cobra.Command, node *adminClient, filter api.Filter, pause time.Duration) ([]measuredFlow, error) {
	ctx := cmd.Context()
	var before []api.Flow
	var err error
	if pause > 0 {
		if before, _, err = node.flows(ctx, filter); err != nil {
			return nil, err
		}
		if err := wait(ctx, pause); err != nil {
			return nil, err
		}
	}
	now, unseen, err := node.flows(ctx, filter)
	if err != nil {
		return nil, err
	}
	if unseen != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "not shown: %s\n", unseen)
	}
	return measure(before, now, pause > 0), nil
}

// measure works out what flows moved per second since an earlier reading. A flow
// that is not in it began since.
func measure(before, now []api.Flow, rates bool) []measuredFlow {
	earlier := make(map[uint64]api.Flow, len(before))
	for _, f := range before {
		earlier[f.ID] = f
	}
	all := make([]measuredFlow, len(now))
	for i, f := range now {
		all[i].Flow = f
		was := earlier[f.ID]
		if seconds := f.Age - was.Age; rates && seconds > 0 {
			all[i].UpRate = float64(f.Up-was.Up) / seconds
			all[i].DownRate = float64(f.Down-was.Down) / seconds
		}
	}
	return all
}

var flowOrders = map[string]func(a, b measuredFlow) int{
	"age":   func(a, b measuredFlow) int { return a.Since.Compare(b.Since) },
	"bytes": func(a, b measuredFlow) int { return cmp.Compare(b.Up+b.Down, a.Up+a.Down) },
	"rate":  func(a, b measuredFlow) int { return cmp.Compare(b.rate(), a.rate()) },
}

func writeFlows(w io.Writer, flows []measuredFlow, rates bool) {
	columns := []string{"ID", "PROTO", "LISTENER", "CLIENT", "BACKEND", "ENV/SERVICE", "AGE", "UP", "DOWN"}
	if rates {
		columns = append(columns, "UP/S", "DOWN/S")
	}
	writeRow(w, columns...)
	for _, f := range flows {
		backend := f.Backend
		if f.HTTP {
			backend = "(http)"
		} else if f.Address != "" {
			backend += " " + f.Address
		}
		id := fmt.Sprint(f.ID)
		if f.Process != 0 {
			id += fmt.Sprintf(" (process %d)", f.Process)
		}
		row := []string{
			id, f.Proto, place(f.Flow), f.Client.String(), orDash(backend), owner(f.Env, f.Service),
			shortDuration(seconds(f.Age)), shortBytes(float64(f.Up)), shortBytes(float64(f.Down)),
		}
		if rates {
			row = append(row, shortBytes(f.UpRate), shortBytes(f.DownRate))
		}
		writeRow(w, row...)
	}
}

// place says where a flow came in: the listener, and the route if one took it.
func place(f api.Flow) string {
	if f.Route == "" {
		return f.Listener
	}
	return f.Listener + " " + f.Route
}

func owner(env, service string) string {
	if env == "" && service == "" {
		return "-"
	}
	return env + "/" + service
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// writeRow writes a row of a table, in characters that a terminal only shows.
func writeRow(w io.Writer, columns ...string) {
	for i, c := range columns {
		columns[i] = printable(c)
	}
	fmt.Fprintln(w, strings.Join(columns, "\t"))
}
