package fleet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// cluster is a situation in the making, each node with one address.
type cluster struct {
	nodes []string
	sees  map[string]map[string]int // by voter and node: 1 up, -1 down
}

func newCluster(n int) *cluster {
	c := &cluster{sees: map[string]map[string]int{}}
	for i := range n {
		c.nodes = append(c.nodes, fmt.Sprintf("n%03d", i))
	}
	for _, node := range c.nodes {
		for _, w := range watchersOf(node, c.nodes) {
			c.set(w, node, 1)
		}
	}
	return c
}

func (c *cluster) set(voter, node string, vote int) {
	if c.sees[voter] == nil {
		c.sees[voter] = map[string]int{}
	}
	c.sees[voter][node] = vote
}

// all has each watcher for which is says so vote alike.
func (c *cluster) all(vote int, is func(voter, node string) bool) {
	for voter, peers := range c.sees {
		for node := range peers {
			if is(voter, node) {
				peers[node] = vote
			}
		}
	}
}

func subjectFor(node string) string { return node + " 203.0.113.1" }

func (c *cluster) situation() *situation {
	s := &situation{nodes: slices.Clone(c.nodes), views: map[string]*View{}}
	for _, n := range s.nodes {
		s.subjects = append(s.subjects, subjectFor(n))
	}
	for voter, peers := range c.sees {
		v := &View{Down: map[string]string{}}
		for node, vote := range peers {
			switch vote {
			case 1:
				v.Up = append(v.Up, subjectFor(node))
			case -1:
				v.Down[subjectFor(node)] = "no answer"
			}
		}
		v.sort()
		s.views[voter] = v
	}
	return s
}

// out returns which nodes are out.
func (j *judge) outNodes() []string {
	nodes := []string{}
	for subject := range j.out {
		nodes = append(nodes, nodeOf(subject))
	}
	slices.Sort(nodes)
	return nodes
}

// settle decides until nothing is due.
func settle(j *judge, now time.Time, s *situation) time.Time {
	for {
		next := j.decide(now, s)
		if next.IsZero() {
			return now
		}
		now = next
	}
}

func TestWhoIsOut(t *testing.T) {
	side := func(nodes ...int) func(string) bool {
		return func(node string) bool {
			var i int
			fmt.Sscanf(node, "n%d", &i)
			return slices.Contains(nodes, i)
		}
	}
	split := func(c *cluster, nodes ...int) {
		in := side(nodes...)
		c.all(-1, func(voter, node string) bool { return in(voter) != in(node) })
	}
	for _, tc := range []struct {
		name string
		n    int
		make func(c *cluster)
		want []string
		wary bool
	}{
		{"one node", 1, func(*cluster) {}, nil, false},
		{"of two nobody can tell who is right", 2, func(c *cluster) { c.set("n000", "n001", -1) }, nil, false},
		{"of two that do not see each other either", 2, func(c *cluster) { split(c, 0) }, nil, false},
		{"one of three dies", 3, func(c *cluster) { c.all(-1, func(_, node string) bool { return node == "n001" }) }, []string{"n001"}, false},
		{"one of three sees nobody", 3, func(c *cluster) { c.all(-1, func(voter, _ string) bool { return voter == "n001" }) }, nil, false},
		{"one of three is wrong about another", 3, func(c *cluster) { c.set("n001", "n002", -1) }, nil, false},
		{"one of three is cut off", 3, func(c *cluster) { split(c, 2) }, []string{"n002"}, false},
		{"three nodes see nobody", 3, func(c *cluster) { c.all(-1, func(_, _ string) bool { return true }) }, nil, false},
		{"one of four is cut off", 4, func(c *cluster) { split(c, 3) }, []string{"n003"}, false},
		{"four fall in halves", 4, func(c *cluster) { split(c, 0, 1) }, nil, true},
		{"two of five are cut off", 5, func(c *cluster) { split(c, 0, 1) }, []string{"n000", "n001"}, false},
		{"three of ten die", 10, func(c *cluster) { c.all(-1, func(_, node string) bool { return side(1, 2, 3)(node) }) }, []string{"n001", "n002", "n003"}, false},
		{"six of ten look dead", 10, func(c *cluster) { c.all(-1, func(_, node string) bool { return side(1, 2, 3, 4, 5, 6)(node) }) }, nil, true},
		{"two hundred, one dies", 200, func(c *cluster) { c.all(-1, func(_, node string) bool { return node == "n077" }) }, []string{"n077"}, false},
		{"two hundred, one sees nobody", 200, func(c *cluster) { c.all(-1, func(voter, _ string) bool { return voter == "n077" }) }, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, j := newCluster(tc.n), new(judge)
			now := settle(j, time.Unix(0, 0), c.situation())
			if len(j.out) > 0 {
				t.Fatalf("out before anything happened: %v", j.outNodes())
			}
			tc.make(c)
			now = settle(j, now, c.situation())
			if got := j.outNodes(); !slices.Equal(got, tc.want) {
				t.Errorf("out: %v, want %v", got, tc.want)
			}
			if j.wary != tc.wary {
				t.Errorf("wary: %t, want %t", j.wary, tc.wary)
			}
			// All is well again.
			settle(j, now, newCluster(tc.n).situation())
			if len(j.out) > 0 || j.wary {
				t.Errorf("still out: %v, wary: %t", j.outNodes(), j.wary)
			}
		})
	}
}

