package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// keyKind is a kind of keys and the command for it.
type keyKind struct {
	command, folder string
	name            string // what stands for a name in usage texts
	what            string
	example         string // of put's arguments
}

var keyKinds = []keyKind{
	{"map", "ports/", "PROTO/PORT", "mappings of ports", `tcp/20022 10.0.3.17:22`},
	{"route", "routes/", "NAME", "routes", `jupyter '{"host": "*.jupyter.x-gpu.com", "backend": "10.0.3.17:8888"}'`},
	{"domain", "domains/", "NAME", "domains, names with a certificate", `'*.ssh.x-gpu.com' '{}'`},
	{"name", "names/", "NAME", "names kept true in DNS", `edge.x-gpu.com '{"zone": "x-gpu.com", "ttl": 60}'`},
	{"pool", "pools/", "SERVICE", "pools of ports", `ssh '{"ports": "20000-20499", "backend_port": 22}'`},
}

func newKeyCommands() []*cobra.Command {
	all := make([]*cobra.Command, len(keyKinds))
	for i, k := range keyKinds {
		var f clusterFlags
		cmd := &cobra.Command{
			Use:   k.command,
			Short: "Put, read and remove " + k.what,
			Long: "These commands do what etcdctl does with the keys below " + k.folder + ", but check a value before\n" +
				"they write it, and wait for what the nodes make of it.",
			Args: cobra.ArbitraryArgs,
			RunE: wantsCommand,
		}
		f.addBoth(cmd)
		cmd.AddCommand(k.newPut(&f), k.newGet(&f), k.newList(&f), k.newRemove(&f))
		all[i] = cmd
	}
	return all
}

// key returns the key that a name stands for, which may be a whole key, as in
// etcd or below the prefix.
func (k keyKind) key(f *clusterFlags, name string) (string, error) {
	key := k.loose(f, name)
	if _, err := router.ParseKey(key); err != nil {
		return "", usageError{fmt.Errorf("%q is not %s: %w", name, k.name, err)}
	}
	return key, nil
}

// loose is key for keys that are there, whatever their form.
func (k keyKind) loose(f *clusterFlags, name string) string {
	return k.folder + strings.TrimPrefix(f.below(name), k.folder)
}

// changeFlags say how a change is made.
type changeFlags struct {
	*clusterFlags
	dryRun bool
	wait   time.Duration
	// lenient leaves out what nodes would refuse, rather than all.
	lenient bool
	// unknown are keys whose values nobody has, and left those that were left out
	// before.
	unknown []string
	left    []control.Finding
}

func (f *changeFlags) check() error {
	if f.wait < 0 {
		return usageError{fmt.Errorf("--wait: must be 0 (not at all) or more")}
	}
	return f.clusterFlags.check()
}

func (f *changeFlags) withPlane(run func(cmd *cobra.Command, args []string, p plane) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		return f.clusterFlags.withPlane(run)(cmd, args)
	}
}

// withStore is withPlane for commands that work with etcd alone.
func (f *changeFlags) withStore(run func(cmd *cobra.Command, args []string, store *keys.Store) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		return f.clusterFlags.withStore(run)(cmd, args)
	}
}

func (f *changeFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "check, and show what would change, but write nothing")
	cmd.Flags().DurationVar(&f.wait, "wait", 10*time.Second, "how long to wait for the nodes' verdicts; 0: not at all")
}

func (k keyKind) newPut(cf *clusterFlags) *cobra.Command {
	f := changeFlags{clusterFlags: cf}
	cmd := &cobra.Command{
		Use:   "put " + k.name + " VALUE",
		Short: "Check a value, write it, and wait for the verdicts on it",
		Long: `Put checks VALUE against the keys that there are, writes it unless a node would
refuse it, and waits until every live node has said what it made of it. VALUE
is as in etcd; - reads it from standard input, @FILE from a file. It exits with 1 if the
value is or would be refused somewhere, if a node has not answered in time, and
if none is live.`,
		Example: "  sluice " + k.command + " put " + k.example,
		Args:    cobra.ExactArgs(2),

		ValidArgsFunction: cf.completeKeys(k.folder, 1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			key, err := k.key(cf, args[0])
			if err != nil {
				return err
			}
			value, err := readValue(args[1], cmd.InOrStdin())
			if err != nil {
				return err
			}
			return f.change(cmd, p, []keys.Wish{{Key: key, Value: value}}, nil)
		}),
	}
	f.add(cmd)
	return cmd
}

