package etcd

import (
	"sync"
	"time"
)

// State is what a Client knows of its watch, for readiness and for people.
// The zero value says that nothing has been heard yet.
type State struct {
	Connected bool      // the watch is loaded and has lately given a sign of life
	Revision  int64     // the last revision passed to Load or Change
	Cluster   uint64    // ID of the cluster that the last Load came from
	Heard     time.Time // when etcd last said anything on the watch
	Err       error     // why the watch was last lost; nil while it is connected
}

// State returns the state of the watch. It does not block.
func (c *Client) State() State {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	return c.state.State
}

// state is a State behind a mutex.
type state struct {
	mu sync.Mutex
	State
}

func (c *Client) noteHeard(seen int64) {
	now := time.Now()
	c.state.mu.Lock()
	c.state.Connected, c.state.Heard, c.state.Err = true, now, nil
	c.state.mu.Unlock()
	c.metrics.connected.Set(1)
	c.metrics.heard.Set(float64(now.UnixMilli()) / 1000)
	c.metrics.seen.Set(float64(seen))
}

func (c *Client) noteDelivered(rev int64) {
	c.state.mu.Lock()
	c.state.Revision = rev
	c.state.mu.Unlock()
	c.metrics.delivered.Set(float64(rev))
}

func (c *Client) noteCluster(id uint64) {
	c.state.mu.Lock()
	c.state.Cluster = id
	c.state.mu.Unlock()
}

func (c *Client) noteLost(err error) {
	c.state.mu.Lock()
	c.state.Connected, c.state.Err = false, err
	c.state.mu.Unlock()
	c.metrics.connected.Set(0)
}
