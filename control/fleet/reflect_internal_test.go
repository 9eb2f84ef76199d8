package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestParseReflector(t *testing.T) {
	for _, good := range []string{"https://ip.example.com/", "http://192.0.2.1:8080/ip", "dns://ns1.example.com/whoami.example.com", "dns://192.0.2.1:5353/o-o.myaddr.example.com?type=txt"} {
		if _, err := ParseReflector(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "ip.example.com", "ftp://ip.example.com", "dns://ns1.example.com", "dns://ns1.example.com/", "dns:///name", "dns://ns1.example.com/a?type=MX", "dns://ns1.example.com/" + strings.Repeat("a.", 200)} {
		if _, err := ParseReflector(bad); err == nil || !strings.Contains(err.Error(), "write") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestReflectorsOverTheNetwork asks servers over HTTP and DNS, good ones and bad.
func TestReflectorsOverTheNetwork(t *testing.T) {
	answer := "203.0.113.7\n"
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/broken":
			http.Error(w, "203.0.113.7", http.StatusBadGateway)
		default:
			io.WriteString(w, answer)
		}
	}))
	defer web.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { serveWhoami(pc) })
	defer serving.Wait()
	defer pc.Close()
	name := "dns://" + pc.LocalAddr().String()
	ask := func(text string) (string, error) {
		r, err := ParseReflector(text)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		a, err := r.ask(ctx, "tcp4")
		return a.String(), err
	}
	for _, good := range []string{web.URL + "/", name + "/whoami.example.com", name + "/alias.example.com", name + "/whoami.example.com?type=TXT"} {
		if got, err := ask(good); err != nil || got != "203.0.113.7" {
			t.Errorf("%s: %s, %v", good, got, err)
		}
	}
	for _, bad := range []string{web.URL + "/moved", web.URL + "/broken", name + "/empty.example.com", name + "/refused.example.com", name + "/short.example.com"} {
		if got, err := ask(bad); err == nil {
			t.Errorf("%s: %s, want an error", bad, got)
		}
	}
	for _, answer = range []string{"", "<html>203.0.113.7</html>", "203.0.113.7 203.0.113.8", strings.Repeat("1", 1<<20)} {
		if got, err := ask(web.URL + "/"); err == nil {
			t.Errorf("%.20q is taken for %s", answer, got)
		}
	}
}

// serveWhoami answers every question, first with an answer to another one.
func serveWhoami(pc net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		m.Response = true
		q := m.Questions[0]
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
		a := dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{203, 0, 113, 7}}}
		switch name := q.Name.String(); {
		case name == "refused.example.com.":
			m.RCode = dnsmessage.RCodeRefused
		case name == "empty.example.com.":
		case name == "alias.example.com.":
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: q.Name}}, a}
		case q.Type == dnsmessage.TypeTXT:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{"203.0.113.7"}}}}
		default:
			m.Answers = []dnsmessage.Resource{a}
		}
		wrong := m
		wrong.ID++
		wrong.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{198, 51, 100, 1}}}}
		for _, m := range []dnsmessage.Message{wrong, m} {
			packed, err := m.Pack()
			if err != nil {
				panic(err)
			}
			if q.Name.String() == "short.example.com." {
				packed = packed[:len(packed)-3]
				packed[7] = 2 // answers
			}
			_, _ = pc.WriteTo(packed, from)
		}
	}
}

func TestMajority(t *testing.T) {
	a, b, none := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8"), netip.Addr{}
	for _, tc := range []struct {
		answers []netip.Addr
		want    netip.Addr
	}{
		{nil, none}, {[]netip.Addr{a}, a}, {[]netip.Addr{none}, none}, {[]netip.Addr{a, b}, none}, {[]netip.Addr{a, a, b}, a},
		{[]netip.Addr{b, a, a}, a}, {[]netip.Addr{a, none, none}, none}, {[]netip.Addr{a, a, none, none}, none}, {[]netip.Addr{a, a, a, b, b}, a}, {[]netip.Addr{none, none, none}, none},
	} {
		if got, sure := majority(tc.answers, len(tc.answers)); got != tc.want || sure != tc.want.IsValid() {
			t.Errorf("%v: %v, %t", tc.answers, got, sure)
		}
	}
}

