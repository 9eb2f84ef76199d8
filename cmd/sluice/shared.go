package main

import (
	"context"
	"path/filepath"

	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
)

// clusterKeyFile returns where a node's file has the cluster key, and whether
// the node may make one there.
func clusterKeyFile(c *config.Config) (path string, make bool) {
	if c.ClusterKeyFile != "" {
		return c.ClusterKeyFile, false
	}
	return filepath.Join(c.Data, "cluster.key"), true
}

// openShared makes what the nodes of a cluster share of certificates, as far as
// it is on this node's disk.
func (n *node) openShared(context.Context) error {
	path, make := clusterKeyFile(n.cfg)
	var err error
	n.shared, err = etcdstore.New(etcdstore.Config{
		Client: n.client, Node: n.cfg.Node, KeyFile: path, MakeKey: make, Dir: filepath.Join(n.cfg.Data, "shared"),
		KeysChanged: func() { n.registrar.ClusterKeysChanged() },
		Logger:      n.log, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.onClose(n.shared.Close)
	n.parts["shared certificates"] = n.shared.Run
	n.parts["certificates of before"] = func(ctx context.Context) error {
		return n.shared.TakeUp(ctx, filepath.Join(n.cfg.Data, "certificates"))
	}
	return nil
}

// watch is the node's one watch on etcd: its configuration, and aside from that
// what nodes share of certificates, environments and tokens, and say of each other.
func (n *node) watch(ctx context.Context, h control.Handler) error {
	return n.client.WatchWith(ctx, both{h, n.api}, etcd.Aside{Folders: asideFolders, Handler: aside{n.shared.Mirror, n.members, n.api}})
}
