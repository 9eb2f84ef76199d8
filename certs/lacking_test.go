package certs_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

type inMemory = certstest.Store // embedded by that name, it hides no method

// blind is the store as a node has it that lacks the cluster key.
type blind struct {
	*inMemory
	lacks atomic.Bool
}

func (b *blind) Lacking(string) error {
	if b.lacks.Load() {
		return errors.New("this node lacks the cluster key abc")
	}
	return nil
}

// A node that lacks the key leaves orders to the others, and says so itself alone.
func TestNodeWithoutTheKeyStandsBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "dark", "hk1", "hk2")
		defer c.close()
		c.nodes["dark"].stop()
		store := &blind{inMemory: c.store}
		store.lacks.Store(true)
		dark := c.start("dark", func(cfg *certs.Config) { cfg.Store = store })
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("n%d.x.test", i))
		}
		c.want(names...)
		after(5 * time.Second)
		if s, _ := dark.Status(names[0]); s.String() != "failed on this node: this node lacks the cluster key abc" {
			t.Errorf("the node without the key says %q", s)
		}
		after(2 * time.Minute)
		for _, o := range c.taken() {
			if o.node == "dark" {
				t.Errorf("an order by the node without the key: %v", o)
			}
		}
		for _, name := range names {
			c.served(name)
			s, _ := c.nodes["hk1"].Status(name)
			if s.Trouble() {
				t.Errorf("a node that has the key says %v", s)
			}
			if s, _ = dark.Status(name); !s.Trouble() || !strings.HasSuffix(s.String(), "; on this node: this node lacks the cluster key abc") {
				t.Errorf("the node without the key says %v", s)
			}
		}
		if log := dark.log.take(); log != "" {
			t.Errorf("the node without the key logs %s", log)
		}
		store.lacks.Store(false)
		c.want(append(names, "late.x.test")...)
		after(time.Minute)
		c.says("late.x.test", "obtained until ")
	})
}

// A failure that was shared although there is a certificate, and nothing due, is no
// trouble of the name's, and goes.
func TestFailureWithoutNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "hk1", "hk2")
		defer c.close()
		c.want("a.x.test")
		after(time.Minute)
		now := time.Now().UTC().Format(time.RFC3339)
		data := fmt.Sprintf(`{"node":"hk3","began":%q,"ended":%[1]q,"failures":1,"err":"this node lacks the key","failed_at":"hk3","next":%[1]q}`, now)
		if _, err := c.store.Swap(t.Context(), certs.AttemptsKey("a.x.test"), 0, []byte(data)); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		for node, n := range c.nodes {
			if s, _ := n.Status("a.x.test"); s.Trouble() {
				t.Errorf("%s says %v", node, s)
			}
		}
		after(10 * time.Minute)
		if _, there := c.store.Peek(certs.AttemptsKey("a.x.test")); there {
			t.Error("it is still kept")
		}
	})
}
