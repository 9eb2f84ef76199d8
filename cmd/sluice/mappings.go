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

func newMappingsCommand() *cobra.Command {
	var node adminClient
	var filter api.Filter
	var used bool
	var o listOptions
	cmd := &cobra.Command{
		Use:   "mappings",
		Short: "List the mappings that a node has in force, and what they move",
		Long: `Mappings lists the mappings that a node has in force, with their live flows and
what has happened on them since they were put, edits included, or since the
node was started. What live flows moved so far is counted. STATE is the node's
verdict in short, and how many targets are down where they are checked; -o json
has the verdict whole and every target. A value that was refused while nothing
was in force is no mapping: the keys below verdicts/ have it.`,
		Example: `  sluice mappings --env 6hiflzwte2xnkroq
  sluice mappings --sort rate -n 20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check("port", "flows", "bytes", "rate"); err != nil {
				return err
			}
			all, err := readMappings(cmd, &node, filter, o.pause())
			if err != nil {
				return err
			}
			if used {
				all = slices.DeleteFunc(all, func(m measuredMapping) bool { return m.Started+m.Refused == 0 && m.Live == 0 })
			}
			slices.SortStableFunc(all, mappingOrders[o.sort])
			return o.write(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer, n int) {
				writeMappings(w, all[:n], o.pause() > 0)
			})
		},
	}
	node.addAdminFlag(cmd)
	addFilterFlags(cmd, &filter, "env", "service", "port", "proto")
	cmd.Flags().BoolVar(&used, "used", false, "only those that anybody has used")
	o.addFlags(cmd, "port", "port, flows, bytes or rate (the most first)")
	return cmd
}

// measuredMapping is a mapping and what it moves per second at the moment, where
// two readings told.
type measuredMapping struct {
	api.Mapping
	UpRate   float64 `json:"up_per_second,omitempty"`
	DownRate float64 `json:"down_per_second,omitempty"`
}

// readMappings reads the mappings, twice where there is a pause to come in
// between.
func readMappings(cmd *cobra.Command, node *adminClient, filter api.Filter, pause time.Duration) ([]measuredMapping, error) {
	type key struct {
		proto string
		port  int
	}
	ctx := cmd.Context()
	earlier := map[key]api.Mapping{}
	began := time.Now()
	if pause > 0 {
		before, err := node.mappings(ctx, filter)
		if err != nil {
			return nil, err
		}
		for _, m := range before {
			earlier[key{m.Proto, m.Port}] = m
		}
		if err := wait(ctx, pause); err != nil {
			return nil, err
		}
	}
	now, err := node.mappings(ctx, filter)
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	all := make([]measuredMapping, len(now))
	for i, m := range now {
		all[i].Mapping = m
		// A mapping that was put meanwhile is not in the first reading, and one
		// that was deleted and put again counts anew.
		if was := earlier[key{m.Proto, m.Port}]; pause > 0 && m.Up >= was.Up && m.Down >= was.Down {
			all[i].UpRate = float64(m.Up-was.Up) / took
			all[i].DownRate = float64(m.Down-was.Down) / took
		}
	}
	return all, nil
}

var mappingOrders = map[string]func(a, b measuredMapping) int{
	"port": func(a, b measuredMapping) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
	},
	"flows": func(a, b measuredMapping) int { return cmp.Compare(b.Live, a.Live) },
	"bytes": func(a, b measuredMapping) int { return cmp.Compare(b.Up+b.Down, a.Up+a.Down) },
	"rate":  func(a, b measuredMapping) int { return cmp.Compare(b.UpRate+b.DownRate, a.UpRate+a.DownRate) },
}

func writeMappings(w io.Writer, all []measuredMapping, rates bool) {
	columns := []string{"MAPPING", "STATE", "BACKEND", "ENV/SERVICE", "FLOWS", "STARTED", "REFUSED", "UNREACHABLE", "UP", "DOWN"}
	if rates {
		columns = append(columns, "UP/S", "DOWN/S")
	}
	writeRow(w, columns...)
	for _, m := range all {
		backend := shortTargets(m.Backend, m.Targets)
		if m.HTTP != "" {
			backend = orDash(backend) + " http:" + shortTargets(m.HTTP, m.HTTPTargets)
		}
		row := []string{
			fmt.Sprintf("%s/%d", m.Proto, m.Port), shortState(m.Mapping), backend, owner(m.Env, m.Service), fmt.Sprint(m.Live),
			fmt.Sprint(m.Started), fmt.Sprint(m.Refused), fmt.Sprint(m.Unreachable), shortBytes(float64(m.Up)), shortBytes(float64(m.Down)),
		}
		if rates {
			row = append(row, shortBytes(m.UpRate), shortBytes(m.DownRate))
		}
		writeRow(w, row...)
	}
}

// shortTargets is the first target, and how many there are besides.
func shortTargets(first string, all []api.Target) string {
	if len(all) < 2 {
		return first
	}
	return fmt.Sprintf("%s +%d", first, len(all)-1)
}

// shortState is the verdict of a mapping in a word or two, and how its targets
// are.
func shortState(m api.Mapping) string {
	state := shortVerdict(m.Verdict)
	down, checked := 0, 0
	for _, t := range slices.Concat(m.Targets, m.HTTPTargets) {
		if t.Health != "" {
			checked++
		}
		if t.Health == "down" {
			down++
		}
	}
	if down == 0 {
		return state
	}
	return fmt.Sprintf("%s, %d of %d down", state, down, checked)
}

func shortVerdict(verdict string) string {
	kind, text, _ := strings.Cut(verdict, ": ")
	what, _, _ := strings.Cut(text, ":")
	switch {
	case strings.HasPrefix(kind, "applied@"):
		return "applied"
	case kind == "refused": // and the mapping is the last good one
		return "edit refused"
	case kind != "degraded":
		return orDash(kind)
	case what == "expired":
		return what
	}
	return "degraded: " + what
}
