package certstest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The zone that a DNS server starts with, and the one key that may update it.
const (
	Zone         = "x.test."
	KeyName      = "edge-key."
	KeyAlgorithm = "hmac-sha256"
	Key          = "c2x1aWNlLXRlc3Qta2V5LTMyLWJ5dGVzLWxvbmchISE=" // base64
)

// DNS is an authoritative server for Zone, and for more that AddZone gives it,
// on UDP and TCP. It answers SOA, NS, TXT and any record that was added, refers
// to the servers of zones below, follows wildcards, and takes updates (RFC 2136)
// that are signed with Key (RFC 8945).
type DNS struct {
	Addr string // host:port, the same port for UDP and TCP

	zones *zones // shared with the other servers of the same zones

	mu     sync.Mutex // guards the following
	log    []Query
	hidden bool
	refuse func(name string) bool
	twist  func(reply *dns.Msg) bool
}

// zones is what servers of the same zones answer from.
type zones struct {
	mu      sync.Mutex // guards the following
	names   []string
	records map[string][]dns.RR
	serial  uint32
}

// Query is one message that the server received.
type Query struct {
	Op   string // QUERY or UPDATE
	Net  string // udp or tcp
	Name string // the question's name; for an update, the zone
	Type string // the question's type
	Code string // the answer's code, such as NOERROR
}

// NewDNS starts a server that ends with the test.
func NewDNS(t testing.TB) *DNS {
	t.Helper()
	return NewServers(t, "127.0.0.1")[0]
}

// NewServers starts a server at each of the addresses, all of them for the same
// zones and at the same port, that end with the test. An update of one shows at
// all of them, unless it is told to Hide.
func NewServers(t testing.TB, ips ...string) []*DNS {
	t.Helper()
	shared := &zones{names: []string{Zone}, records: map[string][]dns.RR{}, serial: 1}
	all := make([]*DNS, len(ips))
	for i, l := range listenAll(t, ips) {
		s := &DNS{Addr: l.tcp.Addr().String(), zones: shared}
		s.serve(t, &dns.Server{Listener: l.tcp, Net: "tcp"})
		s.serve(t, &dns.Server{PacketConn: l.udp, Net: "udp"})
		all[i] = s
	}
	return all
}

// Port returns the port that the server is at.
func (s *DNS) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr) // from a listener: always both
	return port
}

// AddZone has the server answer for another zone, a name with its last dot.
func (s *DNS) AddZone(zone string) {
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	s.zones.names = append(s.zones.names, zone)
}

// AddRecord adds a record in the form of a zone file.
func (s *DNS) AddRecord(t testing.TB, text string) {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	name := dns.CanonicalName(rr.Header().Name)
	s.zones.records[name] = append(s.zones.records[name], rr)
}

// put adds or deletes a TXT record.
func (s *DNS) put(name, text string, add bool) {
	class := uint16(dns.ClassNONE)
	if add {
		class = dns.ClassINET
	}
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	s.zones.applyLocked(&dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: class, Ttl: 60}, Txt: []string{text}})
}

// pair is one address on UDP and TCP: Pebble asks over TCP only.
type pair struct {
	tcp net.Listener
	udp net.PacketConn
}

// listenAll binds TCP and UDP of one port at all addresses.
func listenAll(t testing.TB, ips []string) []pair {
	t.Helper()
	var err error
	for range 50 {
		var all []pair
		port := "0"
		for _, ip := range ips {
			var p pair
			if p, err = listenBoth(net.JoinHostPort(ip, port)); err != nil {
				break
			}
			all = append(all, p)
			_, port, _ = net.SplitHostPort(p.tcp.Addr().String())
		}
		if err == nil {
			return all
		}
		for _, p := range all {
			p.tcp.Close()
			p.udp.Close()
		}
	}
	t.Fatalf("listen on TCP and UDP of one port at %v: %v", ips, err)
	return nil
}

func listenBoth(addr string) (p pair, err error) {
	if p.tcp, err = net.Listen("tcp", addr); err != nil {
		return pair{}, err
	}
	if p.udp, err = net.ListenPacket("udp", p.tcp.Addr().String()); err != nil {
		p.tcp.Close()
		return pair{}, err
	}
	return p, nil
}

func (s *DNS) serve(t testing.TB, srv *dns.Server) {
	t.Helper()
	srv.TsigSecret = map[string]string{KeyName: Key}
	srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { s.answer(w, m, srv.Net) })
	// The default drops updates before the handler sees them.
	srv.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
	start(t, srv)
}

// start runs srv until the test ends.
func start(t testing.TB, srv *dns.Server) {
	t.Helper()
	started := make(chan struct{})
	ended := make(chan error, 1)
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		srv.Shutdown()
		if err := <-ended; err != nil {
			t.Errorf("dns server over %s: %v", srv.Net, err)
		}
	})
}

