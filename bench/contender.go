package main

import (
	"context"
	"crypto/x509"
	"embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
)

// service is one thing that contenders proxy, or the origin serves.
type service string

// The services. A contender without one of them has no figures in its rows.
const (
	serviceHTTP  service = "http"  // clear HTTP/1.1, to the HTTP origin
	serviceHTTPS service = "https" // TLS with HTTP/1.1 and HTTP/2, to the HTTP origin
	serviceEcho  service = "echo"  // raw TCP to a server that echoes
	serviceBlast service = "blast" // raw TCP to a server that sends without end
	serviceUDP   service = "udp"   // UDP to a server that echoes datagrams
	serviceH3    service = "h3"    // HTTP/3, to the HTTP origin; on serviceHTTPS's port
)

// webServices are those that any HTTP proxy listens for on TCP.
func webServices() []service { return []service{serviceHTTP, serviceHTTPS} }

// streamServices are those that contenders listen for on TCP.
func streamServices() []service { return append(webServices(), serviceEcho, serviceBlast) }

// services are those that have ports of their own.
func services() []service { return append(streamServices(), serviceUDP) }

// onTCP reports whether the service accepts TCP connections.
func (s service) onTCP() bool { return s != serviceUDP && s != serviceH3 }

// addressBook says where each service is.
type addressBook map[service]netip.AddrPort

// byName is the book as templates can read it: they take only plain strings for
// keys.
func (b addressBook) byName() map[string]netip.AddrPort {
	m := make(map[string]netip.AddrPort)
	for s, addr := range b {
		m[string(s)] = addr
	}
	return m
}

// host is the name that requests ask for.
const host = "bench.localhost"

// contender is a proxy that can be measured.
type contender struct {
	name  string
	tools []tool
	// web says that it proxies HTTP alone: it has no part in studies of ports.
	web     bool
	version func(ctx context.Context, o *options) string
	// start returns once the contender answers at all. On error nothing is
	// left running; else the caller stops the edge.
	start func(ctx context.Context, s *site) (*edge, error)
}

func allContenders() []contender {
	return []contender{nginx(), haproxy(), caddy(), nginxH3(), baseline(), sluice()}
}

// reference is the contender that ratios are taken to.
const reference = "nginx"

// site is what a contender is given to start.
type site struct {
	options *options
	dir     string // of its own, for configuration, data and logs
	relays  int    // how many connections it has to bear at a time
	files   int    // how many files each of its processes may open; 0: as it comes
	ports   *portPicker
	origin  addressBook
	binary  string   // of sluice
	host    *netHost // where it runs; nil: where the bench does
	pair    keyPair  // certificate and key for host, for those without their own
}

// edge is a contender that runs.
type edge struct {
	name  string
	root  int // process at the root of all that it runs as
	addrs addressBook
	roots *x509.CertPool // that its certificate is verified with
	admin netip.AddrPort // where its garbage collector is reached; of sluice only
	proc  *process       // nil where the edge is the test itself
}

// addrs picks where a contender listens for the services that it has.
func (s *site) addrs(have []service) (addressBook, error) {
	m := make(addressBook)
	for _, name := range have {
		addr, err := s.ports.pick()
		if err != nil {
			return nil, err
		}
		m[name] = addr
	}
	return m, nil
}

//go:embed *.tmpl
var templates embed.FS

// configValues is what the configuration templates see.
type configValues struct {
	Listen, Origin map[string]netip.AddrPort
	Host           string
	Dir            string
	Root           bool   // we run as root
	Cert, Key, Pem string // files: certificate, key, and both in one
	StreamModule   string
	Relays         int // to bear at a time
	Connections    int // of all relays, two each
	Files          int // that each process may open; 0: as it comes
	Sluice         sluicePorts
	PortsMode      string
	Ports          []netip.AddrPort // of nginx-ports.conf
}

// writeConfig writes the configuration made of the template to the site's
// directory and returns its path.
func (s *site) writeConfig(name string, v configValues) (string, error) {
	v.Origin, v.Host, v.Dir, v.Root = s.origin.byName(), host, s.dir, os.Geteuid() == 0
	v.Cert, v.Key, v.Pem = s.pair.cert, s.pair.key, s.pair.pem
	v.PortsMode = s.options.portsMode
	v.Relays, v.Connections, v.Files = s.relays, 2*s.relays, s.files
	t, err := template.New(name).Option("missingkey=error").ParseFS(templates, name+".tmpl")
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := t.ExecuteTemplate(f, name+".tmpl", v); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return path, f.Close()
}
