package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// fault is something that befalls a cluster. inflict does it and returns how it
// is put right again.
type fault struct {
	name    string
	inflict func(c *chaos, rnd *rand.Rand) (heal func())
}

var chaosDeck = []fault{
	{"a member is killed", func(c *chaos, rnd *rand.Rand) func() { return c.killMembers(c.members[rnd.IntN(3)]) }},
	{"the leader is killed", func(c *chaos, _ *rand.Rand) func() { return c.killMembers(c.leader()) }},
	{"the majority is killed", func(c *chaos, rnd *rand.Rand) func() {
		i := rnd.IntN(3)
		return c.killMembers(c.members[i], c.members[(i+1)%3])
	}},
	{"all members are killed", func(c *chaos, _ *rand.Rand) func() { return c.unheard(c.killMembers(c.members[:]...), 0, 1, 2) }},
	{"a member stands still", func(c *chaos, rnd *rand.Rand) func() { return c.pause(c.members[rnd.IntN(3)]) }},
	{"the leader stands still", func(c *chaos, _ *rand.Rand) func() { return c.pause(c.leader()) }},
	{"all members stand still", func(c *chaos, _ *rand.Rand) func() { return c.unheard(c.pause(c.members[:]...), 0, 1, 2) }},
	{"a member is cut off", func(c *chaos, rnd *rand.Rand) func() { return c.cutOff(c.members[rnd.IntN(3)], true) }},
	{"the leader speaks to nobody and hears all", func(c *chaos, _ *rand.Rand) func() { return c.cutOff(c.leader(), false) }},
	{"a node is cut off from etcd", func(c *chaos, rnd *rand.Rand) func() {
		i := rnd.IntN(3)
		return c.unheard(c.cutOffNode(i), i)
	}},
	{"a node is cut off while etcd forgets", (*chaos).compactBehind},
	{"the leader moves", (*chaos).moveLeader},
	{"a member's disk is full", (*chaos).fillDisk},
	{"etcd's space is used up", (*chaos).exhaust},
	{"a member's clock jumps", (*chaos).jump},
	{"all mappings are deleted by mistake", (*chaos).wipe},
	{"many routes are deleted on purpose", (*chaos).wipeRoutes},
	{"nonsense is written everywhere", (*chaos).scribble},
	{"a node stands still", (*chaos).pauseNode},
}

func (c *chaos) killMembers(ms ...*member) func() {
	for _, m := range ms {
		m.kill()
	}
	return func() {
		for _, m := range ms {
			m.start(0)
		}
	}
}

func (c *chaos) pause(ms ...*member) func() {
	for _, m := range ms {
		m.signal(syscall.SIGSTOP)
	}
	return func() {
		for _, m := range ms {
			m.signal(syscall.SIGCONT)
		}
	}
}

// unheard waits until nodes say that they hear nothing of etcd.
func (c *chaos) unheard(heal func(), nodes ...int) func() {
	for _, i := range nodes {
		eventually(c.t, fmt.Sprintf("node %d notices that etcd is silent", i), func() error {
			if connected, _ := c.nodes[i].metric("sluice_etcd_connected "); connected != "0" {
				return errors.New("it does not")
			}
			return nil
		})
	}
	return heal
}

// cutOff has what a member sends vanish, and what is sent to it as well if both.
func (c *chaos) cutOff(m *member, both bool) func() {
	addr := memberAddr(m.i)
	others := map[*host]bool{}
	addrs := []string{operatorAddr}
	for i := range 3 {
		addrs = append(addrs, controlAddr(i))
		others[c.network.nodes[i]] = true
		if i != m.i {
			addrs = append(addrs, memberAddr(i))
			others[c.network.members[i]] = true
		}
	}
	m.host.lose(addrs...)
	if both {
		for other := range others {
			other.lose(addr)
		}
	}
	return func() {
		m.host.find(addrs...)
		if both {
			for other := range others {
				other.find(addr)
			}
		}
	}
}

// cutOffNode has what a node and the members send each other vanish.
func (c *chaos) cutOffNode(i int) func() {
	all := []string{memberAddr(0), memberAddr(1), memberAddr(2)}
	c.network.nodes[i].lose(all...)
	for _, m := range c.network.members {
		m.lose(controlAddr(i))
	}
	return func() {
		c.network.nodes[i].find(all...)
		for _, m := range c.network.members {
			m.find(controlAddr(i))
		}
	}
}

// compactBehind has etcd forget what a node has not seen.
func (c *chaos) compactBehind(rnd *rand.Rand) func() {
	heal := c.cutOffNode(rnd.IntN(3))
	return func() {
		c.compact()
		heal()
	}
}