// Paths of one family that break put none of its addresses out, although those of
// both are no more than half; one node's that break do, in either family.
func TestNoFamilyIsEmptied(t *testing.T) {
	family := func(c *cluster, down func(voter, node string, six bool) bool) *situation {
		s := &situation{nodes: c.nodes, views: map[string]*View{}}
		for _, n := range c.nodes {
			s.subjects = append(s.subjects, n+" 2001:db8::1", n+" 203.0.113.1")
			v := &View{Down: map[string]string{}}
			for _, peer := range c.nodes {
				if peer == n {
					continue
				}
				for _, subject := range []string{peer + " 2001:db8::1", peer + " 203.0.113.1"} {
					if down(n, peer, isSix(subject)) {
						v.Down[subject] = "no answer"
					} else {
						v.Up = append(v.Up, subject)
					}
				}
			}
			v.sort()
			s.views[n] = v
		}
		return s
	}
	for _, n := range []int{3, 4, 5, 8} {
		c := newCluster(n)
		for _, broken := range []bool{true, false} { // IPv6, IPv4
			j := new(judge)
			settle(j, time.Unix(0, 0), family(c, func(_, _ string, six bool) bool { return six == broken }))
			if len(j.out) > 0 || !j.wary {
				t.Errorf("of %d nodes without paths of one family (IPv6: %t) %v are out, wary: %t", n, broken, j.outNodes(), j.wary)
			}
			settle(j, time.Unix(0, 0), family(c, func(_, node string, six bool) bool { return node == "n001" && six == broken }))
			if got := slices.Collect(maps.Keys(j.out)); len(got) != 1 || nodeOf(got[0]) != "n001" || isSix(got[0]) != broken || j.wary {
				t.Errorf("of %d nodes one of which has lost one family (IPv6: %t) %v are out, wary: %t", n, broken, got, j.wary)
			}
		}
	}
}

// A node that is out comes back after votes have been for it for a while, and not
// because one of its watchers wavers.
func TestVotersThatWaverChangeNothing(t *testing.T) {
	c, j := newCluster(5), new(judge)
	now := time.Unix(0, 0)
	c.all(-1, func(_, node string) bool { return node == "n004" })
	now = settle(j, now, c.situation())
	for i := range 20 { // two of four, back and forth
		c.set("n000", "n004", 1-i%2*2)
		c.set("n001", "n004", 1-i%2*2)
		now = now.Add(10 * time.Second)
		now = settle(j, now, c.situation())
		if got := j.outNodes(); !slices.Equal(got, []string{"n004"}) {
			t.Fatalf("after %d changes out: %v", i, got)
		}
	}
	c.set("n000", "n004", 1)
	c.set("n001", "n004", 1)
	c.set("n002", "n004", 1)
	next := j.decide(now, c.situation())
	if next.Sub(now) != backAfter || len(j.out) != 1 {
		t.Fatalf("with three of four votes: out %v, again after %v", j.outNodes(), next.Sub(now))
	}
	c.set("n002", "n004", -1)
	if next = j.decide(now.Add(backAfter/2), c.situation()); !next.IsZero() {
		t.Fatalf("a vote was taken back: again at %v", next)
	}
	c.set("n002", "n004", 1)
	now = settle(j, now.Add(backAfter), c.situation())
	if len(j.out) != 0 {
		t.Errorf("with three of four votes it stays out")
	}
	// And stays in while no more than half vote against it.
	c.set("n000", "n004", -1) // n003 never changed its mind
	settle(j, now, c.situation())
	if len(j.out) != 0 {
		t.Errorf("out by two of four votes")
	}
}

