package dns_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	stub "github.com/remotegpu/sluice/proxy/upstream/dns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is name servers, from 127.0.0.1 up, on one port, and a client of them.
type rig struct {
	*testing.T
	*stub.Client
	resolvConf, hosts string
	port              int

	mu    sync.Mutex // guards the following field
	asked []string   // "127.0.0.1 web.x.test. A"
}

// newRig starts one name server for each handler. conf is what resolv.conf says
// besides its nameserver lines.
func newRig(t *testing.T, conf string, handlers ...dns.HandlerFunc) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{T: t, resolvConf: filepath.Join(dir, "resolv.conf"), hosts: filepath.Join(dir, "hosts")}
	for i, h := range handlers {
		addr := fmt.Sprintf("127.0.0.%d", i+1)
		conf += fmt.Sprintf("\nnameserver %s", addr)
		r.serve(addr, h)
	}
	r.write(r.resolvConf, conf+"\n")
	r.write(r.hosts, "127.0.0.1 localhost\n")
	r.Client = stub.New(stub.Config{ResolvConf: r.resolvConf, Hosts: r.hosts, Port: uint16(r.port)})
	return r
}

// serve answers at addr, by UDP and by TCP.
func (r *rig) serve(addr string, h dns.HandlerFunc) {
	r.Helper()
	pc, ln := r.listen(addr)
	note := func(w dns.ResponseWriter, m *dns.Msg) {
		q := m.Question[0]
		r.mu.Lock()
		r.asked = append(r.asked, fmt.Sprintf("%s %s %s", addr, q.Name, dns.TypeToString[q.Qtype]))
		r.mu.Unlock()
		h(w, m)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: dns.HandlerFunc(note)}, {Listener: ln, Handler: dns.HandlerFunc(note)}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		<-started
		r.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

func (r *rig) listen(addr string) (net.PacketConn, net.Listener) {
	r.Helper()
	for range 100 {
		pc, err := net.ListenPacket("udp", fmt.Sprintf("%s:%d", addr, r.port))
		if err != nil {
			r.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			r.port = pc.LocalAddr().(*net.UDPAddr).Port
			return pc, ln
		}
		pc.Close()
	}
	r.Fatal("no port that is free for UDP and TCP")
	return nil, nil
}

func (r *rig) write(path, text string) {
	r.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) questions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.asked...)
}

// expect looks name up and wants this of it, such as "10.0.0.1 2001:db8::1 for
// 30s", or a part of the error's text.
func (r *rig) expect(name, want string) {
	r.Helper()
	addrs, ttl, err := r.Lookup(r.Context(), name)
	got := ""
	for _, a := range addrs {
		got += a.String() + " "
	}
	got += fmt.Sprintf("for %v", ttl)
	if err != nil {
		got = fmt.Sprintf("%v, for %v", err, ttl)
	}
	if got != want && (err == nil || !strings.Contains(got, want)) {
		r.Errorf("%s: got  %s\nwant %s", name, got, want)
	}
}

// zone answers from records in the form of zone files. What it has no records
// of does not exist, and has the SOA x.test for that.
func zone(records ...string) dns.HandlerFunc {
	var rrs []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		rrs = append(rrs, rr)
	}
	soa, _ := dns.NewRR("x.test. 90 IN SOA ns.x.test. root.x.test. 1 7200 3600 86400 7")
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.RecursionAvailable = true
		name, q := m.Question[0].Name, m.Question[0]
		known := false
		for range 8 {
			alias := ""
			for _, rr := range rrs {
				h := rr.Header()
				if !strings.EqualFold(h.Name, name) {
					continue
				}
				known = true
				if h.Rrtype == q.Qtype {
					r.Answer = append(r.Answer, rr)
				} else if c, ok := rr.(*dns.CNAME); ok {
					r.Answer = append(r.Answer, rr)
					alias = c.Target
				}
			}
			if alias == "" {
				break
			}
			name = alias
		}
		if !known {
			r.Rcode = dns.RcodeNameError
		}
		if n := len(r.Answer); n == 0 || r.Answer[n-1].Header().Rrtype != q.Qtype {
			r.Ns = append(r.Ns, soa)
		}
		if opt := m.IsEdns0(); opt != nil {
			r.SetEdns0(1232, false)
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			r.Truncate(1232)
		}
		_ = w.WriteMsg(r)
	}
}

// code answers everything with an error.
func code(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(m, rcode)) }
}

func silent(dns.ResponseWriter, *dns.Msg) {}

// answering answers only questions of one type by h, and the others by other.
func answering(kind uint16, h, other dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		if m.Question[0].Qtype == kind {
			h(w, m)
		} else {
			other(w, m)
		}
	}
}

// until calls f until it returns true, for ten seconds.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func mustAddrs(t *testing.T, list string) (addrs []netip.Addr) {
	t.Helper()
	for f := range strings.FieldsSeq(list) {
		addrs = append(addrs, netip.MustParseAddr(f))
	}
	return addrs
}
