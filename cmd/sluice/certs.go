package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/keys"
)

// certsFlags say whose certificates a command is about.
type certsFlags struct {
	clusterFlags
	keyFile string
}

func newCertsCommand() *cobra.Command {
	var f certsFlags
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "See, renew, revoke, import, export and rehearse certificates; look after the key that seals them",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	f.add(cmd)
	cmd.PersistentFlags().StringVar(&f.keyFile, "cluster-key", "", "file of the cluster key (default: as in the node's file)")
	cmd.AddCommand(f.newList(), f.newShow(), f.newRenew(), f.newRevoke(), f.newImport(), f.newRemove(), f.newExport(), f.newRehearse(), f.newKey(), f.newReseal(), f.newECH())
	return cmd
}

// certsAccess is what commands about certificates work with.
type certsAccess struct {
	cfg    *config.Config
	keys   *keys.Store
	shared *etcdstore.Store
}

// with has run work with the certificates of the cluster that the flags name.
func (f *certsFlags) with(run func(cmd *cobra.Command, args []string, a *certsAccess) error) func(*cobra.Command, []string) error {
	return f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) (err error) {
		cfg, err := f.node()
		if err != nil {
			return err
		}
		path, err := f.keyPath()
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return usageError{fmt.Errorf("certificates are sealed in etcd, and there is no cluster key in %s: "+
				"run this where a node is, with its file as --config, or give a copy of its key as --cluster-key", path)}
		}
		shared, err := etcdstore.New(etcdstore.Config{Client: store.Client, Node: store.By, KeyFile: path})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, shared.Close()) }()
		return run(cmd, args, &certsAccess{cfg: cfg, keys: store, shared: shared})
	})
}
