package tlskeys_test

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/tlskeys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// storage keeps values as etcd does, in memory.
type storage struct {
	mu     sync.Mutex // guards the following
	rev    int64
	values map[string]certs.Value
	views  []*view
}

// view is storage as one node sees it: what it has in memory stays while it is
// away.
type view struct {
	of *storage
	certs.Watchers

	mu    sync.Mutex // guards the following
	away  bool
	known map[string]certs.Value
}

var errAway = errors.New("etcd does not answer")

func (s *storage) view() *view {
	v := &view{of: s, known: map[string]certs.Value{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.views = append(s.views, v)
	return v
}

func (v *view) isAway() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.away
}

func (v *view) setAway(away bool) {
	v.mu.Lock()
	v.away = away
	v.mu.Unlock()
	if !away {
		v.refresh()
	}
}

func (v *view) refresh() {
	v.of.mu.Lock()
	values := map[string]certs.Value{}
	for key, value := range v.of.values {
		values[key] = value
	}
	v.of.mu.Unlock()
	v.mu.Lock()
	v.known = values
	v.mu.Unlock()
	v.Tell("shared/tickets", "shared/ech")
}

func (v *view) Get(_ context.Context, key string) (certs.Value, error) {
	if v.isAway() {
		return certs.Value{}, errAway
	}
	v.of.mu.Lock()
	defer v.of.mu.Unlock()
	value, ok := v.of.values[key]
	if !ok {
		return certs.Value{}, fs.ErrNotExist
	}
	return value, nil
}

func (v *view) Peek(key string) (certs.Value, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	value, ok := v.known[key]
	return value, ok
}

func (v *view) Swap(_ context.Context, key string, since int64, data []byte) (int64, error) {
	if v.isAway() {
		return 0, errAway
	}
	rev, err := v.of.put(key, since, data)
	return rev, err
}

func (s *storage) put(key string, since int64, data []byte) (int64, error) {
	s.mu.Lock()
	if s.values[key].Rev != since {
		s.mu.Unlock()
		return 0, certs.ErrSwapped
	}
	s.rev++
	if s.values == nil {
		s.values = map[string]certs.Value{}
	}
	s.values[key] = certs.Value{Data: data, Rev: s.rev, Modified: time.Now()}
	if data == nil {
		delete(s.values, key)
	}
	rev, views := s.rev, s.views
	s.mu.Unlock()
	for _, v := range views {
		if !v.isAway() {
			v.refresh()
		}
	}
	return rev, nil
}

func (v *view) WatchShared(_ string, changed func(string)) (stop func()) {
	return v.Add(func(keys []string) {
		for _, key := range keys {
			changed(key)
		}
	})
}

// server is a node as far as tickets go.
type server struct {
	*view
	period time.Duration // 0: the default

	mu   sync.Mutex // guards keys
	keys [][32]byte
}

func (s *server) use(keys [][32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// seals returns the key that seals.
func (s *server) seals() [32]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[0]
}

func (s *server) opens(key [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k == key {
			return true
		}
	}
	return false
}

// cluster runs nodes until the test ends.
func cluster(t *testing.T, n int) (*storage, []*server) {
	s := &storage{}
	nodes := make([]*server, n)
	for i := range nodes {
		nodes[i] = &server{view: s.view()}
		nodes[i].start(t)
	}
	return s, nodes
}

func (s *server) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	k := tlskeys.New(tlskeys.Config{Shared: s.view, Period: s.period, UseTickets: s.use})
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

const period = tlskeys.DefaultPeriod

// TestEveryNodeOpensWhatAnyHasSealed goes through five days with three nodes, the
// third of which is away for a good part of each.
func TestEveryNodeOpensWhatAnyHasSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := cluster(t, 3)
		time.Sleep(time.Minute)
		synctest.Wait()
		type use struct{ first, last time.Time }
		used := map[[32]byte]*use{}
		for hour := range 5 * 24 {
			nodes[2].setAway(hour%24 > 4 && hour%24 < 14) // less than two periods
			time.Sleep(time.Hour)
			synctest.Wait()
			now := time.Now()
			for _, sealer := range nodes {
				key := sealer.seals()
				if used[key] == nil {
					used[key] = &use{first: now}
				}
				used[key].last = now
				for i, n := range nodes {
					if !n.opens(key) {
						t.Fatalf("hour %d: node %d does not open what another seals", hour, i)
					}
				}
			}
			for key, u := range used {
				for i, n := range nodes {
					switch opens := n.opens(key); {
					case i == 2: // it may keep for longer what it did not see replaced
					case !opens && now.Sub(u.last) < period-2*time.Hour:
						t.Errorf("hour %d: a ticket of %v ago is not opened by node %d", hour, now.Sub(u.last), i)
					case opens && now.Sub(u.first) > 3*period:
						t.Errorf("hour %d: a key that first sealed %v ago is still there on node %d", hour, now.Sub(u.first), i)
					}
				}
			}
		}
		if len(used) < 10 || len(used) > 16 {
			t.Errorf("%d keys sealed in five days", len(used))
		}
	})
}

