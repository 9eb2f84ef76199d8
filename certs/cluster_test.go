package certs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

func TestClusterOrdersEachNameOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		var names []string
		for i := range 40 {
			names = append(names, fmt.Sprintf("n%d.x.test", i))
		}
		c.want(names...)
		after(time.Second)
		working := map[string]int{}
		for _, o := range c.taken() {
			working[o.node]++
		}
		if len(working) != 3 || working["hk1"]+working["hk2"]+working["sg1"] != len(names) {
			t.Errorf("after a second %v are at work, want all three at %d orders together", working, len(names))
		}
		after(time.Minute)
		if again := c.taken(); len(again) > 0 {
			t.Errorf("%d orders were made twice: %v", len(again), again)
		}
		for _, name := range names {
			c.served(name)
			c.says(name, "obtained until ")
		}
		if locks := c.store.Locks(); len(locks) > 0 {
			t.Errorf("locks left behind: %v", locks)
		}
	})
}

// A node that is said to live and does nothing delays a name by a turn.
func TestNextNodeTakesTheTurnOfOneThatDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2")
		defer c.close()
		c.list = []string{"dead", "hk1", "hk2"}
		var names []string
		for i := range 30 {
			names = append(names, fmt.Sprintf("n%d.x.test", i))
		}
		c.want(names...)
		after(4 * time.Second)
		first := len(c.taken())
		if first == 0 || first == len(names) {
			t.Fatalf("%d of %d orders before the first turn was over, want those of the two nodes that work", first, len(names))
		}
		after(time.Minute)
		if rest := len(c.taken()); first+rest != len(names) {
			t.Errorf("%d orders, want %d", first+rest, len(names))
		}
	})
}

// The cluster backs off as one node would, and each attempt is another node's.
func TestClusterBacksOffAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		c.failing(func(node, _ string) error { return errors.New("the zone is not there, says " + node) })
		c.want("a.x.test")
		after(3 * time.Hour)
		orders := c.taken()
		// 5 s, 10 s, ... 2560 s: ten failures come before pauses of an hour.
		if n := len(orders); n < 11 || n > 13 {
			t.Errorf("%d attempts in three hours, want 11 to 13, as one node would make", n)
		}
		for i := range orders[1:] {
			if orders[i].node == orders[i+1].node {
				t.Errorf("attempts %d and %d are both by %s", i, i+1, orders[i].node)
			}
			if i > 1 && orders[i+1].at.Sub(orders[i].at) < orders[i].at.Sub(orders[i-1].at) {
				t.Errorf("attempt %d came sooner than the one before it", i+1)
			}
		}
		last := orders[len(orders)-1].node
		c.says("a.x.test", "failed: "+last+": the zone is not there, says "+last, "next attempt at ")
		// One that joins goes by what the others came to.
		c.start("la1").SetDomains([]certs.Domain{{Name: "a.x.test"}})
		after(time.Minute)
		c.says("a.x.test", "failed: "+last+": ")
		if n := len(c.taken()); n > 0 {
			t.Errorf("a node that joined made %d attempts", n)
		}

		c.failing(nil)
		after(2 * time.Hour)
		c.says("a.x.test", "obtained until ")
		for node, n := range c.nodes {
			if s, _ := n.Status("a.x.test"); s.Err != nil || s.Trouble() {
				t.Errorf("%s: %v, want nothing of the failures", node, s)
			}
		}
		if _, there := c.store.Peek(certs.AttemptsKey("a.x.test")); there {
			t.Error("what became of the attempts is still kept")
		}
	})
}

func TestAnotherNodeTriesAfterOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		c.failing(func(node, _ string) error {
			if node == "hk1" {
				return errors.New("this node cannot reach the provider")
			}
			return nil
		})
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("n%d.x.test", i))
		}
		c.want(names...)
		after(time.Minute)
		tries := map[string][]string{}
		for _, o := range c.taken() {
			tries[o.name] = append(tries[o.name], o.node)
		}
		moved := 0
		for name, nodes := range tries {
			if len(nodes) > 2 || len(nodes) == 2 && (nodes[0] != "hk1" || nodes[1] == "hk1") {
				t.Errorf("%s was tried by %v, want another node right after hk1", name, nodes)
			}
			moved += len(nodes) - 1
		}
		if moved == 0 {
			t.Fatal("hk1 had no turn at all")
		}
		for _, name := range names {
			c.served(name)
		}
	})
}

