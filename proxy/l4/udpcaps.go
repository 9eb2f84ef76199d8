package l4

import (
	"net/netip"
	"sync"
)

// standing is how much is known of a session's client. What it sends may bear
// a false source: an answer proves nothing yet, but a client that goes on after
// one has most likely had it.
type standing uint8

const (
	unanswered  standing = iota // the backend has sent nothing yet
	unconfirmed                 // it has, and the client nothing since
	confirmed                   // both went on
	numWaiting  = int(confirmed)
)

// standingNames are the values of the metric label "state".
var standingNames = [numWaiting]string{"unanswered", "unconfirmed"}

// roster counts sessions, and has those that could make room for others in the
// order in which they came to their standing.
type roster struct {
	count   int
	waiting [numWaiting]sessionList
}

// sessionList is a list of sessions, linked by what is in them for it.
type sessionList struct{ first, last *session }

// The rosters that a session is in.
const (
	ofNode = iota
	ofPort
	ofClient
	numRosters
)

// membership is a session's part in the rosters, guarded by sessionCaps.mu.
type membership struct {
	rosters  [numRosters]*roster // nil: it is in none (any more)
	links    [numRosters]struct{ next, prev *session }
	standing standing
	client   netip.Addr // as sessionCaps.byClient has it
}

// sessionCaps bounds UDP sessions: all together, by client, and by port when
// room gets scarce. When there is none, the oldest session that nobody has
// answered yet makes room, so that floods with false sources push out each
// other and not those that are at work.
type sessionCaps struct {
	total, perClient int // fixed

	mu       sync.Mutex // guards the following fields
	node     roster
	byClient map[netip.Addr]*roster
	ports    int // that have sessions
}

// scarce is the part of the total that has to be free for ports to have as many
// sessions as they like.
const scarce = 8

// take enters s, of the given client on the port with the given roster. Where
// that is one too many it is refused, or victim has been taken out for it, to
// be stopped by the caller. The victim's standing is given with it.
func (c *sessionCaps) take(s *session, port *roster, client netip.Addr) (victim *session, was standing, ok bool) {
	client = countedAs(client)
	c.mu.Lock()
	defer c.mu.Unlock()
	if full := c.fullRoster(port, client); full != nil {
		if victim, was = full.oldest(); victim == nil {
			return nil, 0, false
		}
		c.remove(victim)
	}
	mine := c.byClient[client]
	if mine == nil {
		if c.byClient == nil {
			c.byClient = map[netip.Addr]*roster{}
		}
		mine = &roster{}
		c.byClient[client] = mine
	}
	if port.count == 0 {
		c.ports++
	}
	s.member = membership{rosters: [numRosters]*roster{&c.node, port, mine}, client: client}
	for i, r := range s.member.rosters {
		r.count++
		r.append(i, s)
	}
	return victim, was, true
}

// fullRoster returns the roster in which somebody has to make room for one more
// session, if there is one. c.mu is held.
func (c *sessionCaps) fullRoster(port *roster, client netip.Addr) *roster {
	if mine := c.byClient[client]; mine != nil && mine.count >= c.perClient {
		return mine
	}
	// A share is left for a port that has none yet.
	if c.node.count >= c.total-c.total/scarce && port.count > 0 && port.count >= c.total/(c.ports+1) {
		return port
	}
	if c.node.count >= c.total {
		return &c.node
	}
	return nil
}

// oldest returns who is to make room.
func (r *roster) oldest() (*session, standing) {
	for i := range r.waiting {
		if s := r.waiting[i].first; s != nil {
			return s, standing(i)
		}
	}
	return nil, confirmed
}

// release takes s out, unless it made room for another.
func (c *sessionCaps) release(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(s)
}

func (c *sessionCaps) remove(s *session) {
	m := &s.member
	if m.rosters[ofNode] == nil {
		return
	}
	for i, r := range m.rosters {
		r.unlink(i, s)
		r.count--
		m.rosters[i] = nil
		switch {
		case r.count > 0:
		case i == ofPort:
			c.ports--
		case i == ofClient:
			delete(c.byClient, m.client)
		}
	}
}

// rise gives s, of the standing before, a better one.
func (c *sessionCaps) rise(s *session, to standing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.member.rosters[ofNode] == nil {
		return
	}
	for i, r := range s.member.rosters {
		r.unlink(i, s)
	}
	s.member.standing = to
	for i, r := range s.member.rosters {
		r.append(i, s)
	}
}

// append puts s, which is in roster r as its i-th, at the end of the list of its
// standing.
func (r *roster) append(i int, s *session) {
	if s.member.standing == confirmed {
		return
	}
	list := &r.waiting[s.member.standing]
	s.member.links[i].prev, s.member.links[i].next = list.last, nil
	if list.last != nil {
		list.last.member.links[i].next = s
	} else {
		list.first = s
	}
	list.last = s
}

// unlink takes s out of the list of its standing.
func (r *roster) unlink(i int, s *session) {
	if s.member.standing == confirmed {
		return
	}
	list, link := &r.waiting[s.member.standing], &s.member.links[i]
	if link.prev != nil {
		link.prev.member.links[i].next = link.next
	} else {
		list.first = link.next
	}
	if link.next != nil {
		link.next.member.links[i].prev = link.prev
	} else {
		list.last = link.prev
	}
	link.prev, link.next = nil, nil
}

// countedAs returns what client is counted as: an IPv6 address as its /64,
// within which whoever has one has them all.
func countedAs(client netip.Addr) netip.Addr {
	if client.Is6() {
		if net, err := client.WithZone("").Prefix(64); err == nil {
			return net.Addr()
		}
	}
	return client
}