// TestFinderKeepsTheLastGoodAddress has reflectors change their minds, lie and fall
// silent.
func TestFinderKeepsTheLastGoodAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		says := []string{"203.0.113.7", "203.0.113.7", "198.51.100.9"}
		six := ""
		var all []Reflector
		for i := range says {
			all = append(all, Reflector{fmt.Sprint("reflector ", i), func(ctx context.Context, network string) (netip.Addr, error) {
				mu.Lock()
				text := says[i]
				if network == "tcp6" {
					text = six
				}
				mu.Unlock()
				if text == "silent" {
					<-ctx.Done()
					return netip.Addr{}, ctx.Err()
				}
				return netip.ParseAddr(text)
			}})
		}
		var found [][]netip.Addr
		f := &Finder{Reflectors: all, Logger: slog.New(slog.DiscardHandler), Found: func(as []netip.Addr) {
			mu.Lock()
			defer mu.Unlock()
			found = append(found, as)
		}}
		changed := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx, changed) }()
		defer func() { cancel(); <-done }()
		expect := func(when string, times int, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(found) != times || times > 0 && fmt.Sprint(found[times-1]) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %d of which the last is %v", when, found, times, want)
			}
		}
		set := func(v6 string, v4 ...string) {
			mu.Lock()
			defer mu.Unlock()
			six = v6
			copy(says, v4)
		}
		expect("at first", 1, "203.0.113.7")
		for _, bogus := range []string{"10.0.0.1", "127.0.0.1", "0.0.0.0", "100.64.1.1", "169.254.1.1", "224.0.0.1", "2001:db8::7", "", "silent"} {
			set("", bogus, bogus, bogus)
			time.Sleep(time.Minute)
			expect("all say "+bogus, 1, "203.0.113.7")
		}
		set("", "203.0.113.8", "203.0.113.9", "203.0.113.10")
		time.Sleep(time.Minute)
		expect("each says another", 1, "203.0.113.7")
		set("", "203.0.113.8", "silent", "203.0.113.8")
		changed <- struct{}{}
		time.Sleep(6 * time.Second)
		expect("an interface has changed", 2, "203.0.113.8")
		set("2001:db8::7", "203.0.113.8", "203.0.113.8", "203.0.113.8")
		time.Sleep(31 * time.Second)
		expect("with IPv6", 3, "203.0.113.8", "2001:db8::7")
		time.Sleep(time.Hour)
		expect("while nothing changes", 3, "203.0.113.8", "2001:db8::7")
	})
}

// TestFinderBeginsWithWhatIsKnown has reflectors that say nothing over one family:
// its last good address stays.
func TestFinderBeginsWithWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		four, six := netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("2001:db8::7")
		var found []netip.Addr
		f := &Finder{Known: []netip.Addr{netip.MustParseAddr("203.0.113.7"), six}, Logger: slog.New(slog.DiscardHandler),
			Found: func(as []netip.Addr) { found = as },
			Reflectors: []Reflector{{"", func(_ context.Context, network string) (netip.Addr, error) {
				if network == "tcp6" {
					return netip.Addr{}, errors.New("no answer")
				}
				return four, nil
			}}}}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx, nil) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if want := []netip.Addr{four, six}; !slices.Equal(found, want) {
			t.Errorf("found %v, want %v", found, want)
		}
	})
}

func FuzzReflection(f *testing.F) {
	f.Add([]byte("203.0.113.7\n"))
	f.Add([]byte{0, 1, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 203, 0, 113, 7})
	name := dnsmessage.MustNewName("a.")
	f.Fuzz(func(t *testing.T, message []byte) {
		if a, err := parseReflection(string(message)); err == nil && !a.IsValid() {
			t.Error("an address that is none")
		}
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeTXT} {
			if a, err := reflectionIn(message, 1, dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}); err == nil && !a.IsValid() {
				t.Error("an address that is none")
			}
		}
	})
}

func TestWatchAddressesEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- WatchAddresses(ctx, func() {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
