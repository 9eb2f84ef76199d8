package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/keys"
)

// keyPath returns the file of the cluster key that a command is about.
func (f *certsFlags) keyPath() (string, error) {
	if f.keyFile != "" {
		return f.keyFile, nil
	}
	return f.clusterFlags.keyPath()
}

func (f *certsFlags) newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, rotate and list the keys of the cluster",
		Long: `The cluster key is a file of one or more keys, the same on all nodes: the first
key seals what nodes share of certificates, all of them open it. Nodes read the
file anew within seconds once it has changed.

To take another key: add it on one node, and copy the file to the others; then
use it, and copy the file again; then sluice certs reseal; then rm the old one,
and copy the file once more. What is served stays so all along.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	cmd.AddCommand(f.newKeyGenerate(), f.newKeyList(), f.newKeyAdd(), f.newKeyUse(), f.newKeyRemove())
	return cmd
}

func (f *certsFlags) newKeyGenerate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate [FILE]",
		Short: "Make a cluster key",
		Long: `Generate writes a new cluster key to FILE, for its owner alone, or prints it. It
replaces no file: a cluster that has a key takes another one by "key add".`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			k := seal.NewKey()
			if len(args) == 0 || args[0] == "-" {
				_, err := cmd.OutOrStdout().Write(seal.FormatFile([]seal.Key{k}))
				return err
			}
			err := seal.WriteFile(args[0], []seal.Key{k}, false)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("there is a file %s, which may be all that opens what the cluster has sealed: `sluice certs key add` takes another key", args[0])
			}
			if err != nil {
				return err
			}
			return f.told(cmd, k.ID(), fmt.Sprintf("made key %s in %s; the other nodes need a copy of it", k.ID(), args[0]))
		},
	}
}

// told answers with the ID of a key, or says in words what became of it.
func (f *certsFlags) told(cmd *cobra.Command, id, words string) error {
	return f.write(cmd.OutOrStdout(), map[string]string{"key": id}, func(w io.Writer) { fmt.Fprintln(w, words) })
}

// keyUse is a key of the ring, or one that has sealed something.
type keyUse struct {
	ID     string `json:"id"` // empty: what is not sealed
	Role   string `json:"role"`
	Values int    `json:"values"`
	// LackedBy are the live nodes that do not say that they have it.
	LackedBy []string `json:"lacked_by"`
}

func (f *certsFlags) newKeyList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the keys, how much each has sealed, and which nodes lack it",
		Args:  cobra.NoArgs,
		RunE: f.with(func(cmd *cobra.Command, _ []string, a *certsAccess) error {
			ring, err := f.ring()
			if err != nil {
				return err
			}
			use, err := a.shared.KeyUse(cmd.Context())
			if err != nil {
				return err
			}
			records, err := nodeRecords(cmd.Context(), a.keys.Client)
			if err != nil {
				return err
			}
			all := usesOf(ring, use)
			for i := range all {
				all[i].LackedBy = []string{} // never null in JSON
				if all[i].ID != "" {
					all[i].LackedBy = withoutKey(records, all[i].ID)
				}
			}
			return f.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "KEY", "ROLE", "VALUES", "LACKED BY")
				for _, k := range all {
					id := k.ID
					if id == "" {
						id = "(none)"
					}
					writeRow(w, id, k.Role, fmt.Sprint(k.Values), printable(cmp.Or(strings.Join(k.LackedBy, ", "), "-")))
				}
			})
		}),
	}
}

// usesOf returns the keys of the ring in their order, and then others that have
// sealed something.
func usesOf(ring *seal.Ring, use map[string]int) []keyUse {
	var all []keyUse
	for i, id := range ring.IDs() {
		role := "opens"
		if i == 0 {
			role = "seals"
		}
		all = append(all, keyUse{ID: id, Role: role, Values: use[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(use)) {
		switch {
		case id == "":
			all = append(all, keyUse{ID: id, Role: "not sealed", Values: use[id]})
		case !ring.Has(id):
			all = append(all, keyUse{ID: id, Role: "not in the file", Values: use[id]})
		}
	}
	return all
}

func (f *certsFlags) ring() (*seal.Ring, error) {
	path, err := f.keyPath()
	if err != nil {
		return nil, err
	}
	return seal.ReadFile(path)
}

// rewrite replaces the keys of the file.
func (f *certsFlags) rewrite(change func(keys []seal.Key) ([]seal.Key, error)) (path string, err error) {
	if err := f.check(); err != nil {
		return "", err
	}
	if path, err = f.keyPath(); err != nil {
		return "", err
	}
	ring, err := seal.ReadFile(path)
	if err != nil {
		return "", err
	}
	keys, err := change(ring.Keys())
	if err != nil {
		return "", usageError{err}
	}
	return path, seal.WriteFile(path, keys, true)
}

func (f *certsFlags) newKeyAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add",
		Short: "Add a new key to the file, that does not seal yet",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k := seal.NewKey()
			path, err := f.rewrite(func(keys []seal.Key) ([]seal.Key, error) { return append(keys, k), nil })
			if err != nil {
				return err
			}
			return f.told(cmd, k.ID(), fmt.Sprintf("added key %s to %s; copy the file to the other nodes, and then run `sluice certs key use %s`", k.ID(), path, k.ID()))
		},
	}
}

// placeOf returns where in keys the one with an ID is.
func placeOf(keys []seal.Key, id string) (int, error) {
	i := slices.IndexFunc(keys, func(k seal.Key) bool { return k.ID() == id })
	if i < 0 {
		return 0, fmt.Errorf("there is no key %q in the file; `sluice certs key ls` lists them", id)
	}
	return i, nil
}

func (f *certsFlags) newKeyUse() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "use ID",
		Short: "Have a key of the file seal from now on",
		Long: `Use makes a key the first of the file. It refuses, unless --force is given, while
