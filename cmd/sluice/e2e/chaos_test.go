package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	chaosSeed = flag.Uint64("chaos.seed", 5, "what TestChaos does is drawn from")
	chaosFor  = flag.Duration("chaos.for", 2*time.Minute, "how long TestChaos goes on at least")
)

// TestChaos has three nodes and three etcd members, and does to the members, the
// networks and the keys whatever befalls such a cluster, while clients use
// everything. No session may be cut but by its own deletion, nothing that is
// mapped may stop answering, and whenever it is over the nodes have to have the
// same in force, which is what etcd has.
//
// Clocks jump as far as they can for one process: a member begins again in a time
// namespace in which the monotonic and the boot clock, by which leases and
// elections go, are days ahead, and then once more without. There is no namespace
// of the wall clock, and a Go program reads it where no preloaded library is
// asked (the vDSO); what goes by it, the age of history and certificates, is
// tested with clocks of its own elsewhere. The order of what happens follows from
// the seed, how edits fall in between does not.
func TestChaos(t *testing.T) {
	t.Parallel()
	t.Logf("to do the same again: -run '^TestChaos$' -chaos.seed %d", *chaosSeed)
	c := startChaos(t)
	c.traffic.begin()
	editing, stopEditing := context.WithCancel(t.Context())
	var editors sync.WaitGroup
	for i := range uint64(2) {
		editors.Go(func() { c.edit(editing, rand.New(rand.NewPCG(*chaosSeed, 1+i))) })
	}
	rnd := rand.New(rand.NewPCG(*chaosSeed, 0))
	began := time.Now()
	done := 0
	for done == 0 || time.Since(began) < *chaosFor {
		for _, i := range rnd.Perm(len(chaosDeck)) {
			f := chaosDeck[i]
			start := time.Now()
			c.traffic.note(f.name)
			heal := f.inflict(c, rnd)
			for range 1 + rnd.IntN(5) {
				c.traffic.another()
			}
			heal()
			c.settle()
			t.Logf("%5.1f s: %s, over after %.1f s", start.Sub(began).Seconds(), f.name, time.Since(start).Seconds())
			if done++; done >= len(chaosDeck) && time.Since(began) >= *chaosFor || t.Failed() {
				break
			}
		}
		if t.Failed() {
			break
		}
	}
	stopEditing()
	editors.Wait()
	c.settle()
	c.traffic.note("the end")
	c.deleteOne()
	c.traffic.end()
	c.visitVolatile()
	t.Logf("%d edits, of which %d failed; %d bytes on long sessions", c.edits, c.editsFailed, c.traffic.moved.Load())
}

// chaos is a cluster that is done ill to.
type chaos struct {
	t       *testing.T
	network *chaosNetwork
	members [3]*member
	nodes   [3]*node
	traffic *traffic
	etcd    *clientv3.Client // of all members

	mu                 sync.Mutex // held for each edit, and to have none
	edits, editsFailed int
}

func startChaos(t *testing.T) *chaos {
	t.Helper()
	network := newChaosNetwork(t)
	c := &chaos{t: t, network: network, members: startChaosMembers(t, network)}
	c.etcd = network.etcdClient(t, memberAddr(0), memberAddr(1), memberAddr(2))
	c.traffic = startTraffic(t, network)
	eventually(t, "etcd takes keys", func() error { return c.put(c.traffic.stable()) })
	var endpoints []string
	for i := range c.members {
		endpoints = append(endpoints, fmt.Sprintf("%q", "http://"+at(memberAddr(i), 2379)))
	}
	for i := range c.nodes {
		n := newNode(t, withHost(network.nodes[i], ""))
		n.edit("node: test\n", fmt.Sprintf("node: hk%d\n", i))
		n.edit(fmt.Sprintf("listen: %q", n.Etcd), "endpoints: ["+strings.Join(endpoints, ", ")+"]")
		n.edit(fmt.Sprintf("ports: [\"%d-%d\"]", n.Ports[0], n.Ports[1]), fmt.Sprintf("ports: [\"%d-%d\"]", chaosFirstPort, chaosFirstPort+999))
		n.edit(fmt.Sprintf("\":%d\"}]}", n.HTTP), fmt.Sprintf("\":%d\"}]}", chaosHTTP))
		n.edit(fmt.Sprintf("demo: %q\n", n.Demo), "")
		if i > 0 {
			shareClusterKey(t, c.nodes[0], n)
		}
		n.start()
		c.nodes[i] = n
	}
	c.settle()
	return c
}

