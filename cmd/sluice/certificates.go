package main

import (
	"context"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/router"
)

func (n *node) openCertificates(context.Context) error {
	c := n.cfg
	providers, err := dns.NewAll(c.DNS, dns.NewMetrics(n.registry))
	if err != nil {
		return usageError{err}
	}
	n.providers = providers
	n.certs, err = certs.New(certs.Config{
		Store: n.shared, Node: c.Node, Nodes: n.liveNodes,
		NamesFromRoutes: certs.NamesFromRoutes(c.ACME.NamesFromRoutes),
		DataDir:         c.Data, LocalCA: c.LocalCA,
		Issuers: issuers(c.ACME), FallBackAfter: c.ACME.FallBackAfter,
		Resolvers: c.ACME.Resolvers, Propagation: dns01.Rule(c.ACME.Propagation),
		PropagationDelay: c.ACME.PropagationDelay, PropagationTimeout: c.ACME.PropagationTimeout,
		Providers: providers, Changed: n.certificateChanged, RouteChanged: n.routeCertificateChanged,
		Logger: n.log, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.parts["certificates"] = n.certs.Run
	return nil
}

// nodesLimit bounds reading which nodes there are.
const nodesLimit = 3 * time.Second

// liveNodes returns the names of the nodes that live and are not about to stop.
func (n *node) liveNodes(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, nodesLimit)
	defer cancel()
	records, err := nodeRecords(ctx, n.client)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range sortedKeys(records) {
		if state := records[name].State; state != "" && state != fleet.Draining {
			names = append(names, name)
		}
	}
	return names, nil
}

// certificateChanged brings the verdict of a key under domains/ up to date.
func (n *node) certificateChanged(name string) {
	s, ok := n.certs.Status(name)
	if !ok || n.control == nil {
		return
	}
	text := "certificate " + s.String()
	switch s.State {
	case certs.StateFailed:
		text = "no_certificate: " + s.String()
	case certs.StateExpiring:
		text = s.String()
	case certs.StateObtained, certs.StateObtaining:
		if s.Err == nil && s.Unusable != nil {
			text = "provider_unusable: " + text
		}
	}
	n.control.SetState("domains/"+name, s.Trouble(), text)
}

// routeCertificateChanged brings the verdict of a route up to date.
func (n *node) routeCertificateChanged(name string, need certs.Need) {
	if _, deeper := n.deepRoutes.Load(name); deeper {
		need = need.Deeper()
	}
	n.control.SetCertificate("routes/"+name, need.Missing, need.Text)
}

// routesChanged tells which certificates routes need that came, changed or went.
func (n *node) routesChanged(routes map[string]*router.Route) {
	ports := make([]int, len(n.cfg.Listeners.HTTPS))
	for i, l := range n.cfg.Listeners.HTTPS {
		ports[i] = config.Port(l.Address)
	}
	needs := make(map[string][]string, len(routes))
	for name, r := range routes {
		var is router.CertNames
		if r != nil {
			is = r.CertNames(ports)
		}
		needs[name] = is.Names
		if is.Deeper {
			n.deepRoutes.Store(name, true)
		} else {
			n.deepRoutes.Delete(name)
		}
		if len(needs[name]) == 0 {
			n.control.SetCertificate("routes/"+name, false, "")
		}
	}
	n.certs.SetRoutes(needs)
}

// domainsChanged hands the wanted certificates on.
func (n *node) domainsChanged(domains []*router.Domain) {
	wanted := make([]certs.Domain, len(domains))
	for i, d := range domains {
		wanted[i] = certs.Domain{Name: d.Name, Provider: d.Provider, Issuer: d.Issuer, MustStaple: d.MustStaple, Rev: d.Rev}
	}
	n.certs.SetDomains(wanted)
	n.askingChanged(domains)
}
