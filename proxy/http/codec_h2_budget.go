package http

import (
	"time"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2WorthyFrame is from how many bytes on a DATA frame is worth its overhead.
const h2WorthyFrame = 256

// h2BudgetKind is something that a client may do, but not for its own sake.
type h2BudgetKind uint8

const (
	budgetResets   h2BudgetKind = iota // streams reset by the client, or by us for its fault
	budgetSettings                     // SETTINGS
	budgetPings                        // PING
	budgetEmpty                        // DATA without content that does not end a stream
	budgetSmall                        // DATA with next to nothing in it
	budgetUpdates                      // WINDOW_UPDATE
	budgetOthers                       // PRIORITY, acknowledgements, frames that are not known
	numH2Budgets
)

// h2Rule says how many of a kind a client may send: burst at once, and then as
// many as time and work done bring in, up to burst again.
type h2Rule struct {
	reason                string // as the metric has it
	what                  string
	burst                 float64
	second                float64 // brought in by a second
	perExchange, perFrame float64 // by an exchange that came to its end, by a worthy DATA frame
}

// h2Rules leave room for what real clients do. Browsers reset the streams of a
// page that is left, gRPC sends a PING for each round trip with data, and a
// WINDOW_UPDATE for stream and connection goes with each DATA frame.
var h2Rules = [numH2Budgets]h2Rule{
	budgetResets:   {"resets", "streams are reset over and over", 200, 20, 1, 0},
	budgetSettings: {"settings", "SETTINGS are changed over and over", 32, 1, 0.1, 0},
	budgetPings:    {"pings", "there are too many PING frames", 128, 16, 2, 2},
	budgetEmpty:    {"empty_frames", "there are too many frames without content", 64, 8, 1, 0},
	budgetSmall:    {"small_frames", "DATA is mostly overhead", 4096, 256, 8, 1},
	budgetUpdates:  {"window_updates", "there are too many WINDOW_UPDATE frames", 1024, 64, 4, 4},
	budgetOthers:   {"other_frames", "there are too many frames that bring nothing", 256, 32, 8, 1},
}

// h2Abuses returns the reasons that tooMuch may be given.
func h2Abuses() []string {
	all := []string{"continuation", "header_bytes"}
	for i := range h2Rules {
		all = append(all, h2Rules[i].reason)
	}
	return all
}

// h2Budget is what is left of a kind.
type h2Budget struct {
	left  float64
	since time.Time // when it was filled up last
	work  h2Done    // then
}

func (c *h2DownConn) initBudgets() {
	now := time.Now()
	for i := range c.budgets {
		c.budgets[i] = h2Budget{left: h2Rules[i].burst, since: now}
	}
}

// spend takes one of a kind off its budget. A client that has none left is
// disconnected.
func (c *h2DownConn) spend(kind h2BudgetKind) error {
	b := &c.budgets[kind]
	if b.left--; b.left >= 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fillUp(kind)
}

// spendLocked is spend where c.mu is held.
func (c *h2DownConn) spendLocked(kind h2BudgetKind) error {
	b := &c.budgets[kind]
	if b.left--; b.left >= 0 {
		return nil
	}
	return c.fillUp(kind)
}

// fillUp brings in what time and work have earned. c.mu is held.
func (c *h2DownConn) fillUp(kind h2BudgetKind) error {
	b, rule := &c.budgets[kind], &h2Rules[kind]
	now := time.Now()
	earned := now.Sub(b.since).Seconds()*rule.second + float64(c.work.exchanges-b.work.exchanges)*rule.perExchange +
		float64(c.work.frames-b.work.frames)*rule.perFrame
	b.since, b.work = now, c.work
	if b.left = min(b.left+earned, rule.burst); b.left < 0 {
		return c.tooMuch(rule.reason, rule.what)
	}
	return nil
}

// spendData takes a DATA frame off the budgets that it belongs to.
func (c *h2DownConn) spendData(size int, end bool) error {
	switch {
	case end || size >= h2WorthyFrame:
		return nil
	case size == 0:
		return c.spend(budgetEmpty)
	}
	return c.spend(budgetSmall)
}

// tooMuch disconnects a client for a reason that is counted.
func (c *h2DownConn) tooMuch(reason, what string) error {
	c.conn.server.metrics.abused(c.conn.proto, reason)
	return &h2.ConnError{Code: h2.EnhanceYourCalm, What: what}
}
