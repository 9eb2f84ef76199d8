package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestLookupTellsTTL(t *testing.T) {
	r := newRig(t, "", zone(
		"web.x.test. 30 IN A 10.0.0.1", "web.x.test. 20 IN A 10.0.0.2",
		"six.x.test. 40 IN AAAA 2001:db8::1",
		"www.x.test. 300 IN CNAME Alias.x.test.", "alias.x.test. 15 IN CNAME WEB.x.test.",
		"zero.x.test. 0 IN A 10.0.0.3",
		"text.x.test. 60 IN TXT hello",
		"void.x.test. 4 IN CNAME gone.x.test.",
		"under_score.x.test. 60 IN A 10.0.0.4",
	))
	r.expect("web.x.test", "10.0.0.1 10.0.0.2 for 20s")
	r.expect("WEB.x.test.", "10.0.0.1 10.0.0.2 for 20s")
	r.expect("six.x.test", "2001:db8::1 for 40s")
	r.expect("www.x.test", "10.0.0.1 10.0.0.2 for 15s")
	r.expect("zero.x.test", "10.0.0.3 for 0s")
	r.expect("under_score.x.test", "10.0.0.4 for 1m0s")
	r.expect("text.x.test", "lookup text.x.test: no such host, for 7s")
	r.expect("gone.x.test", "lookup gone.x.test: no such host, for 7s")
	r.expect("void.x.test", "lookup void.x.test: no such host, for 4s")
	for _, name := range []string{"text.x.test", "gone.x.test"} {
		_, _, err := r.Lookup(t.Context(), name)
		var d *net.DNSError
		if !errors.As(err, &d) || !d.IsNotFound || d.IsTemporary {
			t.Errorf("%s: %#v, want not found", name, err)
		}
	}
	r.expect(strings.Repeat("a", 64)+".x.test", "not one that DNS could hold")
	r.expect(strings.Repeat("a.", 127)+"test", "not one that DNS could hold")
}

// TestLookupBothFamilies checks the least TTL of both, and that one family's
// trouble is not the other's.
func TestLookupBothFamilies(t *testing.T) {
	dual := zone("dual.x.test. 30 IN A 10.0.0.1", "dual.x.test. 10 IN AAAA ::1")
	r := newRig(t, "", dual)
	addrs, ttl, err := r.Lookup(t.Context(), "dual.x.test")
	if err != nil || len(addrs) != 2 || ttl != 10*time.Second {
		t.Errorf("got %v, %v, %v", addrs, ttl, err)
	}
	for name, broken := range map[string]dns.HandlerFunc{"silent": silent, "SERVFAIL": code(dns.RcodeServerFailure), "NXDOMAIN": code(dns.RcodeNameError)} {
		t.Run(name, func(t *testing.T) {
			newRig(t, "", answering(dns.TypeA, dual, broken)).expect("dual.x.test", "10.0.0.1 for 30s")
			newRig(t, "", answering(dns.TypeAAAA, dual, broken)).expect("dual.x.test", "::1 for 10s")
		})
	}
	// No addresses of one family and trouble with the other: nobody knows.
	r = newRig(t, "", answering(dns.TypeA, zone("dual.x.test. 30 IN TXT x"), code(dns.RcodeServerFailure)))
	_, _, err = r.Lookup(t.Context(), "dual.x.test")
	var d *net.DNSError
	if !errors.As(err, &d) || d.IsNotFound || !d.IsTemporary {
		t.Errorf("got %v, want a temporary failure", err)
	}
	r = newRig(t, "options no-aaaa", answering(dns.TypeA, dual, silent))
	r.expect("dual.x.test", "10.0.0.1 for 30s")
	if asked := r.questions(); len(asked) != 1 {
		t.Errorf("no-aaaa: asked %v", asked)
	}
}

func TestLookupTruncatedByTCP(t *testing.T) {
	var records []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("many.x.test. 60 IN A 10.0.%d.%d", i/100, i%100))
	}
	r := newRig(t, "", zone(records...))
	addrs, ttl, err := r.Lookup(t.Context(), "many.x.test")
	if err != nil || len(addrs) != 64 || ttl != time.Minute || addrs[0] != netip.MustParseAddr("10.0.0.0") {
		t.Errorf("got %d addresses, %v, %v, want 64", len(addrs), ttl, err)
	}
	r = newRig(t, "options use-vc", func(w dns.ResponseWriter, m *dns.Msg) {
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			t.Error("asked by UDP")
		}
		zone("web.x.test. 30 IN A 10.0.0.1")(w, m)
	})
	r.expect("web.x.test", "10.0.0.1 for 30s")
	// A server that says by TCP, too, that there is no room.
	r = newRig(t, "options attempts:1", func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		reply.Truncated = true
		_ = w.WriteMsg(reply)
	})
	r.expect("web.x.test", "the answer is malformed")
}