// shareClusterKey gives a node the file of the cluster key of another, which makes
// it if nobody has.
func shareClusterKey(t *testing.T, from, to *node) {
	t.Helper()
	var key []byte
	eventually(t, "the first node has made the cluster key", func() (err error) {
		key, err = os.ReadFile(filepath.Join(from.dir, "data", "cluster.key"))
		return err
	})
	if err := os.MkdirAll(filepath.Join(to.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to.dir, "data", "cluster.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
}

// put puts keys below the prefix, a few dozen at once.
func (c *chaos) put(keys map[string]string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	var ops []clientv3.Op
	for key, value := range keys {
		ops = append(ops, clientv3.OpPut("/sluice/"+key, value))
	}
	_, err := c.etcd.Txn(ctx).Then(ops...).Commit()
	return err
}

// mustPut is put, as often as it takes.
func (c *chaos) mustPut(keys map[string]string) {
	c.t.Helper()
	eventually(c.t, "etcd takes keys during "+*c.traffic.doing.Load(), func() error { return c.put(keys) })
}

// keys are the keys in etcd that nodes act on.
func (c *chaos) keys() (keys map[string]string, rev int64, err error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	keys = map[string]string{}
	for _, folder := range []string{"ports/", "removals/", "routes/", "prots/"} {
		got, err := c.etcd.Get(ctx, "/sluice/"+folder, clientv3.WithPrefix())
		if err != nil {
			return nil, 0, err
		}
		for _, kv := range got.Kvs {
			keys[strings.TrimPrefix(string(kv.Key), "/sluice/")] = string(kv.Value)
		}
		rev = got.Header.Revision
	}
	return keys, rev, nil
}

// settle has no edits made, puts right what was written wrong, confirms what is
// held back, and wants all nodes to have in force what etcd has.
func (c *chaos) settle() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	eventually(c.t, "the nodes have in force what etcd has, after "+*c.traffic.doing.Load(), func() error {
		// Each time, since edits that failed may come into force late, and a node
		// that was away holds back what it finds missing.
		c.mustPut(map[string]string{"removals/confirmed": "yes"})
		if err := c.putRight(); err != nil {
			return err
		}
		keys, rev, err := c.keys()
		if err != nil {
			return err
		}
		want := fingerprintOf(keys)
		var different []string
		for i, n := range c.nodes {
			var ready struct{ Fingerprint, Detail string }
			status, body, err := n.adminGet("/readyz")
			if err == nil {
				err = json.Unmarshal([]byte(body), &ready)
			}
			if err != nil {
				return err
			}
			if ready.Fingerprint != want || status != http.StatusOK || ready.Detail != "" {
				different = append(different, fmt.Sprintf("node %d says %d %s", i, status, strings.TrimSpace(body)))
			}
		}
		if len(different) > 0 {
			return differs(func() string {
				text := fmt.Sprintf("%s; want the fingerprint %s, of %d keys at revision %d", strings.Join(different, "; "), want, len(keys), rev)
				for i, n := range c.nodes {
					text += fmt.Sprintf("\nnode %d differs (-want +got):\n%s", i, difference(n, keys))
				}
				return text
			})
		}
		return nil
	})
}

// differs is an error that is put into words where it is the last.
type differs func() string

func (d differs) Error() string { return d() }

// difference says what a node has on disk, where it soon writes what is in
// force, other than etcd.
func difference(n *node, want map[string]string) string {
	text, err := os.ReadFile(filepath.Join(n.dir, "data", "state"))
	if err != nil {
		return err.Error()
	}
	is := map[string]string{}
	for line := range strings.Lines(string(text)) {
		var rev int64
		var key, value string
		if _, err := fmt.Sscanf(line, "put %d %q %q", &rev, &key, &value); err == nil {
			is[key] = value
		} else if _, err := fmt.Sscanf(line, "delete %q", &key); err == nil {
			delete(is, key)
		}
	}
	return cmp.Diff(want, is)
}

// putRight puts or deletes every key whose value is nonsense: which older value
// a node has in force of such a key depends on which it saw.
func (c *chaos) putRight() error {
	keys, _, err := c.keys()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	stable := c.traffic.stable()
	right := map[string]string{}
	for key, value := range stable {
		if now := keys[key]; now != value && isNonsense(key, now) {
			right[key] = value
		}
	}
	if len(right) > 0 {
		if err := c.put(right); err != nil {
			return err
		}
	}
	for key, value := range keys {
		if isNonsense(key, value) && stable[key] == "" {
			if _, err := c.etcd.Delete(ctx, "/sluice/"+key); err != nil {
				return err
			}
		}
	}
	return nil
}

// fingerprintOf is what nodes show that have these keys in force.
func fingerprintOf(keys map[string]string) string {
	var sum uint64
	for key, value := range keys {
		h := sha256.Sum256([]byte(key + "\x00" + value))
		for i, b := range h[:6] {
			sum += uint64(b) << (40 - 8*i)
		}
	}
	return fmt.Sprintf("%012x", sum&(1<<48-1))
}

// edit edits keys until ctx ends: what comes and goes, and of what is stable
// what withdraws nothing.
func (c *chaos) edit(ctx context.Context, rnd *rand.Rand) {
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		c.edits++
		if err := c.editOne(ctx, rnd, n); err != nil {
			c.editsFailed++
		}
		c.mu.Unlock()
	}
}

