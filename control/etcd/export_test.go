package etcd

import "time"

// SetPace shortens how long a client waits, for tests of what it does then.
func (c *Client) SetPace(heartbeat, frozen, request time.Duration) {
	c.pace.heartbeat, c.pace.frozen, c.pace.request = heartbeat, frozen, request
	c.pace.retryMin, c.pace.retryMax = 5*time.Millisecond, 100*time.Millisecond
}

// TakeWhole has answers of a watch that are larger come in fragments.
func (c *Client) TakeWhole(bytes int) { c.whole = bytes }

// EndYouth has the sessions of c no longer give up where their name is taken.
func (c *Client) EndYouth() { c.pace.newcomer = 0 }

// ElectSooner has members of clusters on one machine notice sooner that one is
// gone. It is to be called before any is started.
func ElectSooner() { memberTick = 50 * time.Millisecond }

// KeepPlain bounds the plain verdicts to fewer than MaxPlain.
func (v *Verdicts) KeepPlain(most int) { v.plain.most = most }

// Exhaust has all verdicts that say applied@ left out from now on, as in a row of
// edits.
func (v *Verdicts) Exhaust() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.plain.rate.used, v.notes.rate.used = 1e18, 1e18
	v.plain.rate.seen, v.notes.rate.seen = time.Now(), time.Now()
}