func TestLookupSearches(t *testing.T) {
	handler := zone("web.a.x.test. 1 IN A 10.0.0.1", "web.b.x.test. 2 IN A 10.0.0.2", "web. 3 IN A 10.0.0.3",
		"db.eu.b.x.test. 4 IN A 10.0.0.4", "db.eu. 5 IN A 10.0.0.5", "only.b.x.test. 6 IN A 10.0.0.6")
	for _, tc := range []struct{ conf, name, want, asked string }{
		{"search a.x.test b.x.test", "web", "10.0.0.1 for 1s", "web.a.x.test."},
		{"search a.x.test b.x.test", "only", "10.0.0.6 for 6s", "only.a.x.test. only.b.x.test."},
		{"search a.x.test b.x.test", "web.", "10.0.0.3 for 3s", "web."},
		{"search b.x.test", "db.eu", "10.0.0.5 for 5s", "db.eu."},
		{"search b.x.test\noptions ndots:2", "db.eu", "10.0.0.4 for 4s", "db.eu.b.x.test."},
		{"search a.x.test\noptions ndots:2", "db.eu", "10.0.0.5 for 5s", "db.eu.a.x.test. db.eu."},
		{"domain B.x.test.", "web", "10.0.0.2 for 2s", "web.b.x.test."},
		{"search a.x.test\nsearch .", "web", "10.0.0.3 for 3s", "web."}, // container names
		{"search a.x.test b.x.test", "gone", "lookup gone: no such host, nor one in the search domains a.x.test, b.x.test, for 7s", "gone.a.x.test. gone.b.x.test. gone."},
	} {
		r := newRig(t, tc.conf+"\noptions no-aaaa", handler)
		r.expect(tc.name, tc.want)
		var asked []string
		for _, q := range r.questions() {
			asked = append(asked, strings.Fields(q)[1])
		}
		if got := strings.Join(asked, " "); got != tc.asked {
			t.Errorf("%q, %s: asked %s, want %s", tc.conf, tc.name, got, tc.asked)
		}
	}
	// Trouble with one suffix hides a name that exists, not one that does not.
	trouble := func(w dns.ResponseWriter, m *dns.Msg) {
		if strings.HasSuffix(m.Question[0].Name, ".a.x.test.") {
			code(dns.RcodeServerFailure)(w, m)
		} else {
			handler(w, m)
		}
	}
	r := newRig(t, "search a.x.test b.x.test", trouble)
	r.expect("web", "10.0.0.2 for 2s")
	r.expect("gone", "lookup gone on 127.0.0.1:")
	_, _, err := r.Lookup(t.Context(), "gone")
	var d *net.DNSError
	if !errors.As(err, &d) || d.IsNotFound {
		t.Errorf("got %v, want one that does not say that the name is gone", err)
	}
}

func TestLookupAsksTheNextServer(t *testing.T) {
	good := zone("web.x.test. 30 IN A 10.0.0.1")
	referral := func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		ns, _ := dns.NewRR("test. 60 IN NS ns.test.")
		reply.Ns = []dns.RR{ns}
		_ = w.WriteMsg(reply)
	}
	for name, bad := range map[string]dns.HandlerFunc{
		"SERVFAIL": code(dns.RcodeServerFailure), "REFUSED": code(dns.RcodeRefused), "NOTIMP": code(dns.RcodeNotImplemented),
		"referral": referral, "silent": silent,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "options timeout:1", bad, good)
			r.expect("web.x.test", "10.0.0.1 for 30s")
			before := len(r.questions())
			r.expect("web.x.test", "10.0.0.1 for 30s")
			again := r.questions()[before:]
			if asked := slices.ContainsFunc(again, func(q string) bool { return strings.HasPrefix(q, "127.0.0.1 ") }); asked != (name != "silent") {
				t.Errorf("the second time it asked %v", again)
			}
		})
	}
	r := newRig(t, "options attempts:1", code(dns.RcodeRefused), code(dns.RcodeServerFailure))
	r.expect("web.x.test", "127.0.0.2:"+fmt.Sprint(r.port)+": the name server cannot find out (SERVFAIL), for 0s")
	r = newRig(t, "options rotate no-aaaa", good, good, good)
	for range 3 {
		r.expect("web.x.test", "10.0.0.1 for 30s")
	}
	asked := r.questions()
	slices.Sort(asked)
	if len(slices.Compact(asked)) != 3 {
		t.Errorf("rotate: asked %v", r.questions())
	}
}