// readValue returns the value that an argument stands for.
func readValue(arg string, stdin io.Reader) (string, error) {
	var text []byte
	var err error
	switch {
	case arg == "-":
		text, err = io.ReadAll(io.LimitReader(stdin, 2<<20)) // more than etcd takes
	case strings.HasPrefix(arg, "@"):
		text, err = os.ReadFile(arg[1:])
	default:
		return arg, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the value: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func (k keyKind) newRemove(cf *clusterFlags) *cobra.Command {
	f := changeFlags{clusterFlags: cf}
	var yes bool
	cmd := &cobra.Command{
		Use:     "rm " + k.name + "...",
		Aliases: []string{"del"},
		Short:   "Remove keys, and wait until the nodes have",
		Long: `Rm removes keys, and waits until every live node has. It takes --yes to remove
many, which nodes would otherwise hold back (shrink_guard in sluice.yaml), and
a pool of which environments hold ports.`,
		Args: cobra.MinimumNArgs(1),

		ValidArgsFunction: cf.completeKeys(k.folder, 0),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			wishes := make([]keys.Wish, len(args))
			for i, name := range args {
				wishes[i] = keys.Wish{Key: k.loose(cf, name), Delete: true}
			}
			return f.change(cmd, p, dedupe(wishes), func(plan *keys.Plan) error {
				if len(plan.Missing) == 1 { // maybe for its form
					if _, err := k.key(cf, plan.Missing[0]); err != nil {
						return err
					}
				}
				if n := len(plan.Missing); n > 0 {
					return fmt.Errorf("%d of %d keys are not there (%s); nothing was removed", n, n+len(plan.Changes), shortList(plan.Missing))
				}
				if len(plan.Changes) >= manyRemovals && !yes && !f.dryRun {
					return usageError{fmt.Errorf("this removes %d keys; add --yes if that is meant", len(plan.Changes))}
				}
				held, err := k.held(cmd.Context(), p, plan)
				if err != nil {
					return err
				}
				if len(held) > 0 && !yes && !f.dryRun {
					return usageError{fmt.Errorf("%s; add --yes if that is meant", strings.Join(held, "; "))}
				}
				for _, text := range held {
					fmt.Fprintln(cmd.ErrOrStderr(), printable(text))
				}
				plan.Meant = yes
				return nil
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do remove many, or a pool of which ports are held")
	return cmd
}

// held says which ports environments hold of pools that a plan removes.
func (k keyKind) held(ctx context.Context, p plane, plan *keys.Plan) (texts []string, err error) {
	if k.folder != "pools/" {
		return nil, nil
	}
	for _, c := range plan.Changes {
		service := strings.TrimPrefix(c.Key, k.folder)
		ports, err := p.ports(ctx, service)
		if err != nil {
			return nil, err
		}
		n, of := 0, map[string]bool{}
		for _, port := range ports {
			if port.State == portpool.Allocated {
				n++
				of[port.Env] = true
			}
		}
		if n > 0 {
			texts = append(texts, fmt.Sprintf("%s hold %s of the pool %s: they keep them, get no others, and sluice port audit calls them stranded until they are given back or there is a pool again",
				counted(len(of), "environment"), counted(n, "port"), service))
		}
	}
	return texts, nil
}

// shortList names the first few.
func shortList(names []string) string {
	const most = 10
	if len(names) > most {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
	}
	return printable(strings.Join(names, ", "))
}

// manyRemovals is from how many removals on somebody has to say that they are
// meant: from as many on nodes look at them, unless told otherwise.
const manyRemovals = 20

func dedupe(wishes []keys.Wish) []keys.Wish {
	slices.SortStableFunc(wishes, func(a, b keys.Wish) int { return strings.Compare(a.Key, b.Key) })
	return slices.CompactFunc(wishes, func(a, b keys.Wish) bool { return a.Key == b.Key })
}

// change makes wishes true, unless object has something against what they come
// to, and writes what happened.
func (f *changeFlags) change(cmd *cobra.Command, p plane, wishes []keys.Wish, object func(*keys.Plan) error) error {
	plan, err := p.plan(cmd.Context(), wishes)
	if err != nil {
		return err
	}
	left := f.left
	if f.lenient && len(plan.Findings) > 0 {
		left = append(left, plan.Findings...)
		wishes = slices.DeleteFunc(wishes, func(w keys.Wish) bool {
			return !w.Delete && slices.ContainsFunc(left, func(f control.Finding) bool { return f.Key == w.Key })
		})
		if plan, err = p.plan(cmd.Context(), wishes); err != nil {
			return err
		}
	}
	if object != nil {
		if err := object(plan); err != nil {
			return err
		}
	}
	r := result{Plan: plan, DryRun: f.dryRun, Left: left, Unknown: f.unknown}
	if len(plan.Findings) == 0 && !f.dryRun {
		r.Made, err = p.make(cmd.Context(), plan, f.wait)
	}
	if shown := f.write(cmd.OutOrStdout(), r, r.text); shown != nil {
		return shown
	}
	if err != nil {
		return err
	}
	return r.failure()
}

// result is what became of a change.
type result struct {
	*keys.Plan
	// Left is what nodes would refuse and was therefore left out.
	Left []control.Finding `json:"left_out,omitempty"`
	// Unknown are keys that were left as they are since nobody has their values.
	Unknown []string `json:"unknown,omitempty"`
	DryRun  bool     `json:"dry_run,omitempty"`
	keys.Made
}

// failure says what is wrong with what was wanted, or with what came of it.
func (r *result) failure() error {
	if n := len(r.Findings); n > 0 {
		return fmt.Errorf("nothing was written: nodes would refuse %s", counted(n, "key"))
	}
	refused, held := 0, 0
	for _, a := range r.Answers {
		switch a.Verdict.State {
		case control.Refused:
			refused++
		case control.Held:
			held++
		}
	}
	switch {
	case held > 0:
		return fmt.Errorf("deleted, and held back in %s: `sluice confirm` has nodes apply it", counted(held, "verdict"))
	case refused > 0 && r.Done > 0:
		return fmt.Errorf("written, and refused in %s", counted(refused, "verdict"))
	case refused > 0:
		return fmt.Errorf("there already, and refused in %s", counted(refused, "verdict"))
	case len(r.Left)+len(r.Unknown) > 0:
		return fmt.Errorf("%s left as it is; all else is as wanted", counted(len(r.Left)+len(r.Unknown), "key"))
	}
	return nil
}

// shownChanges is how many changes are written one by one where nobody has to
// judge them.
const shownChanges = 200

func (r *result) text(w io.Writer) {
	writeUnknown(w, r.Unknown)
	for _, l := range r.Left {
		fmt.Fprintf(w, "! %s\tleft as it is, since nodes would refuse: %s\n", printable(l.Key), printable(l.Why))
	}
	for _, finding := range r.Findings {
		fmt.Fprintf(w, "! %s\trefused: %s\n", printable(finding.Key), printable(finding.Why))
	}
	for i, c := range r.Changes {
		if i == shownChanges && len(r.Changes) > shownChanges+1 {
			fmt.Fprintf(w, "... and %d more\n", len(r.Changes)-i)
			break
		}
		fmt.Fprintln(w, changeText(c.Key, c.Before, c.After, false))
	}
	for i, a := range r.Answers {
		if i == shownChanges {
			fmt.Fprintf(w, "... and %d more\n", len(r.Answers)-i)
			break
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", printable(a.Node), printable(a.Key), printable(a.Verdict.Text))
	}
	switch {
	case len(r.Changes) == 0 && len(r.Left)+len(r.Unknown) > 0:
		fmt.Fprintln(w, "nothing else to change")
	case len(r.Changes) == 0 && r.Same == 0:
		fmt.Fprintln(w, "nothing to change")
	case len(r.Changes) == 0:
		fmt.Fprintf(w, "nothing to change: %s as wanted\n", counted(r.Same, "key"))
	case r.DryRun && len(r.Findings) == 0:
		fmt.Fprintf(w, "%s; nothing was written\n", counted(len(r.Changes), "change"))
	case r.Done > 0:
		fmt.Fprintf(w, "%s made, revision %d\n", counted(r.Done, "change"), r.Committed)
	}
}

func (k keyKind) newGet(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "get " + k.name,
		Short: "Show a key, and what each node made of it",
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: f.completeKeys(k.folder, 1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			key := k.loose(f, args[0])
			all, err := p.list(cmd.Context(), key)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(all, func(e keys.Entry) bool { return e.Key == key })
			if at < 0 {
				if _, err := k.key(f, args[0]); err != nil {
					return err
				}
				return absent(cmd.Context(), p, key)
			}
			return f.write(cmd.OutOrStdout(), all[at], func(w io.Writer) {
				fmt.Fprintf(w, "%s\n", printable(all[at].Value))
				for _, node := range sortedKeys(all[at].Verdicts) {
					fmt.Fprintf(w, "%s\t%s\n", printable(node), printable(all[at].Verdicts[node].Text))
				}
			})
		}),
	}
}

// absent says that there is no key, and where nodes serve what it led to all the
// same.
func absent(ctx context.Context, p plane, key string) error {
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	for _, t := range st.Troubles {
		if t.Key == key && t.Verdict.State == control.Held {
			return fmt.Errorf("%s is deleted, and %s say: %s", printable(key), strings.Join(t.Nodes, ", "), printable(t.Verdict.Text))
		}
	}
	return fmt.Errorf("there is no key %s", printable(key))
}

func (k keyKind) newList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List keys, those whose names begin with PREFIX, with the nodes' verdicts in short",
		Args:  cobra.MaximumNArgs(1),

		ValidArgsFunction: f.completeKeys(k.folder, 1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			folder := k.folder
			if len(args) == 1 {
				folder = k.loose(f, args[0])
			}
			all, err := p.list(cmd.Context(), folder)
			if err != nil {
				return err
			}
			return f.outputFlag.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "KEY", "REV", "STATE", "VALUE")
				for _, e := range all {
					writeRow(w, printable(e.Key), fmt.Sprint(e.Rev), shortVerdicts(e.Verdicts), oneLine(e.Value, 120))
				}
			})
		}),
	}
}

// shortVerdicts says how many nodes say what.
func shortVerdicts(all map[string]control.Verdict) string {
	count := map[string]int{}
	for _, v := range all {
		count[keyState(v)]++
	}
	states := sortedKeys(count)
	if len(states) == 1 {
		return states[0]
	}
	for i, s := range states {
		states[i] = fmt.Sprintf("%d %s", count[s], s)
	}
	return orDash(strings.Join(states, ", "))
}

func keyState(v control.Verdict) string {
	if v.State == control.Refused {
		return v.State
	}
	return shortVerdict(v.Text)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