// Through a year every name is renewed once a period, by one node, the names one
// after the other, and nothing ever expires.
func TestRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		var names []string
		for i := range 30 {
			names = append(names, fmt.Sprintf("n%d.x.test", i))
		}
		c.want(names...)
		after(time.Minute)
		c.taken()
		const day = 24 * time.Hour
		start := time.Now()
		var first []order
		for range 365 {
			after(day)
			now := c.taken()
			if time.Since(start) < 75*day {
				first = append(first, now...)
			}
			for _, name := range names {
				if left := time.Until(c.served(name).NotAfter); left < 20*day {
					t.Fatalf("%s has %v left", name, left)
				}
			}
		}
		if len(first) != len(names) {
			t.Errorf("%d renewals of %d names in the first period", len(first), len(names))
		}
		begin, end := first[0].at.Sub(start), first[len(first)-1].at.Sub(start)
		if begin < 59*day || end > 68*day || end-begin < 4*day {
			t.Errorf("renewals from day %v to %v, want them spread from 60 to 67", begin/day, end/day)
		}
	})
}

// What an authority says of when to renew is what counts.
func TestWhenToRenew(t *testing.T) {
	store := certstest.NewStore()
	put(t, store, "ca", "a.x.test", 90*24*time.Hour)
	s := *store.Stored("a.x.test")[0]
	leaf := s.Certificate.Leaf
	window := func(from, to time.Duration, more string) []byte {
		at := func(d time.Duration) string { return leaf.NotBefore.Add(d).UTC().Format(time.RFC3339) }
		return fmt.Appendf(nil, `{"sans":["a.x.test"],"issuer_data":{"url":"u","renewal_info":{"suggestedWindow":{"start":%q,"end":%q}%s}}}`, at(from), at(to), more)
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name     string
		meta     []byte
		from, to time.Duration // of the life
		ask      bool
	}{
		{"none", nil, 60 * day, 68 * day, false},
		{"not JSON", []byte("{"), 60 * day, 68 * day, false},
		{"no window", []byte(`{"issuer_data":{"renewal_info":{}}}`), 60 * day, 68 * day, false},
		{"window", window(30*day, 32*day, ""), 30 * day, 32 * day, false},
		{"time", window(30*day, 32*day, `,"_selectedTime":"`+leaf.NotBefore.Add(31*day).UTC().Format(time.RFC3339)+`"`), 31 * day, 31 * day, false},
		{"retry", window(30*day, 32*day, `,"_retryAfter":"2026-01-01T00:00:00Z"`), 30 * day, 32 * day, true},
		{"too late", window(89*day, 90*day, ""), 85 * day, 86 * day, false},
		{"revoked", window(-day, 0, ""), -day, 0, false},
	} {
		s.Meta = tt.meta
		at, ask := certs.Renewal(&s)
		if at.Before(leaf.NotBefore.Add(tt.from)) || at.After(leaf.NotBefore.Add(tt.to)) || ask.IsZero() == tt.ask {
			t.Errorf("%s: renew at day %v, ask at %v", tt.name, at.Sub(leaf.NotBefore).Hours()/24, ask)
		}
	}
}

// A certificate that is not renewed is told of long before it ends, on every
// node, and the louder the nearer the end is.
func TestExpiryIsLoud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2")
		defer c.close()
		c.want("a.x.test")
		after(time.Minute)
		const day = 24 * time.Hour
		c.failing(func(string, string) error { return errors.New("the account is gone") })
		logs := func() (warnings, errors int) {
			for _, n := range c.nodes {
				text := n.log.take()
				warnings += strings.Count(text, "level=WARN msg=\"a certificate")
				errors += strings.Count(text, "level=ERROR msg=\"a certificate")
			}
			return warnings, errors
		}
		after(70 * day)
		c.says("a.x.test", "obtained until ", "the last attempt to renew it failed: ", "the account is gone")
		if w, e := logs(); w+e > 0 {
			t.Errorf("%d warnings and %d errors of expiry with 20 days left", w, e)
		}
		after(3*day + 12*time.Hour)
		c.says("a.x.test", "expires in 16 days, at ", "the account is gone")
		for node, n := range c.nodes {
			if s, _ := n.Status("a.x.test"); s.State != certs.StateExpiring || !s.Trouble() {
				t.Errorf("%s: %+v, want it to be expiring", node, s)
			}
		}
		if w, e := logs(); w < 2 || e > 0 {
			t.Errorf("%d warnings and %d errors with 17 days left, want warnings of both nodes", w, e)
		}
		after(13 * day)
		c.says("a.x.test", "expires in 3 days, at ")
		if _, e := logs(); e < 2 {
			t.Errorf("%d errors with 4 days left, want some of both nodes", e)
		}
		after(4 * day)
		c.says("a.x.test", "failed: ", "the account is gone")
		c.served("a.x.test") // an expired certificate is better than none
		c.failing(nil)
		after(2 * time.Hour)
		c.says("a.x.test", "obtained until ")
		logs()
		after(2 * day)
		if w, e := logs(); w+e > 0 {
			t.Errorf("%d warnings and %d errors after the renewal", w, e)
		}
	})
}

