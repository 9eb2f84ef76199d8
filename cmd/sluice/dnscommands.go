package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/names"
	"github.com/remotegpu/sluice/router"
)

func newDNSCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "See what becomes of names in DNS, and have it done",
		Long: `Names under names/ (sluice name) are kept true by the node that leads. These
commands ask that node; they need no access to a DNS provider.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	f.add(cmd)
	cmd.AddCommand(newDNSList(&f), newDNSPlan(&f), newDNSApply(&f))
	return cmd
}

func newDNSList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List names, what they are published with, and since when",
		Args:  cobra.MaximumNArgs(1),

		ValidArgsFunction: f.completeKeys("names/", 1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			states, _, err := readNames(cmd.Context(), store, strings.Join(args, ""))
			if err != nil {
				return err
			}
			if err := someoneKeepsNames(cmd.Context(), store); err != nil && len(states) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "! %v\n", err)
			}
			return f.list(cmd.OutOrStdout(), len(states), func(i int) any { return states[i] }, func(w io.Writer) {
				writeRow(w, "NAME", "STATE", "PROVIDER", "ZONE", "PUBLISHED", "CHANGED", "WHY")
				for _, s := range states {
					changed := "-"
					if at, err := time.Parse(time.RFC3339, s.Changed); err == nil {
						changed = ago(at)
					}
					writeRow(w, printable(s.Name), nameState(s), orDash(printable(s.Provider)), orDash(printable(s.Zone)),
						orDash(oneLine(strings.Join(s.Published, " "), 60)), changed, orDash(oneLine(cmp.Or(s.Trouble, s.Held), 160)))
				}
			})
		}),
	}
}

// nameState says in a word how a name fares.
func nameState(s names.State) string {
	switch {
	case s.Leader == "":
		return "unknown"
	case s.Trouble != "":
		return "degraded"
	case s.Held != "":
		return "held"
	}
	return "published"
}

// readNames returns how the names that begin with prefix fare, and the revision
// that they were read at. Of one that no leader has looked at there is the name.
func readNames(ctx context.Context, store *keys.Store, prefix string) ([]names.State, int64, error) {
	wanted, err := store.List(ctx, names.Key(prefix))
	if err != nil {
		return nil, 0, err
	}
	kvs, rev, err := store.Client.ReadUnder(ctx, names.StateFolder, 0)
	if err != nil {
		return nil, 0, err
	}
	known := map[string]names.State{}
	for _, kv := range kvs {
		if s, err := names.ParseState(kv.Value); err == nil {
			known[strings.TrimPrefix(kv.Key, names.StateFolder)] = s
		}
	}
	all := []names.State{}
	for _, e := range wanted {
		name := strings.TrimPrefix(e.Key, names.Key(""))
		s, ok := known[name]
		if !ok {
			s = names.State{Name: name, Wanted: []string{}, Published: []string{}}
		}
		all = append(all, s)
	}
	return all, rev, nil
}

// someoneKeepsNames returns an error where nobody could answer what is asked of names.
func someoneKeepsNames(ctx context.Context, store *keys.Store) error {
	some, err := store.KeepsNames(ctx)
	if err == nil && !some {
		err = errors.New("no node leads names, since none that runs has a DNS provider; " +
			"add one under dns in the files of nodes (CONFIGURATION.md, \"DNS providers\"), and have `sluice upgrade` read them there")
	}
	return err
}

// asking is how the leader is asked.
type asking struct {
	*clusterFlags
	wait    time.Duration
	request names.Request
}

func (a *asking) addWait(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&a.wait, "wait", 30*time.Second, "how long to wait for the node that leads")
}

func newDNSPlan(f *clusterFlags) *cobra.Command {
	a := asking{clusterFlags: f}
	cmd := &cobra.Command{
		Use:   "plan [NAME...]",
		Short: "Have the records of names read now, and show what is to be done and what keeps it from being done",
		Long: `Plan has the node that leads read the records of the names, or of all of them, and
shows what it would change. Where nothing holds that back it is done by then. It
exits with 1 if a name is not as wanted.`,
		ValidArgsFunction: f.completeKeys("names/", 0),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			return a.ask(cmd, store, args)
		}),
	}
	a.addWait(cmd)
	return cmd
}

func newDNSApply(f *clusterFlags) *cobra.Command {
	a := asking{clusterFlags: f, request: names.Request{Apply: true}}
	cmd := &cobra.Command{
		Use:   "apply [NAME...]",
		Short: "Have names made as wanted now, also where dry_run or many changes in a row hold that back",
		Long: `Apply has the node that leads read the records of the names, or of all of them,