func TestLookupWithoutEDNS(t *testing.T) {
	good := zone("web.x.test. 30 IN A 10.0.0.1")
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		r := newRig(t, "", func(w dns.ResponseWriter, m *dns.Msg) {
			if m.IsEdns0() != nil {
				code(rcode)(w, m)
			} else {
				good(w, m)
			}
		})
		r.expect("web.x.test", "10.0.0.1 for 30s")
	}
}

// TestLookupFollowsAliases has servers that leave it to the client.
func TestLookupFollowsAliases(t *testing.T) {
	bare := func(records map[string]string) dns.HandlerFunc {
		return func(w dns.ResponseWriter, m *dns.Msg) {
			reply := new(dns.Msg).SetReply(m)
			reply.RecursionAvailable = true
			if rr, err := dns.NewRR(records[m.Question[0].Name]); err == nil && rr != nil {
				reply.Answer = []dns.RR{rr}
			}
			_ = w.WriteMsg(reply)
		}
	}
	r := newRig(t, "options no-aaaa", bare(map[string]string{
		"www.x.test.": "www.x.test. 5 IN CNAME web.x.test.", "web.x.test.": "web.x.test. 30 IN A 10.0.0.1",
	}))
	r.expect("www.x.test", "10.0.0.1 for 5s")
	r = newRig(t, "options no-aaaa", bare(map[string]string{
		"a.x.test.": "a.x.test. 5 IN CNAME b.x.test.", "b.x.test.": "b.x.test. 5 IN CNAME a.x.test.",
	}))
	r.expect("a.x.test", "its aliases lead on and on")
	if n := len(r.questions()); n > 16 {
		t.Errorf("%d questions for a circle", n)
	}
}

// TestLookupTakesOnlyItsAnswer has everything come first that is no answer.
func TestLookupTakesOnlyItsAnswer(t *testing.T) {
	good := zone("web.x.test. 30 IN A 10.0.0.1")
	evil := func(m *dns.Msg, change func(r *dns.Msg)) []byte {
		r := new(dns.Msg).SetReply(m)
		rr, _ := dns.NewRR(m.Question[0].Name + " 86400 IN A 192.0.2.66")
		r.Answer = []dns.RR{rr}
		change(r)
		p, err := r.Pack()
		if err != nil {
			t.Error(err)
		}
		return p
	}
	r := newRig(t, "options no-aaaa attempts:1", func(w dns.ResponseWriter, m *dns.Msg) {
		for _, p := range [][]byte{
			evil(m, func(r *dns.Msg) { r.Id++ }),
			evil(m, func(r *dns.Msg) { r.Response = false }),
			evil(m, func(r *dns.Msg) { r.Opcode = dns.OpcodeStatus }),
			evil(m, func(r *dns.Msg) { r.Question[0].Name = "other.x.test." }),
			evil(m, func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeAAAA }),
			evil(m, func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassCHAOS }),
			evil(m, func(r *dns.Msg) { r.Question = nil }),
			evil(m, func(r *dns.Msg) { r.Question = append(r.Question, r.Question[0]) }),
			{}, {1}, []byte("garbage"), make([]byte, 12), make([]byte, 4000),
		} {
			_, _ = w.Write(p)
		}
		// And from elsewhere, with everything right.
		pc, err := net.ListenPacket("udp", "127.0.0.9:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer pc.Close()
		_, _ = pc.WriteTo(evil(m, func(*dns.Msg) {}), w.RemoteAddr())
		good(w, m)
	})
	r.expect("web.x.test", "10.0.0.1 for 30s")
	// Nor are records of other names an answer, nor those of another class.
	r = newRig(t, "options no-aaaa attempts:1", func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		reply.RecursionAvailable = true
		for _, text := range []string{"bank.x.test. 30 IN A 192.0.2.66", "web.x.test. 30 CH A 192.0.2.66", "web.x.test. 30 IN AAAA 2001:db8::66", "web.x.test. 20 IN A 10.0.0.1"} {
			if rr, err := dns.NewRR(text); err == nil {
				reply.Answer = append(reply.Answer, rr)
			}
		}
		_ = w.WriteMsg(reply)
	})
	r.expect("web.x.test", "10.0.0.1 for 20s")
	r = newRig(t, "options no-aaaa attempts:1 timeout:1", func(w dns.ResponseWriter, m *dns.Msg) {
		for range 200 {
			_, _ = w.Write([]byte("garbage"))
		}
	})
	r.expect("web.x.test", "lookup web.x.test")
	broken := func(w dns.ResponseWriter, m *dns.Msg) {
		p := evil(m, func(*dns.Msg) {})
		_, _ = w.Write(p[:len(p)-2])
	}
	r = newRig(t, "options attempts:1", broken)
	r.expect("web.x.test", "the answer is malformed")
}

