package certstest

import (
	"slices"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// Resolver answers for the zones of some servers, as a recursive resolver does:
// without authority, and with what CNAME records lead to. It remembers what it
// was asked.
type Resolver struct {
	Addr string // host:port, on UDP and TCP

	servers []*DNS

	mu    sync.Mutex // guards the following
	log   []Query
	twist func(reply *dns.Msg) bool
}

// NewResolver starts a resolver that ends with the test. Of the servers' zones
// the deepest counts.
func NewResolver(t testing.TB, servers ...*DNS) *Resolver {
	t.Helper()
	r := &Resolver{servers: servers}
	l := listenAll(t, []string{"127.0.0.1"})[0]
	r.Addr = l.tcp.Addr().String()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { r.answer(w, m) })
	start(t, &dns.Server{Listener: l.tcp, Net: "tcp", Handler: handler})
	start(t, &dns.Server{PacketConn: l.udp, Net: "udp", Handler: handler})
	return r
}

// Log returns what was asked so far, oldest first.
func (r *Resolver) Log() []Query {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Twist has every reply pass through change, which may alter it; if it returns
// false, there is none. Nil: replies go out as they are.
func (r *Resolver) Twist(change func(reply *dns.Msg) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.twist = change
}

func (r *Resolver) answer(w dns.ResponseWriter, req *dns.Msg) {
	q := req.Question[0]
	reply := r.resolve(req, q)
	r.mu.Lock()
	twist := r.twist
	r.log = append(r.log, Query{Op: "QUERY", Name: q.Name, Type: dns.TypeToString[q.Qtype], Code: dns.RcodeToString[reply.Rcode]})
	r.mu.Unlock()
	if twist == nil || twist(reply) {
		w.WriteMsg(reply)
	}
}

// resolve follows CNAME records up to a handful.
func (r *Resolver) resolve(req *dns.Msg, q dns.Question) *dns.Msg {
	reply := new(dns.Msg).SetReply(req)
	for range 9 {
		part := new(dns.Msg).SetReply(req)
		r.lookup(part, q)
		reply.Answer = append(reply.Answer, part.Answer...)
		reply.Ns, reply.Rcode = part.Ns, part.Rcode
		if len(part.Answer) == 0 || part.Answer[0].Header().Rrtype != dns.TypeCNAME || q.Qtype == dns.TypeCNAME {
			break
		}
		q.Name = part.Answer[0].(*dns.CNAME).Target
	}
	reply.RecursionAvailable, reply.Authoritative = true, false
	return reply
}

// lookup asks the servers that have the deepest zone of q. A name that none has
// does not exist, as the root says.
func (r *Resolver) lookup(reply *dns.Msg, q dns.Question) {
	var best *DNS
	deepest := ""
	for _, s := range r.servers {
		s.zones.mu.Lock()
		zone := s.zones.zoneOfLocked(dns.CanonicalName(q.Name))
		s.zones.mu.Unlock()
		if len(zone) > len(deepest) {
			best, deepest = s, zone
		}
	}
	if best == nil {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "a.root.", Mbox: "nobody.root.",
		}}
		return
	}
	best.query(reply, q)
}
