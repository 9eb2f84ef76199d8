package dns01

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"

	provider "github.com/remotegpu/sluice/certs/dns"
)

// maxHops bounds how many CNAME records and delegations lead from the name of a
// challenge to its record. Authorities follow about as many.
const maxHops = 8

// place is where the record of a challenge goes.
type place struct {
	name    string   // with its last dot
	zone    string   // likewise
	servers []server // of the zone; none: blind says why
	blind   error    // why nobody can be asked whether the record is there; nil: servers can
}

// server is a name server of a zone.
type server struct {
	name  string   // as the zone has it, or its address
	addrs []string // host:port; none: its name has no address
	err   error    // why there are none
}

// zone is where a zone begins, and who was found to answer for it on the way.
type zone struct {
	name    string   // with its last dot
	answers []string // resolvers that answer for it with authority
}

// findZone asks resolvers which zone name is in, from name upwards. An answer
// that says "there is no such thing" names the zone it speaks for (RFC 2308
// section 2), so that one question is enough most of the time.
func (s *Solver) findZone(ctx context.Context, name string) (zone, error) {
	for at := dns.CanonicalName(name); at != "."; at = parent(at) {
		var found string
		m, resolver, err := s.ask.resolve(ctx, at, dns.TypeSOA, func(m *dns.Msg) (err error) {
			found, err = zoneIn(m, at)
			return err
		})
		if err != nil {
			return zone{}, fmt.Errorf("no resolver says which zone %s is in: %w", name, err)
		}
		if found == "" {
			continue
		}
		z := zone{name: found}
		if m.Authoritative {
			z.answers = []string{resolver}
		}
		return z, nil
	}
	return zone{}, fmt.Errorf("resolvers know no zone that %s is in", name)
}

