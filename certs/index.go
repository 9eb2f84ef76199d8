package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

// index finds certificates by server name. It is immutable, but the domains in
// it are not: a certificate that is obtained or renewed is swapped in place, so
// that it costs the same however many names there are.
type index struct {
	live names // wanted, or imported
	rest names // wanted once; only as long as their certificates hold
}

// names finds domains by server name. The zero value is empty.
type names struct {
	exact map[string]*domain
	wild  map[string]*domain // by what follows "*."
}

func newIndex(domains map[string]*domain) *index {
	x := &index{}
	for _, d := range domains {
		if d.live() {
			x.live.add(d)
		} else if d.cert.Load() != nil {
			x.rest.add(d)
		}
	}
	return x
}

func (n *names) add(d *domain) {
	into, key := &n.exact, d.name
	if parent, ok := strings.CutPrefix(d.name, "*."); ok {
		into, key = &n.wild, parent
	}
	if *into == nil {
		*into = map[string]*domain{}
	}
	(*into)[key] = d
}

// get returns the domain of that very name, asterisk included, or nil.
func (n names) get(name string) *domain {
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return n.wild[parent]
	}
	return n.exact[name]
}

// covering returns the domains whose certificates would do for the host name,
// each of which may be nil: exact, and wildcard (one label, RFC 9525 section 6.3).
func (n names) covering(host string) (exact, wild *domain) {
	if i := strings.IndexByte(host, '.'); i > 0 {
		wild = n.wild[host[i+1:]]
	}
	return n.exact[host], wild
}

// find returns the best certificate for host, in lower case, or nil. One that
// holds comes before all that do not, of which only those of live names are any
// good: their clients may not look at dates.
func (x *index) find(host string) *tls.Certificate {
	now := time.Now()
	exact, wild := x.live.covering(host)
	cert, last := firstGood(exact, wild, now)
	if cert != nil || len(x.rest.exact)+len(x.rest.wild) == 0 {
		return either(cert, last)
	}
	exact, wild = x.rest.covering(host)
	cert, _ = firstGood(exact, wild, now)
	return either(cert, last)
}

// firstGood returns the certificate of the first of two domains, each of which
// may be nil, that holds, or else the first that does not.
func firstGood(exact, wild *domain, now time.Time) (good, bad *tls.Certificate) {
	for _, d := range [...]*domain{exact, wild} {
		if d == nil {
			continue
		}
		cert := d.cert.Load()
		switch {
		case cert == nil:
		case !now.Before(cert.Leaf.NotBefore) && now.Before(cert.Leaf.NotAfter):
			return cert, nil
		case bad == nil:
			bad = cert
		}
	}
	return nil, bad
}

// either returns a, or b where that is nil.
func either(a, b *tls.Certificate) *tls.Certificate {
	if a != nil {
		return a
	}
	return b
}

// absent says why find has nothing for host.
func (x *index) absent(host string) error {
	if host == "" {
		return errors.New("the client named no server, and there is no certificate for that")
	}
	exact, wild := x.live.covering(host)
	for _, d := range [...]*domain{exact, wild} {
		if d == nil {
			continue
		}
		if s := d.status.Load(); s != nil {
			what := "domains/" + d.name
			if s.Derived {
				what = d.name + ", which a route needs,"
			}
			return fmt.Errorf("no certificate for server name %q yet: %s is %v", host, what, s)
		}
	}
	return fmt.Errorf("no certificate for server name %q: no key under domains/ covers it", host)
}
