package main

import (
	"crypto/tls"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// Every template has its values, and every service is listened for in each.
func TestConfigsAreWhole(t *testing.T) {
	pair, err := newKeyPair(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	origin := addressBook{serviceHTTP: loopback(1001), serviceEcho: loopback(1002), serviceBlast: loopback(1003), serviceUDP: loopback(1004)}
	listen := addressBook{serviceHTTP: loopback(2001), serviceHTTPS: loopback(2002), serviceEcho: loopback(2003), serviceBlast: loopback(2004), serviceUDP: loopback(2005), serviceH3: loopback(2002)}
	all := []string{"127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003", "127.0.0.1:2001", "127.0.0.1:2002", "127.0.0.1:2003", "127.0.0.1:2004"}
	ports := []netip.AddrPort{loopback(5001), loopback(5002)}
	for name, want := range map[string][]string{
		"nginx-ports.conf": {"listen 127.0.0.1:5001; proxy_pass 127.0.0.1:1002;", "listen 127.0.0.1:5002;"},
		"nginx.conf":       append([]string{"127.0.0.1:1004", "127.0.0.1:2005 udp reuseport"}, all...),
		"haproxy.cfg":      all,
		"nginx-h3.conf":    {"127.0.0.1:1001", "127.0.0.1:2002 quic reuseport", pair.cert, pair.key},
		"Caddyfile":        {"127.0.0.1:1001", "http://bench.localhost:2001", "https://bench.localhost:2002", "tls " + pair.cert + " " + pair.key},
		// Routes and mappings are in sluice's etcd.
		"sluice.yaml": {"127.0.0.1:2001", "127.0.0.1:2002", "127.0.0.1:3001", "127.0.0.1:3002", `"4000-4999"`, "access: none", "local_ca: true", "ports_mode: steer", "admin: 127.0.0.1:3002"},
	} {
		s := &site{options: &options{portsMode: "steer"}, dir: t.TempDir(), origin: origin, pair: pair}
		path, err := s.writeConfig(name, configValues{
			Listen: listen.byName(), StreamModule: nginxStreamModule, Ports: ports,
			Sluice: sluicePorts{Etcd: loopback(3001), Admin: loopback(3002), Low: 4000, High: 4999},
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range want {
			if !strings.Contains(string(b), part) {
				t.Errorf("%s lacks %s:\n%s", name, part, b)
			}
		}
	}
}

func TestKeyPairFits(t *testing.T) {
	k, err := newKeyPair(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(k.cert, k.key); err != nil {
		t.Error(err)
	}
	if _, err := tls.LoadX509KeyPair(k.pem, k.pem); err != nil {
		t.Error(err)
	}
}

func TestSluiceAddrs(t *testing.T) {
	s := &site{ports: newPortPicker()}
	addrs, ports, err := s.sluiceAddrs(10)
	if err != nil {
		t.Fatal(err)
	}
	if ports.High-ports.Low != 9 {
		t.Errorf("range %d-%d, want 10 ports", ports.Low, ports.High)
	}
	seen := make(map[netip.AddrPort]bool)
	for _, addr := range []netip.AddrPort{addrs[serviceHTTP], addrs[serviceHTTPS], ports.Etcd, ports.Admin} {
		if p := int(addr.Port()); seen[addr] || p == 0 || p >= ports.Low && p <= ports.High {
			t.Errorf("%v is taken or in the range of mappings", addr)
		}
		seen[addr] = true
	}
	for _, name := range services() {
		if _, ok := addrs[name]; !ok {
			t.Errorf("no address for %s", name)
		}
	}
}

func TestTransaction(t *testing.T) {
	got := string(transaction([]keyValue{{"/sluice/ports/tcp/1", "127.0.0.1:22"}, {"/sluice/routes/a", `{"host":"a.test"}`}}))
	want := "\nput /sluice/ports/tcp/1 \"127.0.0.1:22\"\nput /sluice/routes/a \"{\\\"host\\\":\\\"a.test\\\"}\"\n\n\n"
	if got != want {
		t.Errorf("transaction = %q, want %q", got, want)
	}
}
