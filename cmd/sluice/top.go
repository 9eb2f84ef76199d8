package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api"
)

// groupings are what top adds up flows by.
var groupings = map[string]func(measuredFlow) string{
	"mapping": func(f measuredFlow) string { return place(f.Flow) },
	"env":     func(f measuredFlow) string { return orDash(f.Env) },
	"service": func(f measuredFlow) string { return orDash(f.Service) },
	"client":  func(f measuredFlow) string { return f.Client.Addr().String() },
}

func newTopCommand(node *adminClient) *cobra.Command {
	var filter api.Filter
	var by []string
	var o listOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show who moves most bytes per second",
		Long: `Top reads the live flows twice and shows those that moved most in between, one
by one and added up by mapping, environment, service or client. What ended
meanwhile is not seen.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.sort = "rate"
			if err := o.check("rate"); err != nil {
				return err
			}
			for _, name := range by {
				if name != "flow" && groupings[name] == nil {
					return usageError{fmt.Errorf("--by: %q is not known; write flow, mapping, env, service or client", name)}
				}
			}
			done, err := node.open(cmd)
			if err != nil {
				return err
			}
			defer done()
			flows, err := readFlows(cmd, node, filter, o.interval)
			if err != nil {
				return err
			}
			return writeTop(cmd.OutOrStdout(), flows, by, o)
		},
	}
	addFilterFlags(cmd, &filter, flowFilters...)
	cmd.Flags().StringSliceVar(&by, "by", []string{"flow", "mapping", "env", "client"}, "what to add up by: flow, mapping, env, service, client")
	o.outputFlag.add(cmd)
	cmd.Flags().IntVarP(&o.limit, "limit", "n", 5, "show so many of each; 0: all")
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "between the two readings")
	return cmd
}

// group is the flows that have something in common.
type group struct {
	By       string  `json:"by"`
	Name     string  `json:"name"`
	Flows    int     `json:"flows"`
	UpRate   float64 `json:"up_per_second"`
	DownRate float64 `json:"down_per_second"`
}

// groupBy adds flows up, those that move most first.
func groupBy(by string, flows []measuredFlow) []group {
	sums := map[string]*group{}
	for _, f := range flows {
		name := groupings[by](f)
		g := sums[name]
		if g == nil {
			g = &group{By: by, Name: name}
			sums[name] = g
		}
		g.Flows++
		g.UpRate += f.UpRate
		g.DownRate += f.DownRate
	}
	return slices.SortedFunc(func(yield func(group) bool) {
		for g := range maps.Values(sums) {
			if !yield(*g) {
				return
			}
		}
	}, func(a, b group) int {
		return cmp.Or(cmp.Compare(b.UpRate+b.DownRate, a.UpRate+a.DownRate), cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.Name, b.Name))
	})
}

func writeTop(w io.Writer, flows []measuredFlow, by []string, o listOptions) error {
	slices.SortStableFunc(flows, flowOrders["rate"])
	for i, name := range by {
		if i > 0 && !o.json() {
			fmt.Fprintln(w)
		}
		var err error
		if name == "flow" {
			err = o.write(w, len(flows), func(i int) any { return flows[i] }, func(w io.Writer, n int) { writeFlows(w, flows[:n], true) })
		} else {
			err = writeGroups(w, name, groupBy(name, flows), o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeGroups(w io.Writer, by string, groups []group, o listOptions) error {
	return o.write(w, len(groups), func(i int) any { return groups[i] }, func(w io.Writer, n int) {
		writeRow(w, strings.ToUpper(by), "FLOWS", "UP/S", "DOWN/S")
		for _, g := range groups[:n] {
			writeRow(w, g.Name, fmt.Sprint(g.Flows), shortBytes(g.UpRate), shortBytes(g.DownRate))
		}
	})
}