// TXT returns the texts of the TXT records at name, which may lack its last dot.
func (s *DNS) TXT(name string) []string {
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	var texts []string
	for _, rr := range s.zones.records[dns.CanonicalName(name)] {
		if txt, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	return texts
}

// Log returns what was received so far, oldest first.
func (s *DNS) Log() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Hide makes TXT records invisible to queries while on, as if they had not
// propagated. Updates still apply.
func (s *DNS) Hide(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hidden = on
}

// Twist has every reply pass through change, which may alter it; if it returns
// false, there is none. Nil: replies go out as they are.
func (s *DNS) Twist(change func(reply *dns.Msg) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twist = change
}

// RefuseUpdates makes the server refuse updates of the names that match; nil: of none.
func (s *DNS) RefuseUpdates(match func(name string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = match
}

// answer handles one message.
func (s *DNS) answer(w dns.ResponseWriter, req *dns.Msg, network string) {
	reply := new(dns.Msg).SetReply(req)
	reply.Authoritative = true
	if len(req.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		w.WriteMsg(reply)
		return
	}
	if req.Opcode == dns.OpcodeUpdate {
		s.update(w, req, reply)
	} else {
		s.query(reply, req.Question[0])
	}
	q := req.Question[0]
	s.mu.Lock()
	twist := s.twist
	s.mu.Unlock()
	send := twist == nil || twist(reply)
	s.mu.Lock()
	s.log = append(s.log, Query{
		Op: dns.OpcodeToString[req.Opcode], Net: network, Name: q.Name,
		Type: dns.TypeToString[q.Qtype], Code: dns.RcodeToString[reply.Rcode],
	})
	s.mu.Unlock()
	if send {
		w.WriteMsg(reply)
	}
}

func (s *DNS) query(reply *dns.Msg, q dns.Question) {
	s.mu.Lock()
	hidden := s.hidden
	s.mu.Unlock()
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	s.zones.answerLocked(reply, q, hidden)
}

// zoneOfLocked returns the zone that name is in, or "".
func (z *zones) zoneOfLocked(name string) string {
	best := ""
	for _, zone := range z.names {
		if dns.IsSubDomain(zone, name) && len(zone) > len(best) {
			best = zone
		}
	}
	return best
}

// answerLocked answers q as RFC 1034 section 4.3.2 has it, without following
// CNAME records.
func (z *zones) answerLocked(reply *dns.Msg, q dns.Question, hidden bool) {
	name := dns.CanonicalName(q.Name)
	zone := z.zoneOfLocked(name)
	if zone == "" {
		reply.Rcode, reply.Authoritative = dns.RcodeRefused, false
		return
	}
	if cut := z.cutLocked(zone, name); len(cut) > 0 {
		reply.Ns, reply.Authoritative = cut, false
		return
	}
	all := z.recordsLocked(name, zone)
	for _, rr := range all {
		h := rr.Header()
		if (h.Rrtype == q.Qtype || h.Rrtype == dns.TypeCNAME) && (h.Rrtype != dns.TypeTXT || !hidden) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if len(all) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{z.soaLocked(zone)}
	}
}

// cutLocked returns the NS records of a zone below zone that name is in.
func (z *zones) cutLocked(zone, name string) (cut []dns.RR) {
	for at := name; at != zone && len(cut) == 0; at = at[strings.IndexByte(at, '.')+1:] {
		for _, rr := range z.records[at] {
			if rr.Header().Rrtype == dns.TypeNS {
				cut = append(cut, rr)
			}
		}
	}
	return cut
}

// recordsLocked returns the records of name, by a wildcard if there are none.
func (z *zones) recordsLocked(name, zone string) []dns.RR {
	all := slices.Clone(z.records[name])
	if len(all) == 0 && name != zone {
		for _, rr := range z.records["*."+name[strings.IndexByte(name, '.')+1:]] {
			rr = dns.Copy(rr)
			rr.Header().Name = name
			all = append(all, rr)
		}
	}
	if name == zone {
		all = append(all, z.soaLocked(zone))
		if !slices.ContainsFunc(all, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeNS }) {
			all = append(all, &dns.NS{Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: "ns." + zone})
		}
	}
	return all
}

func (z *zones) soaLocked(zone string) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 0},
		Ns:  "ns." + zone, Mbox: "hostmaster." + zone, Serial: z.serial, Retry: 60, Expire: 3600,
	}
}

// update handles RFC 2136 messages without prerequisites.
func (s *DNS) update(w dns.ResponseWriter, req, reply *dns.Msg) {
	tsig := req.IsTsig()
	if tsig == nil {
		reply.Rcode = dns.RcodeRefused
		return
	}
	reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, time.Now().Unix())
	if w.TsigStatus() != nil {
		// An error about the key cannot be signed with it (RFC 8945 section 5.3.2).
		reply.Rcode = dns.RcodeNotAuth
		reply.IsTsig().Error = dns.RcodeBadSig
		return
	}
	s.mu.Lock()
	refuse := s.refuse
	s.mu.Unlock()
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	if !slices.Contains(s.zones.names, dns.CanonicalName(req.Question[0].Name)) {
		reply.Rcode = dns.RcodeNotZone
		return
	}
	for _, rr := range req.Ns {
		if refuse != nil && refuse(dns.CanonicalName(rr.Header().Name)) {
			reply.Rcode = dns.RcodeRefused
			return
		}
	}
	for _, rr := range req.Ns {
		s.zones.applyLocked(rr)
	}
	s.zones.serial++
}

// applyLocked changes one record or set of records (RFC 2136 section 3.4.2).
func (z *zones) applyLocked(rr dns.RR) {
	h := rr.Header()
	name := dns.CanonicalName(h.Name)
	same := func(other dns.RR) bool { return other.Header().Rrtype == h.Rrtype && data(other) == data(rr) }
	have := z.records[name]
	switch h.Class {
	case dns.ClassINET:
		if !slices.ContainsFunc(have, same) {
			have = append(slices.Clone(have), rr)
		}
	case dns.ClassNONE:
		have = slices.DeleteFunc(slices.Clone(have), same)
	case dns.ClassANY:
		have = slices.DeleteFunc(slices.Clone(have), func(other dns.RR) bool {
			return h.Rrtype == dns.TypeANY || other.Header().Rrtype == h.Rrtype
		})
	}
	if len(have) == 0 {
		delete(z.records, name)
		return
	}
	z.records[name] = have
}

// data returns the record without its header, whose class and TTL say what to
// do with it in an update.
func data(rr dns.RR) string {
	if txt, ok := rr.(*dns.TXT); ok {
		return fmt.Sprintf("%q", txt.Txt)
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}
