package fleet

import "time"

// When a node says of an address that it is down, or up again. One lost packet
// or one slow answer says nothing: a SYN that was lost is sent again after a
// second.
const (
	downAfter = 2 * time.Second // of failures alone, from the begin of the first one
	downLooks = 2               // failures at least
	upAfter   = 2 * time.Second // of successes alone
	upLooks   = 2               // successes at least
	// An address that came back upAfter and fell again has to be well for twice as
	// long each time, up to calmMost, until it has been up for calmAfter.
	calmMost  = 30 * time.Second
	calmAfter = 5 * time.Minute
)

// pulse is what a node knows of one address that it looks at. The zero value
// knows nothing.
type pulse struct {
	known bool // whether up says anything
	up    bool
	why   string // it is down

	run   int       // looks in a row that contradict up
	since time.Time // when the first of those began
	falls int       // since it was calm
	rose  time.Time // when it came up last
}

// note takes in a look that began then and has ended now; err says how. It reports
// whether what is known is other than before.
func (p *pulse) note(began, now time.Time, err error) (changed bool) {
	if err == nil && !p.known {
		p.known, p.up, p.rose = true, true, now
		p.run = 0
		return true
	}
	if p.known && p.up == (err == nil) {
		p.run = 0
		return false
	}
	if p.run++; p.run == 1 {
		p.since = began
	}
	if err != nil {
		if p.run < downLooks || now.Sub(p.since) < downAfter {
			return false
		}
		p.fall(now, err)
		return true
	}
	if p.run < upLooks || now.Sub(p.since) < p.patience() {
		return false
	}
	p.up, p.why, p.run, p.rose = true, "", 0, now
	return true
}

func (p *pulse) fall(now time.Time, err error) {
	if p.up && now.Sub(p.rose) < calmAfter {
		p.falls++
	} else {
		p.falls = 0
	}
	p.known, p.up, p.why, p.run = true, false, err.Error(), 0
}

// patience is how long an address has to be well before it is called up.
func (p *pulse) patience() time.Duration {
	return min(upAfter<<min(max(p.falls-1, 0), 8), calmMost)
}