// One that sees nobody does not keep out who is well again for another, and brings
// nobody back whom no one sees.
func TestBlindVoteKeepsNobodyOut(t *testing.T) {
	c, j := newCluster(3), new(judge)
	c.all(-1, func(_, node string) bool { return node == "n000" })
	now := settle(j, time.Unix(0, 0), c.situation())
	for _, peer := range []string{"n000", "n001"} { // n002 is cut off
		c.set("n002", peer, -1)
	}
	if now = settle(j, now, c.situation()); !slices.Equal(j.outNodes(), []string{"n000"}) {
		t.Fatalf("nobody sees n000, and out are %v", j.outNodes())
	}
	c.set("n001", "n000", 1)
	settle(j, now, c.situation())
	if got := j.outNodes(); slices.Contains(got, "n000") {
		t.Errorf("n001 sees n000 and n002 sees nobody, and out are %v", got)
	}
}

// drift changes a cluster at random.
func drift(c *cluster, rng *rand.Rand) {
	for range 1 + rng.IntN(4) {
		voter := c.nodes[rng.IntN(len(c.nodes))]
		node := c.nodes[rng.IntN(len(c.nodes))]
		switch rng.IntN(6) {
		case 0: // a node dies for everybody
			c.all(-1, func(_, n string) bool { return n == node })
		case 1: // or is well
			c.all(1, func(_, n string) bool { return n == node })
		case 2: // a voter sees nobody
			c.all(-1, func(v, _ string) bool { return v == voter })
		case 3: // has no opinion
			delete(c.sees, voter)
		default:
			if voter != node {
				c.set(voter, node, rng.IntN(3)-1)
			}
		}
	}
}

