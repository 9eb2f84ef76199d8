package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
)

func newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save all keys to a file, and bring them back",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	cmd.AddCommand(newSaveCommand(), newRestoreCommand())
	return cmd
}

func newSaveCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "save FILE|-",
		Short: "Write all keys as of one revision to a file",
		Long: `Save writes all keys below the prefix, as they are at one revision, but for what
nodes write for each other. FILE appears once it is whole, and ends with a
checksum. Its lines are JSON, for people to read and compare. Keys that are gone
from etcd and whose deletion nodes hold back are not in it, which is said.`,
		Args: cobra.ExactArgs(1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			s, err := history.TakeSnapshot(cmd.Context(), store.Client)
			if err != nil {
				return err
			}
			st, err := store.Status(cmd.Context())
			if err != nil {
				return err
			}
			held := heldKeys(st)
			if held > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "sluice: nodes serve %s more than are saved: their deletion is held back (sluice status)\n", counted(held, "key"))
			}
			if args[0] == "-" {
				return s.Write(cmd.OutOrStdout())
			}
			if err := saveWhole(args[0], func(w io.Writer) error { return errors.Join(s.Write(w), readAgain(w)) }); err != nil {
				return fmt.Errorf("save the snapshot: %w", err)
			}
			saved := struct {
				File string `json:"file"`
				Rev  int64  `json:"revision"`
				Keys int    `json:"keys"`
				Held int    `json:"held_back,omitempty"` // and not saved
			}{args[0], s.Rev, len(s.Keys), held}
			return f.write(cmd.OutOrStdout(), saved, func(w io.Writer) {
				fmt.Fprintf(w, "saved %s as of revision %d\n", counted(saved.Keys, "key"), saved.Rev)
			})
		}),
	}
	f.add(cmd)
	return cmd
}

// readAgain reads a snapshot that was written to a file: it is to be of use on the
// day that it is needed.
func readAgain(file io.Writer) error {
	f, ok := file.(io.ReadSeeker)
	if !ok {
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := history.ReadSnapshot(f); err != nil {
		return fmt.Errorf("what was written cannot be read again: %w", err)
	}
	return nil
}

// saveWhole has write fill a file that appears at path, for its owner alone,
// once it is whole and on disk. What is there and no regular file stays.
func saveWhole(path string, write func(io.Writer) error) (err error) {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is there and is no regular file; give the name of a file, or - for standard output", path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	renamed := false
	defer func() {
		if err != nil && !renamed {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if err = errors.Join(write(file), file.Sync(), file.Close()); err != nil {
		return err
	}
	if err = os.Rename(file.Name(), path); err != nil {
		return err
	}
	renamed = true
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // it cannot be read, only written to
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func newRestoreCommand() *cobra.Command {
	var cf clusterFlags
	f := changeFlags{clusterFlags: &cf, lenient: true}
	var prune, yes, withTokens bool
	cmd := &cobra.Command{
		Use:   "restore FILE|-",
		Short: "Make the keys what they were when a snapshot was saved",
		Long: `Restore puts the keys of a snapshot that are gone or different. Keys that the
snapshot does not have stay, unless --prune is given with --yes. A file that was
cut or altered is refused as a whole. A value that nodes would refuse is left out,
and the exit code is 1.

Environments come back whole, with their ports, mappings and routes. One whose port
somebody else has by now is left out, which is said, and the exit code is 1. What
an environment has now and had not then is taken away (--yes), its ports to rest,
and so do those of environments that --prune ends. Where the keys are more than
one transaction takes they are written in several: should one fail, sluice port
audit says what is not whole, and restore can be run again.

Which nodes are drained stays as it is. So do tokens of the control API, or ones that
were revoked since would be good again: --tokens has them be what they were as well,
such as in a new cluster.`,
		Args: cobra.ExactArgs(1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			s, err := openSnapshot(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			wanted := make(map[string]string, len(s.Keys))
			for _, k := range s.Keys {
				if !history.IsNote(k.Key) {
					wanted[k.Key] = k.Value
				}
			}
			now, err := store.Now(cmd.Context(), "")
			if err != nil {
				return err
			}
			if differ := keepNow(now, wanted, withTokens); differ > 0 && !withTokens {
				fmt.Fprintf(cmd.ErrOrStderr(), "sluice: %s not as the snapshot has it, and left so; --tokens brings them back, revoked ones too\n", countedAre(differ, "token"))
			}
			wanted, left := envs.Restore(now, wanted, time.Now().UTC().Truncate(time.Second), prune)
			for _, l := range left {
				fmt.Fprintf(cmd.ErrOrStderr(), "sluice: %s is left out: %s\n", printable(l.Key), printable(l.Why))
			}
			err = f.change(cmd, &direct{flags: &cf, store: store, all: true}, keys.WishesFor(now, wanted, true), removalNeeds(yes, f.dryRun))
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("%s left out", counted(len(left), "key"))
			}
			return err
		}),
	}
	cf.add(cmd)
	f.add(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "remove the keys that the snapshot does not have")
	cmd.Flags().BoolVar(&yes, "yes", false, "do remove keys")
	cmd.Flags().BoolVar(&withTokens, "tokens", false, "tokens as well, those that were revoked since included")
	return cmd
}

// keepNow makes wanted, of the keys that are no configuration, what there is now:
// which nodes are drained and, unless they are wanted as well, tokens. It returns
// how many tokens differ.
func keepNow(now, wanted map[string]string, withTokens bool) (differ int) {
	for _, c := range keys.Difference(wanted, now) {
		isToken := strings.HasPrefix(c.Key, tokens.Folder)
		if isToken {
			differ++
		}
		if !strings.HasPrefix(c.Key, "drain/") && (!isToken || withTokens) {
			continue
		}
		if c.After == nil {
			delete(wanted, c.Key)
		} else {
			wanted[c.Key] = *c.After
		}
	}
	return differ
}

func openSnapshot(path string, stdin io.Reader) (*history.Snapshot, error) {
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		stdin = file
	}
	s, err := history.ReadSnapshot(stdin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
