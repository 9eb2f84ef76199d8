package control_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// reference is what a node has to do with keys, plainly: it remembers values and
// compiles everything anew whenever it is asked.
type reference struct {
	keys map[string]*referenceKey
}

type referenceKey struct {
	etcd.KV          // as last seen
	good    *etcd.KV // in force; nil: nothing
}

func (r *reference) put(kv etcd.KV) {
	k := r.keys[kv.Key]
	if k == nil {
		k = &referenceKey{}
		r.keys[kv.Key] = k
	} else if k.ModRev == kv.ModRev && string(k.Value) == string(kv.Value) {
		return
	}
	k.KV = kv
	r.accept(k)
}

func (r *reference) accept(k *referenceKey) {
	key, err := router.ParseKey(k.Key)
	if err != nil {
		return
	}
	switch key.Kind {
	case router.KindMapping:
		if _, err = router.ParseMapping(key.Proto, key.Port, k.Value); key.Port < 20000 || key.Port > 20999 {
			return
		}
	case router.KindRoute:
		_, err = router.ParseRoute(key.Name, k.Value)
	case router.KindDomain:
		_, err = router.ParseDomain(key.Name, k.Value)
	case router.KindPool:
		return // settle's
	}
	if err != nil {
		return
	}
	kv := k.KV
	k.good = &kv
}

// settle decides between pools: what etcd has comes first, the older before the
// younger, and then what is remembered of those that are refused.
func (r *reference) settle() {
	var inForce []*portpool.Pool
	enters := func(name string, value []byte) bool {
		pool, err := portpool.Parse(name, value)
		if err != nil || slices.ContainsFunc(inForce, func(other *portpool.Pool) bool { return pool.CheckApart(other) != nil }) {
			return false
		}
		inForce = append(inForce, pool)
		return true
	}
	byAge := func(a, b *referenceKey) int {
		return cmp.Or(cmp.Compare(a.ModRev, b.ModRev), cmp.Compare(a.Key, b.Key))
	}
	var remembered []*referenceKey
	for _, k := range slices.SortedFunc(maps.Values(r.keys), byAge) {
		name, isPool := strings.CutPrefix(k.Key, "pools/")
		if !isPool {
			continue
		}
		if enters(name, k.Value) {
			kv := k.KV
			k.good = &kv
		} else if k.good != nil {
			remembered = append(remembered, k)
		}
	}
	slices.SortFunc(remembered, func(a, b *referenceKey) int {
		return cmp.Or(cmp.Compare(a.good.ModRev, b.good.ModRev), cmp.Compare(a.Key, b.Key))
	})
	for _, k := range remembered {
		if !enters(strings.TrimPrefix(k.Key, "pools/"), k.good.Value) {
			k.good = nil
		}
	}
}

// compile makes the table, the domains and the fingerprint from nothing, in no
// order.
func (r *reference) compile(t *testing.T) (table *router.Table, domains []string, f control.Fingerprint) {
	t.Helper()
	var b router.Builder
	fresh := newNode(t, "") // its fingerprint is a sum of one key's at a time
	fresh.Load(1, nil)
	var goods []etcd.KV
	for _, k := range r.keys {
		if k.good == nil {
			continue
		}
		goods = append(goods, *k.good)
		key, err := router.ParseKey(k.Key)
		if err != nil {
			t.Fatal(err)
		}
		switch key.Kind {
		case router.KindMapping:
			m, err := router.ParseMapping(key.Proto, key.Port, k.good.Value)
			if err != nil {
				t.Fatal(err)
			}
			m.Rev = k.good.ModRev
			b.SetMapping(m)
		case router.KindRoute:
			route, err := router.ParseRoute(key.Name, k.good.Value)
			if err != nil {
				t.Fatal(err)
			}
			route.Rev = k.good.ModRev
			b.SetRoute(route)
		case router.KindDomain:
			domains = append(domains, fmt.Sprintf("%s@%d", key.Name, k.good.ModRev))
		}
	}
	fresh.Load(1<<40, goods)
	slices.Sort(domains)
	return b.Table(1), domains, fresh.Fingerprint()
}

// drawn draws keys and values from few, so that much collides.
type drawn struct{ *rand.Rand }

