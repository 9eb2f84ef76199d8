package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/keys"
)

// keyPath returns the file of the cluster key of the node that the flags name.
func (f *clusterFlags) keyPath() (string, error) {
	cfg, err := f.node()
	if err != nil {
		return "", err
	}
	c := config.Config{Data: cfg.Data, ClusterKeyFile: cfg.ClusterKeyFile}
	if c.Data == "" {
		c.Data = "/var/lib/sluice"
	}
	path, _ := clusterKeyFile(&c)
	return path, nil
}

// sealer seals and opens secrets for a command, with a file of the cluster key
// that is read once one is met: most commands meet none, and those who run them
// need not be allowed to read it.
type sealer struct {
	cfg    etcdstore.Config
	shared *etcdstore.Store // nil: none was met
}

// sealer returns nil where there is no cluster key.
func (f *clusterFlags) sealer(store *keys.Store) (*sealer, error) {
	path, err := f.keyPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &sealer{cfg: etcdstore.Config{Client: store.Client, Node: store.By, KeyFile: path}}, nil
}

func (s *sealer) store() (_ *etcdstore.Store, err error) {
	if s.shared == nil {
		s.shared, err = etcdstore.New(s.cfg)
	}
	return s.shared, err
}

func (s *sealer) seal(ctx context.Context, path string, plain []byte) ([]byte, error) {
	shared, err := s.store()
	if err != nil {
		return nil, err
	}
	return shared.SealSecret(ctx, path, plain)
}

func (s *sealer) open(path string, sealed []byte) ([]byte, error) {
	shared, err := s.store()
	if err != nil {
		return nil, err
	}
	return shared.OpenSecret(path, sealed)
}

func (s *sealer) close() error {
	if s == nil || s.shared == nil {
		return nil
	}
	return s.shared.Close()
}
