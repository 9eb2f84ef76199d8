package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/install"
)

func newInstallCommand() *cobra.Command {
	o := install.Options{}
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
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			return asRoot(cmd, &o, install.Install(cmd.Context(), prepared(cmd, &o)))
		},
	}
	addInstallFlags(cmd, &o)
	return cmd
}

func newUninstallCommand() *cobra.Command {
	o := install.Options{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take away what sluice install has put",
		Long: `Uninstall stops the node and removes what sluice install has put on the machine.
Configuration, state and logs stay, unless --purge is given: then the embedded
etcd, private keys and certificates are gone as well.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return asRoot(cmd, &o, install.Uninstall(cmd.Context(), prepared(cmd, &o)))
		},
	}
	addInstallFlags(cmd, &o)
	cmd.Flags().BoolVar(&o.Purge, "purge", false, "remove configuration, state and logs too")
	return cmd
}

func addInstallFlags(cmd *cobra.Command, o *install.Options) {
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().StringVar(&o.Root, "root", "/", "directory that stands for the machine's root; no command is run for one other than /")
}

func prepared(cmd *cobra.Command, o *install.Options) install.Options {
	o.Out = cmd.OutOrStdout()
	return *o
}

// asRoot says of a missing permission who has it.
func asRoot(cmd *cobra.Command, o *install.Options, err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 && o.Root == "/" {
		return errors.Join(err, errors.New("this takes root: sudo "+cmd.CommandPath()))
	}
	return err
}
