package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/install"
)

func newInstallCommand() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put a node on this machine: user, unit, kernel settings, first configuration; and start it",
		Long: `Install makes a node of a bare machine that runs systemd: it copies this program
to /usr/local/bin, puts the unit, the user, kernel settings, logrotate's file and
a first /etc/sluice/sluice.yaml in place, enables the node and starts it. What is
there stays: a second time changes nothing, and a new program takes the place of
the old one. Files that an administrator may have changed are left as they are.
Lines with + are done, those with = are so already, $ are commands. --root puts
the files below a directory, for an image of a machine, and runs no command.`,
		Example: `  sluice install --dry-run
  sluice install && sluice map put tcp/20022 10.0.0.7:22`,
		Args: cobra.NoArgs,
		RunE: f.with(func(ctx context.Context, o install.Options) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			return install.Install(ctx, o)
		}),
	}
	f.add(cmd)
	return cmd
}

func newUninstallCommand() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take away what sluice install has put",
		Long: `Uninstall stops the node and removes what sluice install has put on the machine.
Configuration, state and logs stay, unless --purge is given: then the embedded
etcd, private keys and certificates are gone as well.`,
		Args: cobra.NoArgs,
		RunE: f.with(install.Uninstall),
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.Purge, "purge", false, "remove configuration, state and logs too")
	return cmd
}

// installFlags say what is done where, and how it is told.
type installFlags struct {
	install.Options
	outputFlag
}

func (f *installFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.DryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().StringVar(&f.Root, "root", "/", "directory that stands for the machine's root; no command is run for one other than /")
	f.outputFlag.add(cmd)
}

// with has run do what the flags say, and tells each step.
func (f *installFlags) with(run func(context.Context, install.Options) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		f.Say = func(s install.Step) {
			if f.json() {
				_ = encoder(cmd.OutOrStdout()).Encode(s)
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), s)
			}
		}
		return asRoot(cmd, &f.Options, run(cmd.Context(), f.Options))
	}
}

// asRoot says of a missing permission who has it.
func asRoot(cmd *cobra.Command, o *install.Options, err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 && o.Root == "/" {
		return errors.Join(err, errors.New("this takes root: sudo "+cmd.CommandPath()))
	}
	return err
}
