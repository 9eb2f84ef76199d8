package dns

import (
	"net/http"
	"time"
)

// ForTest makes p give up on a call after limit and pause that long between calls.
func (p *Provider) ForTest(limit, pause time.Duration) *Provider {
	p.policy.limit = limit
	p.policy.pause = func(int) time.Duration { return pause }
	return p
}

// OverCloudflare makes p send its requests through rt.
func (p *Provider) OverCloudflare(set Settings, rt http.RoundTripper) *Provider {
	p.driver = cloudflareVia(set, rt)
	return p
}

// Stuck returns how many detached calls have not returned.
func (p *Provider) Stuck() int { return int(p.stuck.Load()) }

// MaxStuck is the bound on what Stuck returns.
const MaxStuck = maxStuck

// DefaultPauses returns the pauses of the policy that New sets.
func DefaultPauses() []time.Duration {
	p := defaultPolicy()
	var all []time.Duration
	for n := 1; n < p.attempts; n++ {
		all = append(all, p.pause(n))
	}
	return all
}
