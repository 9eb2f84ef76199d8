package control

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// Finding says why a value would be refused.
type Finding = wire.Finding

// Rehearse returns what a node would refuse if edits were made to the keys kvs:
// of the values that are put, and of other keys whose value is in force now and
// would not be any more. ports are those that nodes open for mappings. What
// only a node itself can know, such as that a port is busy, is not found.
func Rehearse(ports router.Ports, kvs []etcd.KV, edits []etcd.Change) []Finding {
	c, err := New(Config{
		Watch:    func(context.Context, Handler) error { return nil },
		Applier:  nowhere{},
		Verdicts: nowhere{},
		Ports:    ports,
		Own:      netip.Addr.IsLoopback,
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(fmt.Sprintf("control: rehearse: %v", err)) // not a matter of the arguments
	}
	var rev int64
	for _, kv := range kvs {
		rev = max(rev, kv.ModRev)
	}
	c.Load(rev, kvs)
	refused := map[string]bool{}
	for key, e := range c.entries {
		if e.refused != "" {
			refused[key] = true
		}
	}
	for i := range edits {
		edits[i].ModRev = rev + 1
		delete(refused, edits[i].Key)
	}
	c.Change(rev+1, edits)
	var found []Finding
	for key, e := range c.entries {
		if e.refused != "" && !refused[key] {
			found = append(found, Finding{Key: key, Why: e.refused})
		}
	}
	slices.SortFunc(found, func(a, b Finding) int { return router.CompareKeys(a.Key, b.Key) })
	return found
}

// nowhere takes tables and verdicts that nobody is to see.
type nowhere struct{}

func (nowhere) Apply(*router.Table) {}
func (nowhere) Set(_, _ string)     {}
func (nowhere) Delete(string)       {}