// TestNodesGoOnWithoutStorage has none answer for three days.
func TestNodesGoOnWithoutStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := cluster(t, 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		shared := nodes[0].seals()
		if nodes[1].seals() != shared {
			t.Fatal("two nodes do not seal with the same key")
		}
		for _, n := range nodes {
			n.setAway(true)
		}
		time.Sleep(2*period - time.Hour)
		synctest.Wait()
		if nodes[0].seals() != nodes[1].seals() || nodes[0].seals() == shared {
			t.Error("the next key, which both knew, is not in use without storage")
		}
		next := nodes[0].seals()
		time.Sleep(2 * period)
		synctest.Wait()
		own := nodes[0].seals()
		if own == next || own == nodes[1].seals() || !nodes[0].opens(next) {
			t.Error("a key that nobody replaces is in use for ever, or its tickets are not opened")
		}
		time.Sleep(2 * period)
		synctest.Wait()
		if nodes[0].seals() == own || nodes[0].opens(next) || nodes[0].opens(shared) {
			t.Error("a node that is alone keeps its keys for ever")
		}
		own = nodes[0].seals()
		for _, n := range nodes {
			n.setAway(false)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		time.Sleep(2 * period / 8)
		synctest.Wait()
		if nodes[0].seals() != nodes[1].seals() || !nodes[0].opens(own) {
			t.Error("nodes do not come together again once storage answers, or forget what they sealed meanwhile")
		}
	})
}

// TestRestartKeepsKeys begins anew with what the node has of shared keys, storage
// being away.
func TestRestartKeepsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storage{}
		n := &server{view: s.view()}
		stop := n.start(t)
		before := n.seals()
		time.Sleep(time.Minute)
		synctest.Wait()
		shared := n.seals()
		if shared == before || !n.opens(before) {
			t.Error("the key of the first moments is not replaced by one for all nodes, or forgotten")
		}
		stop()
		n.setAway(true)
		again := &server{view: n.view}
		defer again.start(t)()
		if again.seals() != shared {
			t.Error("after a restart without storage another key seals")
		}
	})
}

// TestValuesOfNoUseAreLeftAlone serves on beside what nobody can read.
func TestValuesOfNoUseAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, nodes := cluster(t, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		seals := nodes[0].seals()
		for _, value := range []string{"", "nonsense", `{"version":2,"keys":[{}]}`, `{"version":1}`,
			`{"version":1,"keys":[{"from":"2030-01-02T00:00:00Z"},{"from":"2030-01-01T00:00:00Z"}]}`} {
			rev, err := s.put("shared/tickets", s.values["shared/tickets"].Rev, []byte(value))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * period / 2)
			synctest.Wait()
			if s.values["shared/tickets"].Rev != rev {
				t.Errorf("%q was overwritten", value)
			}
			if !nodes[0].opens(nodes[0].seals()) {
				t.Errorf("%q: no key", value)
			}
		}
		if nodes[0].opens(seals) {
			t.Error("keys are kept for ever while the shared value is of no use")
		}
	})
}

// TestKeysRotateOnTime has one node rotate short-lived keys: each at its time.
func TestKeysRotateOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storage{}
		n := &server{view: s.view()}
		n.period = 20 * time.Second
		n.start(t)
		time.Sleep(3 * time.Second)
		for range 50 {
			before := n.seals()
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if n.seals() == before || !n.opens(before) {
				t.Fatal("a key did not make room for the next one in time, or was forgotten at once")
			}
		}
	})
}