func TestLookupOfTheHostsFile(t *testing.T) {
	r := newRig(t, "search b.x.test", zone("web.x.test. 30 IN A 10.0.0.1", "box.b.x.test. 30 IN A 10.0.0.1"))
	r.write(r.hosts, "# none\n10.0.9.1 box Web.x.test # web\n2001:db8::9 BOX.\n10.0.9.1 box\nnonsense box\n::ffff:10.0.9.2 box\n10.0.9.3\n")
	addrs, _, err := r.Lookup(t.Context(), "Box")
	if want := mustAddrs(t, "10.0.9.1 10.0.9.2 2001:db8::9"); err != nil || len(addrs) != 3 || !sameSet(addrs, want) {
		t.Errorf("got %v, %v, want %v in some order", addrs, err, want)
	}
	r.expect("web.x.test.", "10.0.9.1 for 5s")
	if asked := r.questions(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
	r.write(r.hosts, "10.0.9.77 box\n")
	until(t, "the change of the hosts file shows", func() bool {
		addrs, _, _ := r.Lookup(t.Context(), "box")
		return len(addrs) == 1 && addrs[0].String() == "10.0.9.77"
	})
	r.expect("web.x.test", "10.0.0.1 for 30s")
	for _, name := range []string{"localhost", "a.LOCALHOST."} { // which the file does not have now
		addrs, _, err := r.Lookup(t.Context(), name)
		if err != nil || !sameSet(addrs, mustAddrs(t, "127.0.0.1 ::1")) {
			t.Errorf("%s: %v, %v", name, addrs, err)
		}
	}
}

func sameSet(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

func TestLookupNoticesResolvConf(t *testing.T) {
	r := newRig(t, "", zone("web.x.test. 30 IN A 10.0.0.1"), zone("web.x.test. 30 IN A 10.0.0.2"))
	r.expect("web.x.test", "10.0.0.1 for 30s")
	r.write(r.resolvConf, "nameserver 127.0.0.2\n")
	until(t, "the other server is asked", func() bool {
		addrs, _, _ := r.Lookup(t.Context(), "web.x.test")
		return len(addrs) == 1 && addrs[0].String() == "10.0.0.2"
	})
}

func TestLookupEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{}, 8)
	r := newRig(t, "", func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, _, err := r.Lookup(ctx, "web.x.test")
	var d *net.DNSError
	if !errors.As(err, &d) || d.IsNotFound {
		t.Errorf("got %v", err)
	}
}

// TestLookupAgreesWithGo compares with the standard library's resolver.
func TestLookupAgreesWithGo(t *testing.T) {
	r := newRig(t, "", zone(
		"web.x.test. 30 IN A 10.0.0.1", "web.x.test. 30 IN A 10.0.0.2", "web.x.test. 30 IN AAAA 2001:db8::1",
		"lo.x.test. 30 IN A 127.0.0.1", "lo.x.test. 30 IN AAAA ::1", "lo.x.test. 30 IN A 192.0.2.1", "lo.x.test. 30 IN AAAA fe80::1",
		"www.x.test. 300 IN CNAME alias.x.test.", "alias.x.test. 15 IN CNAME web.x.test.",
		"text.x.test. 60 IN TXT hello",
	))
	std := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", r.port))
	}}
	for _, name := range []string{"web.x.test.", "lo.x.test.", "www.x.test.", "text.x.test.", "gone.x.test."} {
		want, wantErr := std.LookupNetIP(t.Context(), "ip", name)
		for i := range want {
			want[i] = want[i].Unmap()
		}
		got, _, err := r.Lookup(t.Context(), name)
		if fmt.Sprint(got) != fmt.Sprint(want) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: got %v, %v; the standard library has %v, %v", name, got, err, want, wantErr)
		}
	}
}