// The certificate of a name that nobody wants any more is served until it
// expires; then it is deleted from storage, once.
func TestDeletedNameLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		c.want("a.x.test", "b.x.test")
		after(time.Minute)
		c.taken()
		c.want("b.x.test")
		stored, err := certs.LoadAllStored(t.Context(), c.store, "a.x.test")
		if err != nil || len(stored) != 1 {
			t.Fatalf("stored: %v, %v", stored, err)
		}
		shared := map[string]string{
			certs.AttemptsKey("a.x.test"):              `{"node": "hk2", "failures": 1, "err": "throttled"}`,
			"limits/" + stored[0].Issuer + "/a.x.test": time.Now().Add(7 * 24 * time.Hour).UTC().Format(time.RFC3339),
		}
		for key, value := range shared {
			if _, err := c.store.Swap(t.Context(), key, 0, []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		const day = 24 * time.Hour
		after(89 * day)
		for _, o := range c.taken() {
			if o.name == "a.x.test" {
				t.Errorf("%v at %v, though nobody wants it", o, o.at)
			}
		}
		c.served("a.x.test")
		if _, ok := c.nodes["hk1"].Status("a.x.test"); ok {
			t.Error("it still has a status")
		}
		after(2 * day)
		for name, n := range c.nodes {
			if _, err := n.GetCertificate(hello("a.x.test")); err == nil {
				t.Errorf("%s serves it though it has expired", name)
			}
		}
		left, err := c.store.List(t.Context(), "certificates", true)
		if err != nil || slices.ContainsFunc(left, func(key string) bool { return strings.Contains(key, "a.x.test") }) {
			t.Errorf("left in storage: %v, %v", left, err)
		}
		for key := range shared {
			if v, err := c.store.Get(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left of what nodes share: %s: %s, %v", key, v.Data, err)
			}
		}
		c.served("b.x.test")
	})
}

// A name that is wanted again while its certificate holds is taken up where it was.
func TestNameWantedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1")
		defer c.close()
		c.want("a.x.test")
		after(time.Minute)
		c.taken()
		c.want()
		after(time.Hour)
		c.want("a.x.test")
		after(time.Hour)
		c.says("a.x.test", "obtained until ")
		if again := c.taken(); len(again) > 0 {
			t.Errorf("orders: %v", again)
		}
	})
}

// What an operator brings comes first while it holds, for all names in it.
func TestImported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2")
		defer c.close()
		c.want("a.x.test", "*.x.test")
		after(time.Minute)
		c.taken()
		put(t, c.store, certs.Imported, "a.x.test", 60*24*time.Hour, "c.y.test", "*.z.test")
		synctest.Wait()
		own := c.served("a.x.test")
		if len(own.DNSNames) != 3 {
			t.Fatalf("a.x.test gets the certificate of %v, want the imported one", own.DNSNames)
		}
		for _, host := range []string{"c.y.test", "any.z.test"} {
			if !c.served(host).Equal(own) {
				t.Errorf("%s gets another certificate", host)
			}
		}
		if got := c.served("b.x.test").DNSNames; len(got) != 1 || got[0] != "*.x.test" {
			t.Errorf("b.x.test gets the certificate of %v, want the wildcard", got)
		}
		after(61 * 24 * time.Hour) // the authority's certificates were renewed on day 60
		c.says("a.x.test", "obtained until ")
		if got := c.served("a.x.test"); got.Equal(own) || time.Until(got.NotAfter) < 0 {
			t.Errorf("a.x.test gets the certificate until %v", got.NotAfter)
		}
		if _, err := c.store.Stat(t.Context(), certs.FolderOf(certs.Imported, "a.x.test")); err != nil {
			t.Errorf("what was imported is gone: %v", err)
		}
	})
}