// zoneIn returns the zone that an answer to the question for the SOA of name
// speaks for, or "" if it speaks for none that name is in.
func zoneIn(m *dns.Msg, name string) (string, error) {
	for _, rr := range m.Answer {
		if rr.Header().Rrtype == dns.TypeCNAME && same(rr.Header().Name, name) {
			return "", nil // what follows is about the zone that it leads to
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		if rr.Header().Rrtype != dns.TypeSOA {
			continue
		}
		owner := dns.CanonicalName(rr.Header().Name)
		switch {
		case owner == "." && m.Rcode == dns.RcodeNameError:
			return "", fmt.Errorf("says that %s does not exist at all", name)
		case !dns.IsSubDomain(owner, name):
			return "", fmt.Errorf("answers with zone %s, which %s is not in", owner, name)
		case owner == ".":
			return "", nil
		}
		return owner, nil
	}
	return "", nil
}

// parent returns name without its first label; of a single label, the root.
func parent(name string) string {
	if i := strings.IndexByte(name, '.'); i >= 0 && i+1 < len(name) {
		return name[i+1:]
	}
	return "."
}

func same(a, b string) bool { return dns.CanonicalName(a) == dns.CanonicalName(b) }

// locate finds where the record of a challenge goes: in the zone of the name
// without its first label, unless that zone's servers say that the name is
// delegated. asked is the provider of the domain.
func (s *Solver) locate(ctx context.Context, name, asked string) (place, error) {
	at := dns.CanonicalName(name)
	path := []string{at}
	z, err := s.findZone(ctx, parent(at))
	if err != nil {
		return place{}, err
	}
	servers, err := s.serversOf(ctx, z, asked)
	for len(path) <= maxHops+1 {
		p := place{name: at, zone: z.name, servers: servers, blind: err}
		next, hopErr := s.hop(ctx, p)
		if hopErr != nil {
			return place{}, hopErr
		}
		switch {
		case next.cname != "":
			at = next.cname
			path = append(path, at)
			if z, err = s.findZone(ctx, parent(at)); err != nil {
				return place{}, fmt.Errorf("%s: %w", strings.Join(path, " leads to "), err)
			}
			servers, err = s.serversOf(ctx, z, asked)
		case next.zone != "" && next.zone != z.name:
			z = zone{name: next.zone}
			path = append(path, "zone "+z.name)
			servers, err = s.serversOf(ctx, z, asked)
		default:
			p.blind = next.blind
			return p, nil
		}
	}
	return place{}, fmt.Errorf("it leads in circles or too far: %s", strings.Join(path, " leads to "))
}

// hop is where a name leads: elsewhere by CNAME, into a zone below, or nowhere.
type hop struct {
	cname string
	zone  string
	blind error // the servers could not be asked
}

// hop asks the servers of p.zone about p.name.
func (s *Solver) hop(ctx context.Context, p place) (hop, error) {
	blind := p.blind
	if blind == nil {
		m, err := s.askServers(ctx, p)
		if err == nil {
			h := readHop(m, p)
			if h.cname != "" && s.isWildcard(ctx, p, h.cname) {
				h = hop{}
			}
			return h, nil
		}
		blind = err
	}
	if ctx.Err() != nil {
		return hop{}, errStopped
	}
	// Nobody there answers. A resolver may still know of a delegation; that it
	// remembers the absence of a name does no harm where it is not asked again.
	m, _, err := s.ask.resolve(ctx, p.name, dns.TypeCNAME, nil)
	if err != nil {
		return hop{blind: blind}, nil
	}
	return hop{cname: readHop(m, p).cname, blind: blind}, nil
}

// isWildcard reports whether a CNAME at p.name stands there only because the zone
// has one for *: then it is meant for hosts, and a record of that very name takes
// its place. Any other name would lead to the same target.
func (s *Solver) isWildcard(ctx context.Context, p place, target string) bool {
	any := p
	any.name = strings.ToLower("_" + rand.Text() + "." + parent(p.name))
	m, err := s.askServers(ctx, any)
	return err == nil && readHop(m, any).cname == target
}

// readHop reads an answer about p.name.
func readHop(m *dns.Msg, p place) hop {
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && same(c.Hdr.Name, p.name) {
			return hop{cname: dns.CanonicalName(c.Target)}
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		owner := dns.CanonicalName(rr.Header().Name)
		switch rr.Header().Rrtype {
		case dns.TypeSOA, dns.TypeNS:
			if dns.IsSubDomain(p.zone, owner) && dns.IsSubDomain(owner, p.name) {
				return hop{zone: owner}
			}
		}
	}
	return hop{}
}

// askServers asks the servers of p.zone for the SOA of p.name until one answers
// with authority or refers to the servers of a zone below.
func (s *Solver) askServers(ctx context.Context, p place) (*dns.Msg, error) {
	var errs []error
	for _, srv := range p.servers {
		err := srv.err
		for _, addr := range srv.addrs {
			var m *dns.Msg
			if m, err = s.ask.exchange(ctx, addr, p.name, dns.TypeSOA, false); err != nil {
				continue
			}
			if err = speaks(m); err == nil || refers(m, p) {
				return m, nil
			}
		}
		errs = append(errs, fmt.Errorf("%s %w", srv.name, err))
		if ctx.Err() != nil {
			return nil, errStopped
		}
	}
	return nil, join(errs)
}

// speaks says what keeps an answer from being one of a server of the zone.
func speaks(m *dns.Msg) error {
	switch {
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return fmt.Errorf("says %s", rcode(m))
	case !m.Authoritative:
		return errors.New("answers without authority: it does not serve the zone, or something between answers in its place")
	}
	return nil
}

// refers reports whether an answer refers to a zone between p.zone and p.name.
func refers(m *dns.Msg, p place) bool {
	return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && slices.ContainsFunc(m.Ns, func(rr dns.RR) bool {
		owner := dns.CanonicalName(rr.Header().Name)
		return rr.Header().Rrtype == dns.TypeNS && owner != p.zone && dns.IsSubDomain(p.zone, owner) && dns.IsSubDomain(owner, p.name)
	})
}

// serversOf returns the servers of a zone: those that a provider's entry gives,
// or those that DNS gives and the resolvers that are among them.
func (s *Solver) serversOf(ctx context.Context, z zone, asked string) ([]server, error) {
	if p, err := s.choose(z.name, asked); err == nil && slices.Contains(p.Zones(), z.name) && len(p.Nameservers()) > 0 {
		return s.addresses(ctx, p.Nameservers()), nil
	}
	var servers []server
	m, _, err := s.ask.resolve(ctx, z.name, dns.TypeNS, nil)
	if err == nil {
		var names []string
		for _, rr := range m.Answer {
			if ns, ok := rr.(*dns.NS); ok && same(ns.Hdr.Name, z.name) {
				names = append(names, net.JoinHostPort(provider.Canonical(ns.Ns), s.ask.port))
			}
		}
		servers = s.addresses(ctx, names)
	}
	known := func(addr string) bool {
		return slices.ContainsFunc(servers, func(srv server) bool { return slices.Contains(srv.addrs, addr) })
	}
	for _, addr := range z.answers {
		if !known(addr) {
			servers = append(servers, server{name: addr, addrs: []string{addr}})
		}
	}
	switch {
	case len(servers) > 0:
		return servers, nil
	case err != nil:
		return nil, fmt.Errorf("no resolver says who serves zone %s: %w", z.name, err)
	}
	return nil, fmt.Errorf("resolvers know no servers of zone %s", z.name)
}

// addresses looks up the servers, each host:port, all at once.
func (s *Solver) addresses(ctx context.Context, hostports []string) []server {
	servers := make([]server, len(hostports))
	var all sync.WaitGroup
	for i, hp := range hostports {
		host, port, err := net.SplitHostPort(hp)
		if err != nil {
			servers[i] = server{name: hp, err: err}
			continue
		}
		if _, err := netip.ParseAddr(host); err == nil {
			servers[i] = server{name: hp, addrs: []string{hp}}
			continue
		}
		all.Go(func() { servers[i] = s.address(ctx, dns.Fqdn(host), port) })
	}
	all.Wait()
	return servers
}

// address looks up the addresses of one name server, of both families.
func (s *Solver) address(ctx context.Context, host, port string) server {
	srv := server{name: host}
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m, _, err := s.ask.resolve(ctx, host, kind, nil)
		if err != nil {
			srv.err = fmt.Errorf("has no address that a resolver knows: %w", err)
			continue
		}
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				srv.addrs = append(srv.addrs, net.JoinHostPort(rr.A.String(), port))
			case *dns.AAAA:
				srv.addrs = append(srv.addrs, net.JoinHostPort(rr.AAAA.String(), port))
			}
		}
	}
	switch {
	case len(srv.addrs) > 0:
		srv.err = nil
	case srv.err == nil:
		srv.err = errors.New("has no address")
	}
	return srv
}

// join puts errors on one line.
func join(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}