and make them as they are wanted, once: also those with dry_run, and without a
wait where they have changed often. With --adopt, names are taken over that have
records which this cluster did not make, or that another cluster kept: what is
there is replaced.`,
		Example: `  sluice dns apply edge.x-gpu.com
  sluice dns apply --adopt www.x-gpu.com`,
		ValidArgsFunction: f.completeKeys("names/", 0),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			if a.request.Adopt && len(args) == 0 {
				return usageError{errors.New("--adopt: name what is to be taken over; nothing is by itself")}
			}
			return a.ask(cmd, store, args)
		}),
	}
	cmd.Flags().BoolVar(&a.request.Adopt, "adopt", false, "take over names whose records this cluster did not make")
	a.addWait(cmd)
	return cmd
}

// ask puts a request for each name, waits for the answers, and shows them.
func (a *asking) ask(cmd *cobra.Command, store *keys.Store, args []string) error {
	states, rev, err := readNames(cmd.Context(), store, "")
	if err != nil {
		return err
	}
	var asked []string
	for _, arg := range args {
		name := strings.TrimPrefix(a.below(arg), names.Key(""))
		if !slices.ContainsFunc(states, func(s names.State) bool { return s.Name == name }) {
			if _, err := router.ParseDomainName(name); err != nil {
				return usageError{err}
			}
			return fmt.Errorf("there is no key %s; put one with `sluice name put %s '{}'`", printable(names.Key(name)), printable(name))
		}
		asked = append(asked, name)
	}
	if len(args) == 0 {
		for _, s := range states {
			asked = append(asked, s.Name)
		}
	}
	slices.Sort(asked)
	asked = slices.Compact(asked)
	if len(asked) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "there are no names; sluice name put makes one")
		return nil
	}
	if err := someoneKeepsNames(cmd.Context(), store); err != nil {
		return err
	}
	a.request.By = store.By
	answers, err := a.answers(cmd.Context(), store, asked, rev)
	if err != nil {
		return err
	}
	err = a.list(cmd.OutOrStdout(), len(answers), func(i int) any { return answers[i] }, func(w io.Writer) {
		for _, s := range answers {
			writeAnswer(w, s)
		}
	})
	if troubled := slices.DeleteFunc(answers, func(s names.State) bool { return s.Trouble == "" && s.Held == "" }); err == nil && len(troubled) > 0 {
		err = fmt.Errorf("%s not as wanted", counted(len(troubled), "name"))
	}
	return err
}

// answers asks and waits.
func (a *asking) answers(ctx context.Context, store *keys.Store, asked []string, rev int64) ([]names.State, error) {
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	put := map[string]int64{}
	for chunk := range slices.Chunk(asked, etcd.MaxEdits) {
		var writes []etcd.Write
		for _, name := range chunk {
			writes = append(writes, etcd.Write{Key: names.RequestFolder + name, Value: a.request.Text()})
		}
		at, _, err := store.Client.Transact(ctx, nil, writes)
		if err != nil {
			return nil, err
		}
		for _, name := range chunk {
			put[name] = at
		}
	}
	var answers []names.State
	err := store.Client.Follow(ctx, []string{names.StateFolder}, rev, func(changes []etcd.Change) (bool, error) {
		for _, c := range changes {
			s, err := names.ParseState(c.Value)
			if c.Deleted || err != nil || put[s.Name] == 0 || s.Answered < put[s.Name] {
				continue
			}
			delete(put, s.Name)
			answers = append(answers, s)
		}
		return len(put) == 0, nil
	})
	slices.SortFunc(answers, func(x, y names.State) int { return strings.Compare(x.Name, y.Name) })
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("no answer on %s within %v; leaders/names in etcd has the node that leads, and its log says what keeps it", shortList(sortedKeys(put)), a.wait)
	}
	return answers, err
}

// writeAnswer shows what became of a name.
func writeAnswer(w io.Writer, s names.State) {
	fmt.Fprintf(w, "%s\t%s\t%s\n", printable(s.Name), nameState(s), orDash(printable(strings.Join(s.Published, " "))))
	for _, of := range []struct {
		sign string
		data []string
	}{{"+", s.Add}, {"~", s.Update}, {"-", s.Remove}} {
		for _, data := range of.data {
			fmt.Fprintf(w, "  %s %s\t\t\n", of.sign, printable(data))
		}
	}
	for _, why := range append([]string{s.Trouble, s.Held}, s.Out...) {
		if why != "" && (why != s.Held || s.Held != s.Trouble) {
			fmt.Fprintf(w, "  ! %s\n", printable(why))
		}
	}
}
