package main

import (
	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// issuers returns the authorities of the node's file as package certs has them.
func issuers(from config.ACME) []certs.Issuer {
	to := make([]certs.Issuer, len(from.Issuers))
	for n, i := range from.Issuers {
		to[n] = certs.Issuer{
			Name: i.Name, Directory: i.Directory, Staging: i.Staging, Email: i.Email, CAFile: i.CAFile,
			Profile: i.Profile, PreferredChains: i.PreferredChains, Roots: i.Roots,
			Orders: certs.Budget(*i.Orders), Duplicates: certs.Budget(*i.Duplicates),
		}
		if i.EAB != nil {
			to[n].EABKeyID, to[n].EABKey = i.EAB.KeyID, i.EAB.HMACKey
		}
	}
	return to
}