// TestJudgeKeepsItsWord holds decisions against what is promised, in words of
// their own, over random histories.
func TestJudgeKeepsItsWord(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c, j := newCluster(1+rng.IntN(12)), new(judge)
		now := time.Unix(0, 0)
		for step := range 60 {
			drift(c, rng)
			now = now.Add(time.Duration(rng.Int64N(int64(3 * time.Second))))
			before := maps.Clone(j.out)
			s := c.situation()
			j.decide(now, s)
			checkPromises(t, c, before, j)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func checkPromises(t *testing.T, c *cluster, before map[string]*sentence, j *judge) {
	t.Helper()
	grew := false
	for subject := range j.out {
		if before[subject] != nil {
			continue
		}
		grew = true
		against, watchers := 0, watchersOf(nodeOf(subject), c.nodes)
		for _, w := range watchers {
			seesSomebody := slices.Contains(slices.Collect(maps.Values(c.sees[w])), 1)
			if c.sees[w][nodeOf(subject)] == -1 && seesSomebody {
				against++
			}
		}
		if against < 2 || 2*against <= len(watchers) {
			t.Errorf("%s went out by %d votes of %d", subject, against, len(watchers))
		}
	}
	if grew && 2*len(j.out) > len(c.nodes) {
		t.Errorf("%d of %d are out", len(j.out), len(c.nodes))
	}
	for subject := range before {
		if j.out[subject] != nil {
			continue
		}
		up, against, blind, watchers := 0, 0, 0, watchersOf(nodeOf(subject), c.nodes)
		for _, w := range watchers {
			switch c.sees[w][nodeOf(subject)] {
			case 1:
				up++
			case -1:
				if slices.Contains(slices.Collect(maps.Values(c.sees[w])), 1) {
					against++
				} else {
					blind++
				}
			}
		}
		if up == 0 {
			against += blind
		}
		if against > 0 && 2*up <= len(watchers) {
			t.Errorf("%s came back by %d votes of %d, and %d against it", subject, up, len(watchers), against)
		}
	}
}

// One node, whatever it says, puts nobody out where all others are well.
func TestNobodyDecidesAlone(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		c, j := newCluster(1+rng.IntN(40)), new(judge)
		liar := c.nodes[rng.IntN(len(c.nodes))]
		for range 10 {
			for _, node := range c.nodes {
				if node != liar {
					c.set(liar, node, rng.IntN(3)-1)
				}
			}
			j.decide(time.Unix(0, 0), c.situation())
			if len(j.out) > 0 {
				t.Fatalf("seed %d: of %d nodes, %s alone put out %v", seed, len(c.nodes), liar, j.outNodes())
			}
		}
	}
}

func FuzzJudge(f *testing.F) {
	f.Add(uint8(3), []byte{0, 1, 1, 2, 1, 1, 255, 3})
	f.Add(uint8(200), []byte("whatever is said"))
	f.Fuzz(func(t *testing.T, n uint8, moves []byte) {
		c, j := newCluster(1+int(n)%24), new(judge)
		now := time.Unix(0, 0)
		for len(moves) >= 3 {
			voter, node := c.nodes[int(moves[0])%len(c.nodes)], c.nodes[int(moves[1])%len(c.nodes)]
			switch moves[2] % 5 {
			case 3:
				c.all(-1, func(_, n string) bool { return n == node })
			case 4:
				delete(c.sees, voter)
			default:
				if voter != node {
					c.set(voter, node, int(moves[2]%3)-1)
				}
			}
			now = now.Add(time.Duration(moves[2]) * 20 * time.Millisecond)
			moves = moves[3:]
			before := maps.Clone(j.out)
			j.decide(now, c.situation())
			checkPromises(t, c, before, j)
		}
	})
}

func FuzzViewAndCard(f *testing.F) {
	f.Add([]byte(`{"up":["b 1.2.3.4","a 1.2.3.4"],"down":{"c ::1":"no answer"}}`))
	f.Add([]byte(`{"state":"ready","addresses":["203.0.113.7"],"weight":-4}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if v, err := ParseView(text); err == nil && !slices.IsSorted(v.Up) {
			t.Error("a view without order")
		}
		if c, err := ParseCard(text); err == nil && (c.Weight < 1 || c.Weight > MaxWeight || c.State == "") {
			t.Errorf("a card of weight %d, state %q", c.Weight, c.State)
		}
		_, _ = ParseDrain(text)
	})
}

func TestWatchersAreSpreadAndStay(t *testing.T) {
	c := newCluster(200)
	load := map[string]int{}
	for _, node := range c.nodes {
		ws := watchersOf(node, c.nodes)
		if len(ws) != watchersEach || slices.Contains(ws, node) || !slices.IsSorted(ws) {
			t.Fatalf("%s is watched by %v", node, ws)
		}
		for _, w := range ws {
			load[w]++
		}
		// One that goes changes who watches only where it did.
		without := slices.DeleteFunc(slices.Clone(c.nodes), func(n string) bool { return n == "n100" })
		if node != "n100" {
			now := watchersOf(node, without)
			kept := 0
			for _, w := range ws {
				if slices.Contains(now, w) {
					kept++
				}
			}
			if kept < watchersEach-1 || !slices.Contains(ws, "n100") && kept < watchersEach {
				t.Errorf("%s: %v became %v", node, ws, now)
			}
		}
	}
	for _, node := range c.nodes {
		if load[node] > 3*watchersEach {
			t.Errorf("%s watches %d nodes", node, load[node])
		}
	}
}

func TestPulse(t *testing.T) {
	bad := fmt.Errorf("no answer")
	at := time.Unix(0, 0)
	p := new(pulse)
	look := func(took time.Duration, err error) bool {
		began := at
		at = at.Add(took)
		changed := p.note(began, at, err)
		at = began.Add(max(took, time.Second))
		return changed
	}
	if !look(0, nil) || !p.up {
		t.Fatal("the first look that went well is not believed")
	}
	for range 3 { // what is over within two seconds is no news
		first, second := look(0, bad), look(0, bad)
		if first || second || look(0, nil) || !p.up {
			t.Fatal("two failures within a second are believed")
		}
	}
	from := at
	for p.up {
		look(0, bad)
	}
	if took := at.Sub(from); took > 4*time.Second {
		t.Errorf("refused connections took %v", took)
	}
	if p.why != "no answer" {
		t.Errorf("why: %q", p.why)
	}
	from = at
	for !p.up {
		look(0, nil)
	}
	if took := at.Sub(from); took > 4*time.Second {
		t.Errorf("to come back took %v", took)
	}
	from = at
	for p.up {
		look(2*time.Second, bad)
	}
	if took := at.Sub(from); took > 5*time.Second {
		t.Errorf("silence took %v", took)
	}
	var last time.Duration
	for range 8 { // one that falls over and over
		from = at
		for !p.up {
			look(0, nil)
		}
		if took := at.Sub(from); took < last || took > calmMost+time.Second {
			t.Errorf("to come back took %v, and %v before", took, last)
		} else {
			last = took
		}
		for p.up {
			look(0, bad)
		}
	}
	if last < calmMost {
		t.Errorf("one that falls over and over is back after %v", last)
	}
	for !p.up {
		look(0, nil)
	}
	at = at.Add(calmAfter)
	for p.up {
		look(0, bad)
	}
	from = at
	for !p.up {
		look(0, nil)
	}
	if took := at.Sub(from); took > 4*time.Second {
		t.Errorf("after a calm time, to come back took %v", took)
	}
}
