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

// DNS is an authoritative server for Zone on UDP and TCP. It answers SOA, NS,
// TXT and any record that was added, and takes updates (RFC 2136) that are
// signed with Key (RFC 8945).
type DNS struct {
	Addr string // host:port, the same port for UDP and TCP

	mu      sync.Mutex // guards the following
	records map[string][]dns.RR
	serial  uint32
	log     []Query
	hidden  bool
	refuse  func(name string) bool
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
	s := &DNS{records: map[string][]dns.RR{}, serial: 1}
	ln, pc := listenBoth(t)
	s.Addr = ln.Addr().String()
	s.serve(t, &dns.Server{Listener: ln, Net: "tcp"})
	s.serve(t, &dns.Server{PacketConn: pc, Net: "udp"})
	return s
}

// listenBoth binds TCP and UDP to the same port: Pebble asks over TCP only.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	var err error
	for range 50 {
		var ln net.Listener
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			break
		}
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			return ln, pc
		}
		ln.Close()
	}
	t.Fatalf("listen on TCP and UDP of one port: %v", err)
	return nil, nil
}

func (s *DNS) serve(t testing.TB, srv *dns.Server) {
	t.Helper()
	started := make(chan struct{})
	ended := make(chan error, 1)
	srv.NotifyStartedFunc = func() { close(started) }
	srv.TsigSecret = map[string]string{KeyName: Key}
	srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { s.answer(w, m, srv.Net) })
	// The default drops updates before the handler sees them.
	srv.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
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
	s.mu.Lock()
	defer s.mu.Unlock()
	var texts []string
	for _, rr := range s.records[dns.CanonicalName(name)] {
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
	s.log = append(s.log, Query{
		Op: dns.OpcodeToString[req.Opcode], Net: network, Name: q.Name,
		Type: dns.TypeToString[q.Qtype], Code: dns.RcodeToString[reply.Rcode],
	})
	s.mu.Unlock()
	w.WriteMsg(reply)
}

func (s *DNS) query(reply *dns.Msg, q dns.Question) {
	name := dns.CanonicalName(q.Name)
	if !dns.IsSubDomain(Zone, name) {
		reply.Rcode = dns.RcodeRefused
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.records[name]
	if name == Zone {
		all = append(slices.Clone(all), s.soaLocked(), &dns.NS{
			Hdr: dns.RR_Header{Name: Zone, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: "ns." + Zone,
		})
	}
	for _, rr := range all {
		if t := rr.Header().Rrtype; t == q.Qtype && (t != dns.TypeTXT || !s.hidden) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if len(all) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{s.soaLocked()}
	}
}

// soaLocked has a refresh of 0 so that nobody remembers where the zone begins
// longer than a test.
func (s *DNS) soaLocked() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: Zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 0},
		Ns:  "ns." + Zone, Mbox: "hostmaster." + Zone, Serial: s.serial, Retry: 60, Expire: 3600,
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
	if dns.CanonicalName(req.Question[0].Name) != Zone {
		reply.Rcode = dns.RcodeNotZone
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rr := range req.Ns {
		if s.refuse != nil && s.refuse(dns.CanonicalName(rr.Header().Name)) {
			reply.Rcode = dns.RcodeRefused
			return
		}
	}
	for _, rr := range req.Ns {
		s.applyLocked(rr)
	}
	s.serial++
}

// applyLocked changes one record or set of records (RFC 2136 section 3.4.2).
func (s *DNS) applyLocked(rr dns.RR) {
	h := rr.Header()
	name := dns.CanonicalName(h.Name)
	same := func(other dns.RR) bool { return other.Header().Rrtype == h.Rrtype && data(other) == data(rr) }
	have := s.records[name]
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
		delete(s.records, name)
		return
	}
	s.records[name] = have
}

// data returns the record without its header, whose class and TTL say what to
// do with it in an update.
func data(rr dns.RR) string {
	if txt, ok := rr.(*dns.TXT); ok {
		return fmt.Sprintf("%q", txt.Txt)
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}
