package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

func TestParseConf(t *testing.T) {
	c := parseConf([]byte(strings.ReplaceAll(`
# comment
; nameserver 10.9.9.9
nameserver 10.0.0.1
nameserver fe80::1%eth0
nameserver name.x.test
nameserver 10.0.0.3
nameserver 10.0.0.4
search A.x.test. . b.x.test
options ndots:99 timeout:0 attempts:9 rotate use-vc no-aaaa edns0 trust-ad ndots:x timeout:-3 attempts
sortlist 10.0.0.0
nameserver
`, "\n", "\r\n")))
	want := &conf{
		servers: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("10.0.0.3")},
		search:  []string{"a.x.test", "b.x.test"}, ndots: 15, timeout: time.Second, attempts: 5, rotate: true, tcp: true, noAAAA: true,
	}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(conf{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	c = parseConf(nil)
	if fmt.Sprint(c.servers) != "[127.0.0.1 ::1]" || c.ndots != 1 || c.timeout != 5*time.Second || c.attempts != 2 {
		t.Errorf("an empty file: %+v", c)
	}
}

// TestFileKeepsWhatItSaid wants a file that is there and cannot be read to leave
// things as they are, and one that is gone to be empty.
func TestFileKeepsWhatItSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	f := file[string]{path: path, parse: func(text []byte) string { return "<" + string(text) + ">" }}
	look := func(want string) {
		t.Helper()
		f.checked = time.Time{}
		if got := f.get(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	look("<>")
	if err := os.WriteFile(path, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	look("<one>")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	look("<>")
	if err := os.Mkdir(path, 0o755); err != nil { // it can be found, and not read
		t.Fatal(err)
	}
	look("<>")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	look("<one>")
}

// TestOrder has the examples of RFC 6724 section 10.2, as far as they do not need
// what is not known here.
func TestOrder(t *testing.T) {
	for _, tc := range []struct{ sources, want string }{ // "destination=source ..."; the order to try
		{"198.51.100.121=198.51.100.117 2001:db8:1::1=2001:db8:1::2", "2001:db8:1::1 198.51.100.121"},
		{"2001:db8:1::1=fe80::1 198.51.100.121=198.51.100.117", "198.51.100.121 2001:db8:1::1"},
		{"10.1.2.3=10.1.2.4 2001:db8:1::1=2001:db8:1::2", "2001:db8:1::1 10.1.2.3"},
		{"2001:db8:1::1=2001:db8:3::2 fe80::1=fe80::2", "fe80::1 2001:db8:1::1"},
		{"2002:c633:6401::1=2002:c633:6401::2 2001:db8:1::1=fe80::2", "2002:c633:6401::1 2001:db8:1::1"},
		{"2002:c633:6401::1=2002:c633:6401::2 2001:db8:1::1=2002:c633:6401::2", "2002:c633:6401::1 2001:db8:1::1"},
		{"2002:c633:6401::1=2001:db8:1::2 2001:db8:1::1=2001:db8:1::2", "2001:db8:1::1 2002:c633:6401::1"},
		{"2001:db8:3ffe::1=2001:db8:1::2 2001:db8:1::1=2001:db8:1::2", "2001:db8:1::1 2001:db8:3ffe::1"},
		{"2001:db8::1= 10.0.0.1=10.0.0.2", "10.0.0.1 2001:db8::1"},                              // no way there
		{"10.0.0.3=10.0.0.2 10.0.0.1=10.0.0.2 10.0.0.9=10.0.0.2", "10.0.0.3 10.0.0.1 10.0.0.9"}, // as they came
		{"10.0.0.1= 2001:db8::1=", "10.0.0.1 2001:db8::1"},
		{"fd00::1=fd00::2 10.0.0.1=10.0.0.2", "10.0.0.1 fd00::1"},
		{"127.0.0.1=127.0.0.1 ::1=::1", "::1 127.0.0.1"},
	} {
		var list []destination
		for pair := range strings.FieldsSeq(tc.sources) {
			to, from, _ := strings.Cut(pair, "=")
			source, _ := netip.ParseAddr(from)
			list = append(list, destinationOf(netip.MustParseAddr(to), source))
		}
		var got []string
		for _, d := range sorted(list) {
			got = append(got, d.String())
		}
		if got := strings.Join(got, " "); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.sources, got, tc.want)
		}
	}
}

func packed(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func FuzzParseReply(f *testing.F) {
	web, alias := dnsmessage.MustNewName("web.x.test."), dnsmessage.MustNewName("alias.x.test.")
	q := question{id: 7, name: web, kind: dnsmessage.TypeA}
	header := func(n dnsmessage.Name, kind dnsmessage.Type) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Type: kind, Class: dnsmessage.ClassINET, TTL: 30}
	}
	ask := dnsmessage.Question{Name: web, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	f.Add(packed(f, dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{ask},
		Answers: []dnsmessage.Resource{
			{Header: header(web, dnsmessage.TypeCNAME), Body: &dnsmessage.CNAMEResource{CNAME: alias}},
			{Header: header(alias, dnsmessage.TypeA), Body: &dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}}},
		},
	}))
	f.Add(packed(f, dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true, RCode: dnsmessage.RCodeNameError}, Questions: []dnsmessage.Question{ask},
		Authorities: []dnsmessage.Resource{{Header: header(web, dnsmessage.TypeSOA), Body: &dnsmessage.SOAResource{NS: web, MBox: web, MinTTL: 5}}},
	}))
	f.Add([]byte{0, 7, 0x80, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := parseReply(p, q)
		if err != nil {
			return
		}
		if len(r.addrs) > maxAddrs || r.ttl < 0 || r.ttl > (1<<31)*time.Second {
			t.Errorf("%d addresses, TTL %v", len(r.addrs), r.ttl)
		}
		for _, a := range r.addrs {
			if !a.Is4() {
				t.Errorf("%v is no answer to a question for IPv4", a)
			}
		}
	})
}

func FuzzParseFiles(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch a.x.test\noptions ndots:2 timeout:3", "web.x")
	f.Add("10.0.0.1 web web.x.test # comment", "WEB")
	f.Fuzz(func(t *testing.T, text, name string) {
		c := parseConf([]byte(text))
		if len(c.servers) == 0 || len(c.servers) > maxServers || c.timeout < time.Second || c.attempts < 1 {
			t.Errorf("%+v", c)
		}
		for _, n := range c.names(name) {
			if _, err := dnsmessage.NewName(n); err != nil || !strings.HasSuffix(n, ".") {
				t.Errorf("%q: %v", n, err)
			}
		}
		for _, addrs := range parseHosts([]byte(text)) {
			if len(addrs) == 0 || len(addrs) > maxAddrs {
				t.Errorf("%d addresses", len(addrs))
			}
		}
	})
}
