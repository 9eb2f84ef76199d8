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
	live    names // wanted
	retired names // wanted once; only as long as their certificates hold
}

// names finds domains by server name. The zero value is empty.
type names struct {
	exact map[string]*domain
	wild  map[string]*domain // by what follows "*."
}

func newNames(domains map[string]*domain) names {
	n := names{exact: map[string]*domain{}, wild: map[string]*domain{}}
	for name, d := range domains {
		if parent, ok := strings.CutPrefix(name, "*."); ok {
			n.wild[parent] = d
		} else {
			n.exact[name] = d
		}
	}
	return n
}

// get returns the domain of that very name, asterisk included, or nil.
func (n names) get(name string) *domain {
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return n.wild[parent]
	}
	return n.exact[name]
}

// covering returns the domains whose certificates would do for the host name,
// each of which may be nil: exact, and wildcard (one label, RFC 6125 section 6.4.3).
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
	if len(x.retired.exact)+len(x.retired.wild) == 0 {
		return nil
	}
	exact, wild = x.retired.covering(host)
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
		if d != nil {
			return fmt.Errorf("no certificate for server name %q yet: domains/%s is %v", host, d.name, d.status.Load())
		}
	}
	return fmt.Errorf("no certificate for server name %q: no key under domains/ covers it", host)
}
