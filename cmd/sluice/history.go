package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
)

func newHistoryCommand() *cobra.Command {
	var f clusterFlags
	var from int64
	var since time.Duration
	var limit int
	cmd := &cobra.Command{
		Use:   "history [KEY-PREFIX]",
		Short: "Show who changed which key when, and from what to what",
		Long: `History shows the changes that nodes have recorded, the newest last: those of
keys that begin with KEY-PREFIX, such as ports/tcp/20022 or routes/. BY is who
ran a command of this program; what etcdctl and other programs do is nobody's as
far as etcd tells. TIME is when a node recorded a change, within a second or so;
etcd does not say when it was made, and what changed while no node was there has
the time of their return. How long changes are kept is said by history in sluice.yaml.`,
		Example: `  sluice history ports/tcp/20022
  sluice history --since 2h -n 0 -o json`,
		Args: cobra.MaximumNArgs(1),

		ValidArgsFunction: f.completeKeys("", 1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			if limit < 0 || since < 0 {
				return usageError{fmt.Errorf("--limit and --since: must be 0 (all) or more")}
			}
			prefix, err := f.folder(strings.Join(args, ""))
			if err != nil {
				return err
			}
			log, err := p.changes(cmd.Context(), from, prefix)
			if err != nil {
				return err
			}
			changes := slices.DeleteFunc(log.Changes, func(c history.Change) bool {
				return c.Key == control.MeantKey || since > 0 && time.Since(c.Time) > since
			})
			if limit > 0 && len(changes) > limit {
				changes = changes[len(changes)-limit:]
			}
			return f.list(cmd.OutOrStdout(), len(changes), func(i int) any { return changes[i] }, func(w io.Writer) {
				writeHistory(w, changes)
				if log.Gap {
					fmt.Fprintf(w, "! etcd has forgotten changes after revision %d before any node had recorded them\n", log.To)
				}
			})
		}),
	}
	f.addBoth(cmd)
	cmd.Flags().Int64Var(&from, "after", 0, "only changes after this revision")
	cmd.Flags().DurationVar(&since, "since", 0, "only changes of so long ago, such as 2h")
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "show the last so many; 0: all")
	return cmd
}

func writeHistory(w io.Writer, changes []history.Change) {
	writeRow(w, "REV", "TIME", "BY", "CHANGE")
	for _, c := range changes {
		writeRow(w, fmt.Sprint(c.Rev), c.Time.Local().Format(time.DateTime), orDash(printable(c.By)), changeText(c.Key, c.Before, c.After, c.Omitted))
	}
}

// changeText writes a change on one line.
func changeText(key string, before, after *string, omitted bool) string {
	const most = 160
	key = printable(key)
	switch {
	case omitted:
		return "~ " + key + " (its value was too large to be kept)"
	case before == nil && after == nil:
		return "- " + key
	case before == nil:
		return "+ " + key + " " + oneLine(*after, most)
	case after == nil:
		return "- " + key + " " + oneLine(*before, most)
	}
	return "~ " + key + " " + oneLine(*before, most) + "  ->  " + oneLine(*after, most)
}

func newDiffCommand() *cobra.Command {
	var f clusterFlags
	var prefix string
	cmd := &cobra.Command{
		Use:   "diff REV [REV]",
		Short: "Show how the keys differ between a revision and another, or now",
		Args:  cobra.RangeArgs(1, 2),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			prefix, err := f.folder(prefix)
			if err != nil {
				return err
			}
			first, err := parseRev(args[0])
			if err != nil {
				return err
			}
			var second int64 // now
			if len(args) == 2 {
				if second, err = parseRev(args[1]); err != nil {
					return err
				}
			}
			changes, unknown, err := p.diff(cmd.Context(), first, second, prefix)
			if err != nil {
				return err
			}
			return f.list(cmd.OutOrStdout(), len(changes), func(i int) any { return changes[i] }, func(w io.Writer) {
				for _, c := range changes {
					fmt.Fprintln(w, changeText(c.Key, c.Before, c.After, false))
				}
				if len(changes) == 0 {
					fmt.Fprintln(w, "no difference")
				}
				writeUnknown(w, unknown)
			})
		}),
	}
	f.addBoth(cmd)
	cmd.Flags().StringVar(&prefix, "under", "", "only keys that begin so, such as routes/")
	return cmd
}

// writeUnknown says of which keys the history does not have the value.
func writeUnknown(w io.Writer, unknown []string) {
	for _, key := range unknown {
		fmt.Fprintf(w, "? %s: its value was too large for the history\n", printable(key))
	}
}

func parseRev(text string) (rev int64, err error) {
	if _, err := fmt.Sscanf(text, "%d", &rev); err != nil || rev <= 0 || fmt.Sprint(rev) != text {
		return 0, usageError{fmt.Errorf("%q is not a revision; sluice history shows them", text)}
	}
	return rev, nil
}

func newRollbackCommand() *cobra.Command {
	var cf clusterFlags
	f := changeFlags{clusterFlags: &cf, lenient: true}
	var to int64
	var prefix string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rollback --to REV",
		Short: "Make the keys again what they were at a revision",
		Long: `Rollback works out what the keys were right after the revision REV, and makes
that a new change: revisions only ever go up, and a rollback can be rolled back.
Whether etcd still remembers REV does not matter as long as the history does. To
remove keys that have come since takes --yes. What belongs to environments (sluice
env), tokens, and which nodes are drained stay as they are. A value that nodes would
refuse is left out, as is one that was too large for the history (over 32 KB in a
transaction of a megabyte): its key stays as it is, and the exit code is 1.`,
		Example: `  sluice rollback --to 4711 --dry-run
  sluice rollback --to 4711 --under routes/ --yes`,
		Args: cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			prefix, err := cf.folder(prefix)
			if err != nil {
				return err
			}
			b, err := p.back(cmd.Context(), to, prefix)
			if err != nil {
				return err
			}
			f.unknown, f.left = b.unknown, b.left
			return f.change(cmd, p, b.wishes, removalNeeds(yes, f.dryRun))
		}),
	}
	cf.addBoth(cmd)
	f.add(cmd)
	cmd.Flags().Int64Var(&to, "to", 0, "the revision to go back to")
	cmd.Flags().StringVar(&prefix, "under", "", "only keys that begin so, such as routes/")
	cmd.Flags().BoolVar(&yes, "yes", false, "do remove keys")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// removalNeeds objects to plans that remove keys without yes.
func removalNeeds(yes, dryRun bool) func(*keys.Plan) error {
	return func(p *keys.Plan) error {
		removed := 0
		for _, c := range p.Changes {
			if c.After == nil {
				removed++
			}
		}
		if removed > 0 && !yes && !dryRun {
			return usageError{fmt.Errorf("this removes %s: look with --dry-run, and then add --yes", counted(removed, "key"))}
		}
		p.Meant = yes
		return nil
	}
}
