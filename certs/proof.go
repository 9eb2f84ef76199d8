package certs

import (
	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs/dns01"
)

// newProof builds what proves control of names to authorities. It starts nothing.
func newProof(cfg Config, storage certmagic.Storage) (*dns01.Solver, error) {
	return dns01.New(dns01.Config{
		Resolvers:  cfg.Resolvers,
		Rule:       cfg.Propagation,
		Delay:      cfg.PropagationDelay,
		Timeout:    cfg.PropagationTimeout,
		Providers:  cfg.Providers,
		Memory:     storage,
		Stale:      2 * (attemptLimit + cfg.PropagationDelay + max(0, cfg.PropagationTimeout)),
		Checked:    cfg.checked,
		Logger:     cfg.Logger,
		Registerer: cfg.Registerer,
	})
}
