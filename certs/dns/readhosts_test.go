package dns_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// serveSigned answers signed questions over TCP until the test ends, by answer.
func serveSigned(t *testing.T, answer func(name string, reply *mdns.Msg)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{Listener: ln, TsigSecret: map[string]string{mdns.Fqdn(certstest.KeyName): certstest.Key},
		Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, m *mdns.Msg) {
			reply := new(mdns.Msg).SetReply(m)
			reply.Authoritative = true
			if answer(strings.TrimSuffix(m.Question[0].Name, "."), reply); w.TsigStatus() != nil {
				reply.Rcode = mdns.RcodeRefused
			}
			reply.SetTsig(mdns.Fqdn(certstest.KeyName), mdns.Fqdn(certstest.KeyAlgorithm), 300, int64(m.IsTsig().TimeSigned))
			_ = w.WriteMsg(reply)
		})}
	started, done := make(chan struct{}), make(chan error, 1)
	server.NotifyStartedFunc = func() { close(started) }
	go func() { done <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		_ = server.Shutdown()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func manyNames(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("n%02d.x.test", i)
	}
	return all
}

// The server answers nobody before it is asked for several names at once: one
// after another they would take as many times as long as it takes to answer.
func TestNamesAreReadAtOnce(t *testing.T) {
	var mu sync.Mutex
	asked, all := map[string]bool{}, make(chan struct{})
	p := newRFC2136(t, rfc2136Config(serveSigned(t, func(name string, reply *mdns.Msg) {
		mu.Lock()
		before := len(asked)
		if asked[name] = true; before == 7 && len(asked) == 8 {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
		case <-t.Context().Done(): // it has failed: who reads one by one has given up
		}
	})))
	if got := readHosts(t, p, manyNames(40)...); len(got) != 0 {
		t.Errorf("an empty zone has %v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 40 {
		t.Errorf("asked for %d names, want 40", len(asked))
	}
}

// A name that the server cannot answer for does not keep the others from being
// read, and all that fail are one failure.
func TestOneBadNameDoesNotFailTheOthers(t *testing.T) {
	bad := func(name string) bool { return name == "n03.x.test" || name == "n07.x.test" }
	p := newRFC2136(t, rfc2136Config(serveSigned(t, func(name string, reply *mdns.Msg) {
		switch {
		case name == "n03.x.test": // delegated
			reply.Authoritative = false
		case bad(name):
			reply.Rcode = mdns.RcodeServerFailure
		case strings.HasPrefix(name, "n") && reply.Question[0].Qtype == mdns.TypeA:
			rr, err := mdns.NewRR(name + ". 60 IN A 192.0.2.1")
			if err != nil {
				t.Error(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
	})))
	names := manyNames(12)
	found, err := p.ReadHosts(t.Context(), "x.test", names)
	some, ok := errors.AsType[*dns.NamesError](err)
	if !ok || len(found) != 10 || !some.Passing() || some.RetryAfter() != 0 || !strings.Contains(err.Error(), "n03.x.test") {
		t.Fatalf("found %v, %v; want 10 and an error of two names", found, err)
	}
	for _, name := range names {
		if (some.Of(name) != nil) != bad(name) {
			t.Errorf("%s: %v", name, some.Of(name))
		}
	}
	_, err = p.ReadHosts(t.Context(), "x.test", []string{"n03.x.test", "n07.x.test"})
	if e, ok := errors.AsType[*dns.Error](err); !ok || !e.Passing() || errors.As(err, &some) {
		t.Errorf("%v, want the failure of the provider, which may pass", err)
	}
}

// A provider that is broken is not asked for each name.
func TestBrokenProviderIsNotAskedForAll(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]bool{}
	p := newRFC2136(t, rfc2136Config(serveSigned(t, func(name string, reply *mdns.Msg) {
		mu.Lock()
		asked[name] = true
		mu.Unlock()
		reply.Rcode = mdns.RcodeServerFailure
	})))
	if _, err := p.ReadHosts(t.Context(), "x.test", manyNames(200)); err == nil {
		t.Error("it is read")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) > 16 {
		t.Errorf("asked for %d names, want 16 at most", len(asked))
	}
}
