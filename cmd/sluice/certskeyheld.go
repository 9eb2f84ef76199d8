package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// nodeRecords reads what the live nodes say of themselves, by name. A record that
// makes no sense is one of a node that says nothing.
func nodeRecords(ctx context.Context, client *etcd.Client) (map[string]fleet.Node, error) {
	const folder = "nodes/"
	kvs, _, err := client.ReadUnder(ctx, folder, 0)
	if err != nil {
		return nil, err
	}
	records := make(map[string]fleet.Node, len(kvs))
	for _, kv := range kvs {
		var record fleet.Node
		if json.Unmarshal(kv.Value, &record) != nil {
			record = fleet.Node{}
		}
		records[strings.TrimPrefix(kv.Key, folder)] = record
	}
	return records, nil
}

// withoutKey returns the names of the live nodes that do not say that they have a
// cluster key, in their order.
func withoutKey(records map[string]fleet.Node, id string) []string {
	names := []string{} // never null in JSON
	for _, name := range sortedKeys(records) {
		if !slices.Contains(records[name].ClusterKeys, id) {
			names = append(names, name)
		}
	}
	return names
}

// heldWithin is how long nodes have to read a file of keys that was just copied,
// and to say so: they look at it every two seconds.
const heldWithin = 5 * time.Second

// awaitKey waits until every live node says that it has a key. The error names
// those that have not said so.
func awaitKey(ctx context.Context, client *etcd.Client, id, path string) error {
	ctx, cancel := context.WithTimeout(ctx, heldWithin)
	defer cancel()
	var lacking []string
	for {
		records, err := nodeRecords(ctx, client)
		if err != nil && (ctx.Err() == nil || lacking == nil) {
			return fmt.Errorf("ask which keys the nodes have: %w", err)
		}
		if err == nil {
			lacking = lacking[:0]
			for _, name := range withoutKey(records, id) {
				lacking = append(lacking, lacksKey(name, records[name]))
			}
			if len(lacking) == 0 {
				return nil
			}
		}
		if err := wait(ctx, lookEvery); err != nil {
			return fmt.Errorf("these nodes could not open what key %s seals: %s. Copy %s to them, which read it within seconds, and run this again; --force does not ask them",
				id, strings.Join(lacking, "; "), path)
		}
	}
}

// lacksKey says what keeps a node from a key, as far as its record tells.
func lacksKey(name string, record fleet.Node) string {
	switch {
	case record.ClusterKeys == nil:
		return fmt.Sprintf("%s does not say which keys it has; its program, %s, is of an older version perhaps", name, cmp.Or(record.Version, "which it does not name"))
	case len(record.ClusterKeys) == 0:
		return name + " has none"
	}
	return fmt.Sprintf("%s has %s", name, strings.Join(record.ClusterKeys, ", "))
}
