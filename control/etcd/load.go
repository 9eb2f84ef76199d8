package etcd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pageKeys is how many keys one answer of a full load holds at most, so that
// neither side has to hold all of a large prefix in one message.
const pageKeys = 5000

// KV is a key as etcd has it.
type KV struct {
	Key    string // below the prefix, such as ports/tcp/20022
	Value  []byte // the receiver's to keep, not to modify
	ModRev int64  // revision of its last change
}

// load reads all watched keys as of one revision.
func (c *Client) load(ctx context.Context, conn *clientv3.Client) (kvs []KV, rev int64, err error) {
	start := time.Now()
	kvs, rev, err = c.read(ctx, conn, watched(c.prefix), 0)
	if err != nil {
		return nil, 0, err
	}
	c.metrics.loadSeconds.Observe(time.Since(start).Seconds())
	c.metrics.keys.Set(float64(len(kvs)))
	return kvs, rev, nil
}

// read reads the keys of spans as of revision at, or of the newest if that is 0.
func (c *Client) read(ctx context.Context, conn *clientv3.Client, spans []span, at int64) (kvs []KV, rev int64, err error) {
	// The first page of every span in one transaction, and so at one revision.
	ops := make([]clientv3.Op, len(spans))
	for i, sp := range spans {
		ops[i] = clientv3.OpGet(sp.from, clientv3.WithRange(sp.end), clientv3.WithLimit(pageKeys), clientv3.WithRev(at))
	}
	first, err := c.txn(ctx, conn, nil, ops)
	if err != nil {
		return nil, 0, fmt.Errorf("load %s: %w", c.prefix, err)
	}
	if rev = at; rev == 0 {
		rev = first.Header.Revision
	}
	c.noteCluster(first.Header.ClusterId)
	for i, sp := range spans {
		page := first.Responses[i].GetResponseRange()
		kvs = c.appendKVs(kvs, page.Kvs)
		for page.More {
			// The next page begins right after the last key.
			from := string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
			next, err := c.get(ctx, conn, from, clientv3.WithRange(sp.end), clientv3.WithLimit(pageKeys), clientv3.WithRev(rev))
			if err != nil {
				return nil, 0, fmt.Errorf("load %s from key %q at revision %d: %w", c.prefix, from, rev, err)
			}
			page.Kvs, page.More = next.Kvs, next.More
			kvs = c.appendKVs(kvs, page.Kvs)
		}
	}
	return kvs, rev, nil
}

func (c *Client) appendKVs(to []KV, from []*mvccpb.KeyValue) []KV {
	for _, kv := range from {
		to = append(to, KV{Key: strings.TrimPrefix(string(kv.Key), c.prefix), Value: kv.Value, ModRev: kv.ModRevision})
	}
	return to
}

// get is one Get that ends after c.pace.request.
func (c *Client) get(ctx context.Context, conn *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.pace.request)
	defer cancel()
	resp, err := conn.Get(ctx, key, opts...)
	if err != nil {
		return nil, c.explain(conn, err)
	}
	return resp, nil
}

// txn is one transaction that ends after c.pace.request. With orElse it is
// what happens where a condition does not hold.
func (c *Client) txn(ctx context.Context, conn *clientv3.Client, conds []clientv3.Cmp, then []clientv3.Op, orElse ...clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.pace.request)
	defer cancel()
	resp, err := conn.Txn(ctx).If(conds...).Then(then...).Else(orElse...).Commit()
	if err != nil {
		return nil, c.explain(conn, err)
	}
	if resp.Succeeded {
		c.noteRoom(then)
	}
	return resp, nil
}