// What was imported and deleted gives way to what an authority issued.
func TestImportTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1")
		defer c.close()
		put(t, c.store, certs.Imported, "a.x.test", 60*24*time.Hour, "b.x.test")
		c.want("a.x.test")
		after(time.Hour)
		if n := len(c.taken()); n > 0 {
			t.Errorf("%d orders for a name that has an imported certificate", n)
		}
		imported := c.served("b.x.test")
		if err := c.store.Delete(t.Context(), certs.FolderOf(certs.Imported, "a.x.test")); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		if got := c.served("a.x.test"); got.Equal(imported) {
			t.Error("it is still served")
		}
		if got := c.served("b.x.test"); !got.Equal(imported) {
			t.Error("b.x.test, which has no other, lost it")
		}
	})
}

// What is torn or corrupt is told of and not used, and harms nothing else.
func TestTornEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2")
		defer c.close()
		c.want("a.x.test", "b.x.test")
		after(time.Minute)
		good := c.served("a.x.test")
		chain, key := newPair(t, time.Hour, "other.x.test")
		folder := certs.FolderOf("ca", "a.x.test") + "/a.x.test"
		old, err := c.store.Load(t.Context(), folder+".crt")
		if err != nil {
			t.Fatal(err)
		}
		for _, torn := range [][]byte{[]byte("-----BEGIN"), nil, {0}, key, chain} {
			c.store.Tear(folder+".crt", torn)
			synctest.Wait()
			c.says("a.x.test", "obtained until ", "stored")
			if got := c.served("a.x.test"); !got.Equal(good) {
				t.Errorf("with %.20q: another certificate is served", torn)
			}
			c.says("b.x.test", "obtained until ")
		}
		c.store.Tear(folder+".crt", old)
		synctest.Wait()
		for node, n := range c.nodes {
			if s, _ := n.Status("a.x.test"); s.Err != nil {
				t.Errorf("%s says of what is whole again: %v", node, s)
			}
		}
	})
}

// With the store away a node serves what is on its shelf, and says what fails.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.list = []string{"hk1"}
		defer c.close()
		put(t, c.store, "ca", "a.x.test", 90*24*time.Hour)
		c.store.Fail(errors.New("etcd is away"))
		c.start("hk1")
		if _, err := c.nodes["hk1"].GetCertificate(hello("a.x.test")); err != nil {
			t.Errorf("before anybody said that it is wanted: %v", err)
		}
		c.want("a.x.test", "b.x.test")
		after(time.Minute)
		c.served("a.x.test")
		c.says("a.x.test", "obtained until ")
		c.says("b.x.test", "failed: ", "etcd is away", "next attempt at ")
		c.store.Fail(nil)
		after(2 * time.Minute)
		c.says("b.x.test", "obtained until ")
	})
}

// A newer certificate is served by every node as soon as it is stored.
func TestDistribution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		c.want("*.x.test")
		after(time.Minute)
		before := c.served("a.x.test")
		now := time.Now()
		put(t, c.store, "ca", "*.x.test", 90*24*time.Hour)
		synctest.Wait()
		if c.served("a.x.test").Equal(before) {
			t.Error("the old one is served")
		}
		if took := time.Since(now); took > 0 {
			t.Errorf("it took %v: something waits for a timer", took)
		}
	})
}

// A node that dies after it has stored a certificate leaves the note that it is
// at work. Nobody goes by that, and another node takes it away.
func TestNoteOfADeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2", "sg1")
		defer c.close()
		key := certs.AttemptsKey("a.x.test")
		began := time.Now()
		note := fmt.Sprintf(`{"node":"dead","began":%q,"ended":%[1]q,"failures":3,"err":"the zone is gone","failed_at":"dead","next":%q}`,
			began.Format(time.RFC3339Nano), began.Add(24*time.Hour).Format(time.RFC3339))
		if _, err := c.store.Swap(t.Context(), key, 0, []byte(note)); err != nil {
			t.Fatal(err)
		}
		c.want("a.x.test")
		after(time.Second)
		c.says("a.x.test", "failed: dead: the zone is gone; next attempt at ")
		put(t, c.store, "ca", "a.x.test", 90*24*time.Hour)
		after(time.Second)
		for node, n := range c.nodes {
			if s, _ := n.Status("a.x.test"); s.Trouble() || s.State != certs.StateObtained {
				t.Errorf("%s: %v, want nothing of what was before", node, s)
			}
		}
		after(2 * time.Minute)
		if v, there := c.store.Peek(key); there {
			t.Errorf("the note is still there: %s", v.Data)
		}
		if orders := c.taken(); len(orders) > 0 {
			t.Errorf("orders: %v", orders)
		}
	})
}