// compact has etcd forget everything but what is.
func (c *chaos) compact() {
	c.t.Helper()
	eventually(c.t, "etcd forgets", func() error {
		_, rev, err := c.keys()
		if err == nil {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			defer cancel()
			_, err = c.etcd.Compact(ctx, rev, clientv3.WithCompactPhysical())
			if err != nil && strings.Contains(err.Error(), "has been compacted") {
				err = nil // by the attempt before, which took too long
			}
		}
		return err
	})
}

func (c *chaos) moveLeader(rnd *rand.Rand) func() {
	for range 3 {
		leader := c.leader()
		to, err := c.members[(leader.i+1+rnd.IntN(2))%3].status()
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		leader.client.MoveLeader(ctx, to.Header.MemberId) // it may have moved by itself
		cancel()
	}
	return func() {}
}

func (c *chaos) fillDisk(rnd *rand.Rand) func() {
	m := c.members[rnd.IntN(3)]
	m.fillDisk()
	return func() {
		m.freeDisk()
		m.kill() // it may have ended itself, or hang
		m.start(0)
	}
}

// exhaust writes, outside the prefix, until etcd takes nothing more.
func (c *chaos) exhaust(*rand.Rand) func() {
	const prefix = "/elsewhere/"
	big := strings.Repeat("x", 1<<20)
	eventually(c.t, "etcd's space is used up", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.etcd.Put(ctx, prefix, big); err == nil {
			return errors.New("it still takes keys")
		} else if !strings.Contains(err.Error(), "database space exceeded") {
			return err
		}
		return nil
	})
	return func() {
		c.compact()
		for _, m := range c.members {
			eventually(c.t, "a member gives back its space", func() error {
				ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
				defer cancel()
				_, err := m.client.Defragment(ctx, "http://"+net.JoinHostPort(memberAddr(m.i), "2379"))
				return err
			})
		}
		eventually(c.t, "etcd takes keys again", func() error {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			defer cancel()
			if _, err := c.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
				return err
			}
			_, err := c.etcd.Delete(ctx, prefix)
			return err
		})
	}
}

// jump has a member's clock be days ahead of what it was.
func (c *chaos) jump(rnd *rand.Rand) func() {
	m := c.members[rnd.IntN(3)]
	m.kill()
	m.start(time.Duration(1+rnd.IntN(100)) * 24 * time.Hour)
	return func() {
		m.kill()
		m.start(0) // and back
	}
}

// wipe deletes all mappings, and wants every node to hold that back. All are put
// again.
func (c *chaos) wipe(*rand.Rand) func() {
	c.mu.Lock() // edits would let some keys go
	keys, _, err := c.keys()
	if err != nil {
		c.t.Error(err)
	}
	ports, stable := map[string]string{}, c.traffic.stable()
	for key, value := range keys {
		if strings.HasPrefix(key, "ports/") && (value == stable[key] || !isNonsense(key, value)) {
			ports[key] = value
		}
	}
	c.deleteUnder("ports/")
	c.wantHeld()
	return func() {
		c.mustPut(ports)
		c.mu.Unlock()
	}
}

// wipeRoutes deletes routes; that it was meant is confirmed afterwards.
func (c *chaos) wipeRoutes(*rand.Rand) func() {
	c.mu.Lock()
	routes := map[string]string{}
	for i := range 30 {
		routes[fmt.Sprintf("routes/volatile%d", i)] = fmt.Sprintf(`{"host": "w%d.test", "respond": {}}`, i)
	}
	c.mustPut(routes)
	c.deleteUnder("routes/volatile")
	c.wantHeld()
	return c.mu.Unlock
}

func (c *chaos) deleteUnder(prefix string) {
	eventually(c.t, "etcd deletes", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		_, err := c.etcd.Delete(ctx, "/sluice/"+prefix, clientv3.WithPrefix())
		return err
	})
}

// wantHeld wants every node to hold deletions back.
func (c *chaos) wantHeld() {
	for i, n := range c.nodes {
		eventually(c.t, fmt.Sprintf("node %d holds deletions back", i), func() error {
			if held, _ := n.metric("sluice_control_held_keys "); held == "0" || held == "" {
				return errors.New("it holds none")
			}
			return nil
		})
	}
}

func (c *chaos) scribble(rnd *rand.Rand) func() {
	for range 100 {
		key, value := c.nonsense(rnd)
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		if _, err := c.etcd.Put(ctx, "/sluice/"+key, value); err != nil {
			c.t.Errorf("put %s: %v", key, err)
		}
		cancel()
	}
	return func() {}
}

// pauseNode stops a node while the others are asked.
func (c *chaos) pauseNode(rnd *rand.Rand) func() {
	i := rnd.IntN(3)
	c.nodes[i].signal(syscall.SIGSTOP)
	before := c.traffic.rounds[(i+1)%3].Load()
	eventually(c.t, "clients have been around another node", func() error {
		if c.traffic.rounds[(i+1)%3].Load() < before+3 {
			return errors.New("not yet")
		}
		return nil
	})
	c.nodes[i].signal(syscall.SIGCONT)
	return func() {}
}
