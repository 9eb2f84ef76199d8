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

// find returns the best certificate for host, in lower case, or nil.
func (x *index) find(host string) *tls.Certificate {
	exact, wild := x.live.covering(host)
	for _, d := range [...]*domain{exact, wild} {
		if d == nil {
			continue
		}
		if cert := d.cert.Load(); cert != nil {
			return cert
		}
	}
	if len(x.rest.exact)+len(x.rest.wild) == 0 {
		return nil
	}
	exact, wild = x.rest.covering(host)
	for _, d := range [...]*domain{exact, wild} {
		if d == nil {
			continue
		}
		if cert := d.cert.Load(); cert != nil && time.Now().Before(cert.Leaf.NotAfter) {
			return cert
		}
	}
	return nil
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
			return fmt.Errorf("no certificate for server name %q yet: domains/%s is %v", host, d.name, s)
		}
	}
	return fmt.Errorf("no certificate for server name %q: no key under domains/ covers it", host)
}
