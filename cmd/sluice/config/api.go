package config

import (
	"net/netip"
	"slices"

	"github.com/remotegpu/sluice/router"
)

// API is what the control API may do, and its address for other machines.
type API struct {
	// Listen is the address. Default: none.
	Listen string `json:"listen"`
	// Cert and Key are PEM files for its TLS. Default: the certificates of the
	// names under domains/.
	Cert string `json:"cert"`
	Key  string `json:"key"`
	// ClientCA is a PEM file of the authorities whose certificates clients may
	// show in the place of a token. Default: none.
	ClientCA string `json:"client_ca"`
	// Space is how much of etcd environments may take, with their mappings and
	// routes. Default: 256MB. Have it alike on all nodes.
	Space router.Bytes `json:"space"`
	// Remember is how many requests with an Idempotency-Key are remembered of a
	// token. Default: 20000.
	Remember int `json:"remember" range:"1,1000000"`
	// DenyBackends are networks where environments may have no services that are
	// made with a token for some environments or pools, and where no name leads that
	// any environment has for a backend. nil: the node itself and its link; an empty
	// list: none.
	DenyBackends []netip.Prefix `json:"deny_backends"`
}

// defaultDeny is the node itself, and its link: the services there trust whoever
// reaches them.
func defaultDeny() []netip.Prefix {
	var deny []netip.Prefix
	for _, text := range []string{"127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10"} {
		deny = append(deny, netip.MustParsePrefix(text))
	}
	return deny
}

// defaultSpace is a small part of what etcd takes by default.
const defaultSpace = 256e6

const defaultRemember = 20000

func (a API) withDefaults() API {
	if a.Space == 0 {
		a.Space = defaultSpace
	}
	if a.Remember == 0 {
		a.Remember = defaultRemember
	}
	if a.DenyBackends == nil {
		a.DenyBackends = defaultDeny()
	}
	return a
}

func (c Config) checkAPI() error {
	a := c.API
	if (a.Cert == "") != (a.Key == "") {
		return wrong("api", "cert and key belong together; give both or neither")
	}
	if a.Space < 1e6 || a.Space > 4e9 {
		return wrong("api.space", "must be from 1MB to 4GB, and well below etcd's own quota")
	}
	if a.Listen == "" && slices.Max([]string{a.Cert, a.Key, a.ClientCA}) != "" {
		return wrong("api.listen", "is missing: cert, key and client_ca are for that address")
	}
	return nil
}
