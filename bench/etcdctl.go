package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
)

// etcdctl is etcd's own client, the tool people change a cluster with.
type etcdctl struct {
	program  string
	endpoint string
}

type keyValue struct{ key, value string }

func newEtcdctl(server netip.AddrPort) (etcdctl, error) {
	program, err := etcdctlTool.path()
	if err != nil {
		return etcdctl{}, err
	}
	return etcdctl{program: program, endpoint: "http://" + server.String()}, nil
}

// put sets one key. When it returns, etcdctl has ended.
func (e etcdctl) put(ctx context.Context, key, value string) error {
	_, err := e.run(ctx, nil, "put", key, value)
	return err
}

// putAll sets the keys, many in one transaction: etcd allows 128.
func (e etcdctl) putAll(ctx context.Context, all []keyValue) error {
	const most = 100
	for len(all) > 0 {
		n := min(most, len(all))
		out, err := e.run(ctx, transaction(all[:n]), "txn")
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(out, []byte("SUCCESS")) {
			return fmt.Errorf("etcdctl txn: %s", tail(out))
		}
		all = all[n:]
	}
	return nil
}

// transaction is the input of etcdctl txn: no condition, puts, nothing else.
func transaction(all []keyValue) []byte {
	b := []byte("\n")
	for _, kv := range all {
		b = fmt.Appendf(b, "put %s %s\n", kv.key, strconv.Quote(kv.value))
	}
	return append(b, "\n\n"...)
}

func (e etcdctl) run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := command(ctx, e.program, args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS="+e.endpoint)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("etcdctl %s: %w: %s", args[0], err, tail(out))
	}
	return out, nil
}
