package main

import (
	"crypto/tls"
	"maps"
	"slices"
	"sync"

	"github.com/remotegpu/sluice/certs/tlskeys"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/router"
)

// minTLS returns the version that sluice.yaml names.
func minTLS(version string) uint16 {
	if version == "1.3" {
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

func clientAuthorities(from map[string]config.ClientAuth) map[string]clienttls.AuthorityFiles {
	to := map[string]clienttls.AuthorityFiles{}
	for name, files := range from {
		to[name] = clienttls.AuthorityFiles(files)
	}
	return to
}

// shareTLSKeys has the engine use the keys that the nodes share: at once those
// that this one has on disk.
func (n *node) shareTLSKeys() {
	keys := tlskeys.New(tlskeys.Config{
		Shared: n.shared, Period: n.cfg.TLS.TicketKeys, UseTickets: n.engine.TLSTerms().SetTicketKeys, UseECH: n.engine.TLSTerms().SetECHKeys,
		Logger: n.log, Registerer: n.registry,
	})
	n.parts["keys of TLS"] = keys.Run
}

// askingDomains are the domains whose clients are asked for a certificate: what
// keeps those from being verified belongs into their verdicts.
type askingDomains struct {
	telling sync.Mutex // held from looking to saying, so that what is said last is true
	mu      sync.Mutex // guards by
	by      map[string]*router.ClientAuth
}

// askingChanged brings the verdicts up to date of domains that ask, or did.
func (n *node) askingChanged(domains []*router.Domain) {
	is := map[string]*router.ClientAuth{}
	for _, d := range domains {
		if d.ClientAuth != nil {
			is[d.Name] = d.ClientAuth
		}
	}
	n.asking.mu.Lock()
	was := n.asking.by
	n.asking.by = is
	n.asking.mu.Unlock()
	for name, a := range is {
		if before := was[name]; before == nil || *before != *a {
			n.tellAsking(name)
		}
		delete(was, name)
	}
	for name := range was {
		n.tellAsking(name)
	}
}

// authoritiesChanged does so once files of authorities have changed.
func (n *node) authoritiesChanged() {
	n.asking.mu.Lock()
	names := slices.Collect(maps.Keys(n.asking.by))
	n.asking.mu.Unlock()
	for _, name := range names {
		n.tellAsking(name)
	}
}

// tellAsking brings the verdict of a domain up to date: what keeps its clients
// from being verified, if anything does.
func (n *node) tellAsking(name string) {
	n.asking.telling.Lock()
	defer n.asking.telling.Unlock()
	n.asking.mu.Lock()
	asks := n.asking.by[name]
	n.asking.mu.Unlock()
	trouble := n.engine.TLSTerms().Trouble(asks)
	n.control.SetCertificate("domains/"+name, trouble != "", trouble)
}