func (c *chaos) editOne(ctx context.Context, rnd *rand.Rand, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	key := fmt.Sprintf("ports/tcp/%d", chaosFirstPort+chaosTCP+rnd.IntN(chaosVolatile))
	value := fmt.Sprintf(`{"backend": %q, "limits": {"connections": %d}}`, c.traffic.lines[rnd.IntN(2)], 100+n)
	switch rnd.IntN(12) {
	case 0, 1:
		_, err := c.etcd.Delete(ctx, "/sluice/"+key)
		return err
	case 2:
		key, value = c.nonsense(rnd)
	case 3, 4:
		key = fmt.Sprintf("ports/tcp/%d", chaosFirstPort+rnd.IntN(chaosTCP))
		value = fmt.Sprintf(`{"backend": %q, "idle_timeout": "1h", "env": "e%d"}`, c.traffic.echo, n)
	case 5:
		key = fmt.Sprintf("routes/volatile%d", rnd.IntN(30))
		value = fmt.Sprintf(`{"host": "~^v%d-[a-z]+\\.test$", "ports": %d, "respond": {"body": "%d"}}`, rnd.IntN(5), chaosHTTP, n)
	}
	_, err := c.etcd.Put(ctx, "/sluice/"+key, value)
	return err
}

// nonsense draws a key and a value that nodes refuse.
func (c *chaos) nonsense(rnd *rand.Rand) (key, value string) {
	keys := []string{
		"ports/tcp/%d", "ports/tcp/%d", "ports/tcp/%d", "ports/udp/%d", "ports/tcp/9%d", "ports/tcp/x%d", "ports/sctp/%d", "routes/stable%d", "routes/%d/x", "removals/%d", "prots/tcp/%d",
	}
	key = fmt.Sprintf(keys[rnd.IntN(len(keys))], chaosFirstPort+rnd.IntN(chaosTCP+chaosVolatile))
	if strings.HasPrefix(key, "routes/stable") {
		key = fmt.Sprintf("routes/stable%d", rnd.IntN(chaosRoutes))
	}
	values := []string{"nonsense", "", "\x00\xff\xfe", "[1,2", "! {", strings.Repeat("[", 5000), "nonsense:70000", "${host}", strings.Repeat("x", 100_000)}
	return key, values[rnd.IntN(len(values))]
}

// isNonsense reports whether no node has the value in force.
func isNonsense(key, value string) bool {
	good := strings.HasPrefix(key, "routes/stable") || strings.HasPrefix(key, "routes/volatile") || strings.HasPrefix(key, "ports/udp/20") ||
		strings.HasPrefix(key, "ports/tcp/20") || key == "removals/confirmed"
	return !good || !strings.HasPrefix(value, "{") && value != "yes"
}

// deleteOne deletes a mapping of those with long sessions, and wants its sessions
// to be cut, which nothing else has done to any.
func (c *chaos) deleteOne() {
	c.t.Helper()
	c.traffic.lacksFirst.Store(true)
	for node := range c.nodes {
		c.traffic.mayEnd(sessionName(node, chaosFirstPort))
	}
	eventually(c.t, "etcd deletes a mapping", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		_, err := c.etcd.Delete(ctx, fmt.Sprintf("/sluice/ports/tcp/%d", chaosFirstPort))
		return err
	})
	for node := range c.nodes {
		eventually(c.t, "the sessions of a deleted mapping are cut", func() error {
			if !c.traffic.hasEnded(sessionName(node, chaosFirstPort)) {
				return fmt.Errorf("not on node %d", node)
			}
			return nil
		})
	}
}

// visitVolatile wants each of the mappings that came and went to be as etcd has
// it, on every node.
func (c *chaos) visitVolatile() {
	c.t.Helper()
	keys, _, err := c.keys()
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range c.nodes {
		for port := chaosFirstPort + chaosTCP; port < chaosFirstPort+chaosTCP+chaosVolatile; port++ {
			value, there := keys[fmt.Sprintf("ports/tcp/%d", port)]
			want := "one: hello"
			if strings.Contains(value, c.traffic.lines[1]) {
				want = "two: hello"
			}
			err := c.traffic.ask(at(publicAddr(i), port), "hello\n", want)
			if there != (err == nil) {
				c.t.Errorf("node %d, port %d, whose value is %q: %v", i, port, value, err)
			}
		}
	}
}

// leader returns the member that leads.
func (c *chaos) leader() *member {
	c.t.Helper()
	var leader *member
	eventually(c.t, "a member leads", func() error {
		for _, m := range c.members {
			if st, err := m.status(); err == nil && st.Leader == st.Header.MemberId {
				leader = m
				return nil
			}
		}
		return errors.New("none does")
	})
	return leader
}
