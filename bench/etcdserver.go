package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdServer is Debian's etcd in a process of its own, so that its CPU time and
// memory are not sluice's, and a client of it.
type etcdServer struct {
	proc   *process
	addr   netip.AddrPort
	client *clientv3.Client
}

// startEtcd is the function of that name on a site of its own, called name. Where
// addr is not valid, the server gets one of the site's.
func (b *bench) startEtcd(ctx context.Context, name string, addr netip.AddrPort) (*etcdServer, error) {
	s, err := b.site(name)
	if err != nil {
		return nil, err
	}
	if !addr.IsValid() {
		if addr, err = s.ports.pick(); err != nil {
			return nil, err
		}
	}
	return startEtcd(ctx, s, addr)
}

// startEtcd returns once the server answers on addr. The caller closes it.
func startEtcd(ctx context.Context, s *site, addr netip.AddrPort) (*etcdServer, error) {
	program, err := etcdTool.path()
	if err != nil {
		return nil, err
	}
	url := "http://" + addr.String()
	p, err := startProcess("etcd", s.dir, nil, nil, program, "--data-dir", s.dir+"/etcd",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &etcdServer{proc: p, addr: addr}
	e.client, err = clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("make an etcd client: %w", err)
	}
	if err := until(ctx, p, startLimit, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := e.client.Get(ctx, "health")
		return err
	}); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *etcdServer) close() {
	e.client.Close()
	e.proc.stop()
}

// putAll sets the keys, many in one transaction.
func (e *etcdServer) putAll(ctx context.Context, all []keyValue) error {
	const most = 100 // etcd allows 128
	for len(all) > 0 {
		n := min(most, len(all))
		var ops []clientv3.Op
		for _, kv := range all[:n] {
			ops = append(ops, clientv3.OpPut(kv.key, kv.value))
		}
		if _, err := e.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("put %d keys: %w", n, err)
		}
		all = all[n:]
	}
	return nil
}

// edit is one change of one key, and returns its revision; an empty value deletes
// it. The deletion of a key that is not there has none, and is 0.
func (e *etcdServer) edit(ctx context.Context, kv keyValue) (rev int64, err error) {
	if kv.value == "" {
		resp, err := e.client.Delete(ctx, kv.key)
		if err != nil {
			return 0, fmt.Errorf("delete %s: %w", kv.key, err)
		}
		if resp.Deleted == 0 {
			return 0, nil // etcd names its newest, which may be of a key that nodes do not watch
		}
		return resp.Header.Revision, nil
	}
	resp, err := e.client.Put(ctx, kv.key, kv.value)
	if err != nil {
		return 0, fmt.Errorf("put %s: %w", kv.key, err)
	}
	return resp.Header.Revision, nil
}