func (d drawn) of(from ...string) string { return from[d.IntN(len(from))] }

func (d drawn) key() string {
	switch d.IntN(10) {
	case 0, 1, 2:
		return fmt.Sprintf("ports/%s/%d", d.of("tcp", "tcp", "udp"), 20000+d.IntN(12)*61)
	case 3, 4, 5:
		return fmt.Sprintf("routes/r%d", d.IntN(12))
	case 6:
		return "domains/" + d.of("a.test", "b.test", "*.a.test", "not a name")
	case 7, 8:
		return "pools/" + d.of("ssh", "code", "web", "x")
	}
	return d.of("ports/tcp/99999", "ports/tcp/19999", "ports/tcp/x", "routes/", "removals/x", "ports/sctp/20000")
}

func (d drawn) value(key string) string {
	if d.IntN(6) == 0 {
		return d.of("", "nonsense", "{", `{"backend":`, `{"host":"a.test"}`, `{"ports":"20-10"}`, "\x00\xff", `[]`, `{}`)
	}
	kind, _, _ := strings.Cut(key, "/")
	switch kind {
	case "ports":
		return fmt.Sprintf(d.of("10.0.0.%d:22", `{"backend":"10.0.0.%d:22","limits":{"connections":3}}`), 1+d.IntN(3))
	case "routes":
		return fmt.Sprintf(`{"host":%q,"path":%q,"priority":%d,%s}`, d.of("a.test", "b.test", "*.test", "*", `~^(?<id>[a-z])\.test$`, `~^a|b\.test$`),
			d.of("", "/", "/a", "/a/b"), d.IntN(2), d.of(`"respond":{}`, `"backend":"10.0.0.1:80"`, `"tls":"passthrough","backend":"10.0.0.1:443"`))
	case "pools":
		first := 20000 + 50*d.IntN(6)
		return fmt.Sprintf(`{"ports":"%d-%d","backend_port":22}`, first, first+49+50*d.IntN(3))
	}
	return "{}"
}

// TestEditsAgainstReference makes random edits, with loads between them that
// find what was not seen, and wants a node to have in force after each what the
// reference has, whose tables are made from nothing.
func TestEditsAgainstReference(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range uint64(5) {
		editsAgainstReference(t, drawn{rand.New(rand.NewPCG(seed, round))}, 60)
	}
}

func FuzzEditsAgainstReference(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed, stream uint64) {
		editsAgainstReference(t, drawn{rand.New(rand.NewPCG(seed, stream))}, 20)
	})
}

func editsAgainstReference(t *testing.T, d drawn, steps int) {
	t.Helper()
	n, ref := newNode(t, ""), &reference{map[string]*referenceKey{}}
	inEtcd := map[string]etcd.KV{}
	rev := int64(1)
	n.Load(rev, nil)
	var old []*router.Table
	var were []string
	for range steps {
		unseen := d.IntN(8) == 0
		var changes []etcd.Change
		for range 1 + d.IntN(6) {
			rev += int64(min(1, d.IntN(4))) // a few in one transaction
			key := d.key()
			if slices.ContainsFunc(changes, func(ch etcd.Change) bool { return ch.Key == key && ch.ModRev == rev }) {
				continue // which has each key once
			}
			if d.IntN(4) == 0 {
				delete(inEtcd, key)
				changes = append(changes, del(key, rev))
			} else {
				inEtcd[key] = etcd.KV{Key: key, Value: []byte(d.value(key)), ModRev: rev}
				changes = append(changes, put(key, string(inEtcd[key].Value), rev))
			}
		}
		if unseen {
			kvs := slices.SortedFunc(maps.Values(inEtcd), func(a, b etcd.KV) int { return strings.Compare(a.Key, b.Key) })
			ref.load(kvs)
			n.Load(rev, kvs)
		} else {
			ref.change(changes)
			n.Change(rev, changes)
		}
		compareWithReference(t, n, ref, d)
		if len(n.tables) > 0 {
			old, were = append(old, n.table()), append(were, summary(n.table()))
		}
		rev++
	}
	for i := range old {
		if is := summary(old[i]); is != were[i] {
			t.Fatalf("the table of step %d was\n%s\nand is now\n%s", i, were[i], is)
		}
	}
}

