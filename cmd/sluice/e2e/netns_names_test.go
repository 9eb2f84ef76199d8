package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameServer is a DNS server on a host: A and AAAA records with a TTL of one
// second, and NXDOMAIN for every other name. It can be silent as well.
type nameServer struct {
	mu      sync.Mutex // guards the following fields
	records map[string][]string
	members []*dns.SRV // that talk to each other over TLS
	silent  bool
	asked   int
}

// startNameServer serves on port 53 of the address that startNetwork has nodes
// ask, until the test ends.
func startNameServer(t *testing.T, h *host) *nameServer {
	t.Helper()
	s := &nameServer{records: map[string][]string{}}
	var pc net.PacketConn
	err := h.do(func() (err error) {
		pc, err = net.ListenPacket("udp", at(backendAddr(0), 53))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{PacketConn: pc, Handler: s, NotifyStartedFunc: func() { close(started) }}
	go func() { ended <- server.ActivateAndServe() }()
	await(t, started, "the name server")
	t.Cleanup(func() {
		server.Shutdown()
		if err := <-ended; err != nil {
			t.Errorf("the name server: %v", err)
		}
	})
	return s
}

// set gives a name addresses; none: there is no such name.
func (s *nameServer) set(name string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[dns.Fqdn(name)] = addrs
}

// beSilent has the server answer nobody.
func (s *nameServer) beSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// ServeDNS answers a question.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.silent {
		return
	}
	a := new(dns.Msg).SetReply(q)
	question := q.Question[0]
	if question.Qtype == dns.TypeSRV && strings.HasPrefix(strings.ToLower(question.Name), "_etcd-server-ssl._tcp.") {
		for _, m := range s.members {
			m.Hdr.Name = question.Name
			a.Answer = append(a.Answer, m)
		}
		w.WriteMsg(a)
		return
	}
	addrs := s.records[strings.ToLower(question.Name)]
	if len(addrs) == 0 {
		a.Rcode = dns.RcodeNameError
	}
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 1}
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		switch {
		case addr.Is4() && question.Qtype == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		case addr.Is6() && question.Qtype == dns.TypeAAAA:
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	w.WriteMsg(a)
}

// TestBackendsByName follows a name from its first being a typing error to a
// server that does not answer any more.
func TestBackendsByName(t *testing.T) {
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		names := startNameServer(t, hosts.backends)
		for i := range 2 {
			serveRaw(t, hosts.backends.listen(at(backendAddr(1+i), 7)), answerLines(fmt.Sprintf("backend %d", 1+i)))
			serveRaw(t, hosts.backends.listen(at(backendAddr6(1+i), 7)), answerLines(fmt.Sprintf("backend %d", 1+i)))
		}
		port := n.port(0)
		key := fmt.Sprintf("ports/tcp/%d", port)
		// reaches waits until new connections get to a backend.
		reaches := func(t *testing.T, name string) {
			t.Helper()
			eventually(t, "connections reach "+name, func() error {
				c, err := hosts.tryConnect(t, clientAddr(0), port)
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintln(c, "hello")
				answer := make([]byte, len(name))
				if k, err := c.Read(answer); err != nil || string(answer[:k]) != name {
					return fmt.Errorf("%q, %w", answer[:k], err)
				}
				return nil
			})
		}

		// learns waits until a connection fails with this error: what the node knew
		// of the name before is forgotten then.
		learns := func(t *testing.T, text string) {
			t.Helper()
			before := len(n.accessRecords())
			eventually(t, "a connection ends by "+text, func() error {
				if c, err := hosts.tryConnect(t, clientAddr(0), port); err == nil {
					c.CloseWrite()
					io.Copy(io.Discard, c)
					c.Close()
				}
				for _, r := range n.accessRecords()[before:] {
					if strings.Contains(fmt.Sprint(r["err"]), text) {
						return nil
					}
				}
				return errors.New("none did")
			})
		}

		n.put(key, "web.x.test:7")
		n.wantVerdict(key, "degraded: backend_unresolved: backend: web.x.test does not resolve: no such host")
		hosts.wantReset(t, clientAddr(0), port)
		n.accessRecord(map[string]any{"port": port, "end": "connect_failed"})

		names.set("web.x.test", backendAddr(1))
		reaches(t, "backend 1")
		n.wantVerdict(key, "applied@")
		live := sessionOn(t, hosts.connect(t, clientAddr(0), port))
		live.want("backend 1", "hello")

		t.Run("it moves", func(t *testing.T) {
			names.set("web.x.test", backendAddr(2))
			reaches(t, "backend 2")
			names.set("web.x.test", backendAddr6(1))
			reaches(t, "backend 1")
			names.set("web.x.test", backendAddr6(3), backendAddr(2)) // the first of which refuses
			reaches(t, "backend 2")
		})
		t.Run("the name server falls silent", func(t *testing.T) {
			names.beSilent(true)
			for range 3 {
				s := sessionOn(t, hosts.connect(t, clientAddr(0), port))
				s.want("backend 2", "by what was known")
				s.Close()
			}
			names.beSilent(false)
		})
		t.Run("it comes to stand for the node itself", func(t *testing.T) {
			n := n.in(t)
			names.set("web.x.test", "10.2.0.1")
			learns(t, "10.2.0.1:7: connect: connection refused")
			own := fmt.Sprintf("ports/tcp/%d", n.port(1))
			n.put(own, fmt.Sprintf("web.x.test:%d", n.port(1)))
			n.wantVerdict(own, fmt.Sprintf("degraded: backend_loop: backend.targets[0].address: web.x.test:%d is this very port of this node", n.port(1)))
			hosts.wantReset(t, clientAddr(1), n.port(1))
			record := n.accessRecord(map[string]any{"port": n.port(1), "end": "connect_failed"})
			if text := fmt.Sprint(record["err"]); !strings.Contains(text, "of this node itself") {
				t.Errorf("the record says %q", text)
			}
			flows := 0
			for _, r := range n.accessRecords() {
				if fmt.Sprint(r["port"]) == fmt.Sprint(n.port(1)) {
					flows++
				}
			}
			if flows != 1 {
				t.Errorf("one connection made %d flows", flows)
			}
			n.delete(own)
		})
		t.Run("it is no more", func(t *testing.T) {
			n := n.in(t)
			names.set("web.x.test")
			learns(t, "no such host")
			n.put(key, `{"backend": "web.x.test:7", "env": "abc", "on_delete": "keep"}`)
			n.wantVerdict(key, "degraded: backend_unresolved: backend: web.x.test does not resolve")
		})
		live.want("backend 1", "through it all")
	})
}