a live node has not said that it has the key: that one could not open what the key
seals. A node says so within seconds of getting the file.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			use := func(keys []seal.Key) ([]seal.Key, error) {
				i, err := placeOf(keys, args[0])
				if err != nil {
					return nil, err
				}
				k := keys[i]
				return slices.Insert(slices.Delete(keys, i, i+1), 0, k), nil
			}
			if !force {
				if err := f.allHave(cmd, args[0]); err != nil {
					return err
				}
			}
			path, err := f.rewrite(use)
			if err != nil {
				return err
			}
			return f.told(cmd, args[0], fmt.Sprintf("key %s seals from now on by %s; copy the file to the other nodes, and then run `sluice certs reseal`", args[0], path))
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "without asking which nodes have the key")
	return cmd
}

// allHave returns an error unless the file has a key and all live nodes do.
func (f *certsFlags) allHave(cmd *cobra.Command, id string) error {
	path, err := f.keyPath()
	if err != nil {
		return err
	}
	ring, err := seal.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := placeOf(ring.Keys(), id); err != nil {
		return usageError{err}
	}
	ask := func(cmd *cobra.Command, _ []string, store *keys.Store) error {
		return awaitKey(cmd.Context(), store.Client, id, path)
	}
	return f.withStore(ask)(cmd, nil)
}

func (f *certsFlags) newKeyRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm ID",
		Short: "Remove a key from the file, that has sealed nothing which is in etcd",
		Long: `Rm removes a key that is not the first. It refuses where something in etcd is
sealed with it, unless --force is given: nobody could open that any more. Nodes
that were down since it was resealed have it so on their disk.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			use, err := a.shared.KeyUse(cmd.Context())
			if err != nil {
				return err
			}
			if n := use[args[0]]; n > 0 && !force {
				return fmt.Errorf("%s in etcd sealed with key %s: run `sluice certs reseal` first", countedAre(n, "value"), args[0])
			}
			path, err := f.rewrite(func(keys []seal.Key) ([]seal.Key, error) {
				i, err := placeOf(keys, args[0])
				if err == nil && i == 0 {
					err = fmt.Errorf("key %s seals: have another one do so before, by `sluice certs key use`", args[0])
				}
				if err != nil {
					return nil, err
				}
				return slices.Delete(keys, i, i+1), nil
			})
			if err != nil {
				return err
			}
			return f.told(cmd, args[0], fmt.Sprintf("removed key %s from %s; copy the file to the other nodes", args[0], path))
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "although something is sealed with it")
	return cmd
}

func countedAre(n int, what string) string {
	if n == 1 {
		return "1 " + what + " is"
	}
	return counted(n, what) + " are"
}

func (f *certsFlags) newReseal() *cobra.Command {
	return &cobra.Command{
		Use:   "reseal",
		Short: "Seal everything anew with the first key of the cluster",
		Long: `Reseal goes through what nodes share in etcd, and seals anew what another key
than the first one of the file has sealed. Nodes may be at work meanwhile. It can
be called off and run again.`,
		Args: cobra.NoArgs,
		RunE: f.with(func(cmd *cobra.Command, _ []string, a *certsAccess) error {
			got, err := a.shared.Reseal(cmd.Context())
			if err != nil {
				return fmt.Errorf("sealed %s anew, and then: %w; what is left is done by running it again", counted(got.Done, "value"), err)
			}
			result := struct {
				Done   int      `json:"resealed"`
				Before int      `json:"before"`
				Failed []string `json:"failed"`
			}{got.Done, got.Before, []string{}}
			for _, err := range got.Failed {
				result.Failed = append(result.Failed, err.Error())
			}
			err = f.write(cmd.OutOrStdout(), result, func(w io.Writer) {
				fmt.Fprintf(w, "sealed %s anew; %d had the seal of the first key\n", counted(got.Done, "value"), got.Before)
			})
			if len(got.Failed) > 0 {
				err = errors.Join(err, fmt.Errorf("%s in etcd that cannot be opened: %w", countedAre(len(got.Failed), "value"), errors.Join(got.Failed...)))
			}
			return err
		}),
	}
}