func (r *reference) change(changes []etcd.Change) {
	// Of one revision, what is deleted goes first.
	for len(changes) > 0 {
		same := 1
		for same < len(changes) && changes[same].ModRev == changes[0].ModRev {
			same++
		}
		for _, ch := range changes[:same] {
			if ch.Deleted {
				delete(r.keys, ch.Key)
			}
		}
		for _, ch := range changes[:same] {
			if !ch.Deleted {
				r.put(etcd.KV{Key: ch.Key, Value: ch.Value, ModRev: ch.ModRev})
			}
		}
		r.settle()
		changes = changes[same:]
	}
}

func (r *reference) load(kvs []etcd.KV) {
	there := map[string]bool{}
	for _, kv := range slices.SortedStableFunc(slices.Values(kvs), func(a, b etcd.KV) int { return cmp.Compare(a.ModRev, b.ModRev) }) {
		there[kv.Key] = true
		r.put(kv)
	}
	maps.DeleteFunc(r.keys, func(key string, _ *referenceKey) bool { return !there[key] })
	r.settle()
}

// summary says all of a table that a request can ask for.
func summary(table *router.Table) string {
	var b strings.Builder
	table.EachMapping(func(m *router.Mapping) { fmt.Fprintf(&b, "%v %d@%d\n", m.Proto, m.Port, m.Rev) })
	for _, host := range []string{"a.test", "b.test", "c.test", "ab.test", "x.a.test", "other"} {
		r, _ := table.MatchTLS(host, 443)
		fmt.Fprintf(&b, "%s: %s", host, routeText(r))
		for _, path := range []string{"/", "/a", "/a/b/c"} {
			r, captures := table.Match(&router.Request{Host: host, Port: 443, Method: "GET", Path: path})
			fmt.Fprintf(&b, " %s", routeText(r))
			captures.Each(func(name, value string) { fmt.Fprintf(&b, " %s=%s", name, value) })
		}
		b.WriteByte('\n')
	}
	mappings, routes := table.Len()
	fmt.Fprintf(&b, "%d %d %v", mappings, routes, table.HasConnectionRoutes())
	return b.String()
}

func routeText(r *router.Route) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%s@%d", r.Name, r.Rev)
}

func compareWithReference(t *testing.T, n *node, ref *reference, d drawn) {
	t.Helper()
	want, domains, fingerprint := ref.compile(t)
	got := &router.Table{}
	if len(n.tables) > 0 {
		got = n.table()
	}
	if is, should := summary(got), summary(want); is != should {
		t.Fatalf("in force is\n%s\nwant\n%s", is, should)
	}
	got.EachMapping(func(m *router.Mapping) {
		if should := want.Mapping(m.Proto, m.Port); !reflect.DeepEqual(m, should) {
			t.Fatalf("in force is %+v, want %+v", m, should)
		}
	})
	if f := n.Fingerprint(); f != fingerprint {
		t.Fatalf("the fingerprint is %v, that of a node which loaded the same is %v", f, fingerprint)
	}
	var have []string
	for _, dom := range n.domains {
		have = append(have, fmt.Sprintf("%s@%d", dom.Name, dom.Rev))
	}
	if slices.Sort(have); !slices.Equal(have, domains) {
		t.Fatalf("the domains are %v, want %v", have, domains)
	}
	for key, k := range ref.keys {
		v := control.ParseVerdict(n.verdicts[key])
		switch {
		case k.good != nil && k.good.ModRev == k.ModRev && (v.State != control.Applied || v.Rev != k.ModRev),
			k.good != nil && k.good.ModRev != k.ModRev && (v.State != control.Refused || v.Rev != k.good.ModRev),
			k.good == nil && (v.State != control.Refused || v.Rev != 0):
			t.Fatalf("the verdict of %s = %q @%d is %q, in force should be %v", key, k.Value, k.ModRev, v.Text, k.good)
		}
	}
	if len(n.verdicts) != len(ref.keys) {
		t.Fatalf("there are %d verdicts on %d keys", len(n.verdicts), len(ref.keys))
	}
}
