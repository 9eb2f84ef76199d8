package router

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// PublishedName is a DNS name whose A and AAAA records are kept equal to the
// addresses of healthy nodes, or of healthy sources.
type PublishedName struct {
	Name string `json:"-"` // as in the key; may be *.wildcard
	Rev  int64  `json:"-"` // etcd revision of the value

	// Zone is the zone that the records are in; "" means the deepest of the
	// provider's zones that the name lies in.
	Zone string `json:"zone"`
	// Provider is the name of the DNS provider in the nodes' files that serves
	// the zone; "" means the one that lists the zone, or the only one there.
	Provider string `json:"provider"`
	// TTL is that of the records, in seconds.
	TTL int `json:"ttl" range:"1,86400"`
	// Regions are those whose nodes are published; none means all.
	Regions []string `json:"regions"`
	// Weights has answers weighted as nodes are, where the provider can do that.
	Weights bool `json:"weights"`
	// Sources are names whose addresses are published instead of those of nodes,
	// as far as a connection to Port is taken there.
	Sources []string `json:"sources"`
	Port    int      `json:"port" range:"1,65535"`
	// Min is how many addresses the name is left with at least, where there are
	// as many.
	Min int `json:"min" range:"1,1000"`
	// Interval is how long a change waits for after several in a row.
	Interval time.Duration `json:"interval"`
	// DryRun has changes shown and not made.
	DryRun bool `json:"dry_run"`
}

const (
	defaultNameTTL      = 60
	defaultNameInterval = 15 * time.Second
	maxNameInterval     = time.Hour
	maxSources          = 64
	// markerPrefix is how many bytes the label of the record that says whose a name
	// is has before the name's own first label. See package control/names.
	markerPrefix = len("_sluice-")
)

// ParsePublishedName reads the value of the key names/<name>, a JSON object.
func ParsePublishedName(name string, value []byte) (*PublishedName, error) {
	if err := CheckSize(value); err != nil {
		return nil, err
	}
	if len(strings.TrimSpace(string(value))) == 0 {
		return nil, fieldErrorf("", "the value is empty; put {\"zone\": \"<zone>\"} or {}")
	}
	p := &PublishedName{Name: name, TTL: defaultNameTTL, Min: 1, Interval: defaultNameInterval}
	if err := Decode(value, p); err != nil {
		return nil, err
	}
	return p, p.check()
}

func (p *PublishedName) check() error {
	bare := strings.TrimPrefix(p.Name, "*.")
	if p.Zone != "" {
		if _, err := ParseDomainName(p.Zone); err != nil || strings.HasPrefix(p.Zone, "*") {
			return fieldErrorf("zone", "%q is not a zone; write a name such as x-gpu.com, in lower case and without a final dot", p.Zone)
		}
		if bare != p.Zone && !strings.HasSuffix(bare, "."+p.Zone) {
			return fieldErrorf("zone", "%s is not in the zone %s; give the zone that it lies in", p.Name, p.Zone)
		}
	}
	if label, _, _ := strings.Cut(bare, "."); len(label)+markerPrefix > 63 {
		return fieldErrorf("", "the first label of %s has %d characters; at most %d leave room for the record beside it that says whose the name is", p.Name, len(label), 63-markerPrefix)
	}
	if len(bare)+markerPrefix+len("wildcard.") > 250 {
		return fieldErrorf("", "%s is too long for a record beside it that says whose the name is", p.Name)
	}
	for i, r := range p.Regions {
		if r == "" || slices.Contains(p.Regions[:i], r) {
			return fieldErrorf(fmt.Sprintf("regions[%d]", i), "%q is empty or there twice; write each region once", r)
		}
	}
	if p.Interval < time.Second || p.Interval > maxNameInterval {
		return fieldErrorf("interval", "must be from 1s to %v, not %v", maxNameInterval, p.Interval)
	}
	return p.checkSources()
}

func (p *PublishedName) checkSources() error {
	switch {
	case len(p.Sources) == 0 && p.Port != 0:
		return fieldErrorf("port", "is that of sources, and there are none; nodes are probed by each other")
	case len(p.Sources) == 0:
		return nil
	case len(p.Sources) > maxSources:
		return fieldErrorf("sources", "has %d names; at most %d are allowed", len(p.Sources), maxSources)
	case p.Port == 0:
		return fieldErrorf("port", "is missing; give the TCP port that sources are probed at, such as 443")
	case len(p.Regions) > 0:
		return fieldErrorf("regions", "are those of nodes; leave it out with sources")
	case p.Weights:
		return fieldErrorf("weights", "are those of nodes; leave it out with sources")
	}
	for i, s := range p.Sources {
		path := fmt.Sprintf("sources[%d]", i)
		if _, err := ParseDomainName(s); err != nil || strings.HasPrefix(s, "*") {
			return fieldErrorf(path, "%q is not a name; write one such as dns1.example.com, in lower case and without a final dot", s)
		}
		if s == p.Name || slices.Contains(p.Sources[:i], s) {
			return fieldErrorf(path, "%s is there twice, or the name itself; a name cannot be its own source", s)
		}
	}
	return nil
}
