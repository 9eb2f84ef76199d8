// Package dns finds the addresses of a name as the system's own resolver would,
// and tells for how long they may be used, which Go's resolver does not.
//
// It reads /etc/hosts first and then asks the name servers of /etc/resolv.conf
// (as with "hosts: files dns" in nsswitch.conf): search domains, ndots, timeout,
// attempts, rotate, use-vc and no-aaaa count, and changes of both files are
// noticed. It is a stub resolver (RFC 1034 section 5.3.1): recursion, validation
// and what is behind a CNAME are the name servers' work. It keeps no answers;
// proxy/upstream does.
package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// lookupTimeout bounds a look-up whose context has no deadline.
	lookupTimeout = 5 * time.Second
	// otherFamily is how long addresses of one family wait for those of the
	// other: some name servers never answer one of the two questions.
	otherFamily = 500 * time.Millisecond
	// hostsTTL is for how long an answer from the hosts file holds.
	hostsTTL = 5 * time.Second
	// maxAddrs bounds the addresses of a name. An answer can hold thousands.
	maxAddrs = 64
)

// Config says where a Client finds what it needs. The zero value is the system's.
type Config struct {
	ResolvConf string // "": /etc/resolv.conf
	Hosts      string // "": /etc/hosts
	Port       uint16 // of all name servers; 0: 53
}

// Client looks up names. Make it with New; it is safe for concurrent use, and
// starts nothing that outlasts a call.
type Client struct {
	conf  file[*conf]
	hosts file[hosts]
	port  uint16
	dead  suspects
	turn  atomic.Uint32 // of "rotate"
}

// New returns a Client. The files are read when they are needed.
func New(cfg Config) *Client {
	orDefault := func(path, otherwise string) string {
		if path == "" {
			return otherwise
		}
		return path
	}
	port := cfg.Port
	if port == 0 {
		port = 53
	}
	return &Client{
		conf:  file[*conf]{path: orDefault(cfg.ResolvConf, "/etc/resolv.conf"), parse: parseConf},
		hosts: file[hosts]{path: orDefault(cfg.Hosts, "/etc/hosts"), parse: parseHosts},
		port:  port,
	}
}

// Lookup returns the addresses of name, IPv4 and IPv6, in the order to try (RFC
// 6724 section 6), at most 64 of them, and for how long they hold: the least TTL
// of the records they come from, which may be 0.
//
// The error is a *net.DNSError. With IsNotFound there is no such name, or it has
// no addresses, and ttl says for how long that holds (RFC 2308 section 5), 0
// where the servers did not say. Anything else says nothing about the name, and
// ttl is 0.
func (c *Client) Lookup(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, err error) {
	name = strings.ToLower(name)
	bare := strings.TrimSuffix(name, ".")
	if addrs := c.hosts.get()[bare]; len(addrs) > 0 {
		return order(addrs), hostsTTL, nil
	}
	if bare == "localhost" || strings.HasSuffix(bare, ".localhost") {
		// No name server is to be asked (RFC 6761 section 6.3).
		return order([]netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}), hostsTTL, nil
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
	}
	cf := c.conf.get()
	names := cf.names(name)
	if len(names) == 0 {
		return nil, 0, &net.DNSError{Err: "the name is not one that DNS could hold", Name: name, IsNotFound: true}
	}
	return c.search(ctx, cf, name, names)
}

// search looks up names, which name may stand for, until one has addresses.
func (c *Client) search(ctx context.Context, cf *conf, name string, names []string) ([]netip.Addr, time.Duration, error) {
	var unsure *net.DNSError
	least := time.Duration(-1)
	for _, fqdn := range names {
		a := c.both(ctx, cf, fqdn)
		switch {
		case len(a.addrs) > 0:
			return order(a.addrs), a.ttl, nil
		case a.err == nil: // there are none
			if least < 0 || a.ttl < least {
				least = a.ttl
			}
		case a.gone():
			// A name further down the list might be another machine's.
			a.err.Name = name
			return nil, 0, a.err
		default:
			unsure = a.err
		}
	}
	if unsure != nil {
		unsure.Name = name
		return nil, 0, unsure
	}
	text := "no such host"
	if len(names) > 1 {
		text = fmt.Sprintf("no such host, nor one in the search domains %s", strings.Join(cf.search, ", "))
	}
	return nil, least, &net.DNSError{Err: text, Name: name, IsNotFound: true}
}

// answer is what the servers say about one name: addresses; or, without an
// error, that it has none; or an error.
type answer struct {
	addrs []netip.Addr
	none  bool // the name does not exist at all
	ttl   time.Duration
	err   *net.DNSError
}

// gone reports whether nobody could be reached, as opposed to a server saying
// that it cannot find out, which may be about this one name.
func (a *answer) gone() bool { return a.err != nil && a.err.IsTimeout }

// both asks for the IPv4 and the IPv6 addresses of fqdn at the same time.
func (c *Client) both(ctx context.Context, cf *conf, fqdn string) answer {
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	if cf.noAAAA {
		types = types[:1]
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(types)) // nobody is kept waiting
	for _, t := range types {
		go func() { answers <- c.one(ctx, cf, fqdn, t) }()
	}
	var late <-chan time.Time
	var got []answer
	for len(got) < len(types) {
		select {
		case a := <-answers:
			got = append(got, a)
			if len(a.addrs) > 0 && late == nil {
				timer := time.NewTimer(otherFamily)
				defer timer.Stop()
				late = timer.C
			}
		case <-late:
			cancel() // and the other one says so at once
			late = nil
		}
	}
	return join(got)
}

// join makes one answer of those for both families.
func join(got []answer) answer {
	all := got[0]
	for _, a := range got[1:] {
		switch {
		case len(all.addrs) > 0 && len(a.addrs) > 0:
			all.addrs, all.ttl = append(all.addrs, a.addrs...), min(all.ttl, a.ttl)
		case len(a.addrs) > 0, len(all.addrs) == 0 && a.none, len(all.addrs) == 0 && all.err == nil && !all.none && a.err != nil:
			all = a // addresses beat all else, and a name that is not there has neither family
		case len(all.addrs) == 0 && all.err == nil && a.err == nil:
			all.ttl = min(all.ttl, a.ttl)
		}
	}
	if len(all.addrs) > maxAddrs {
		all.addrs = all.addrs[:maxAddrs]
	}
	return all
}
