// Package deploy holds what operators put on machines: the unit, the node's
// first file, kernel settings, a firewall, alert rules, dashboards, runbooks.
// `sluice install` and the container image are made of the very files that the
// .deb has, which is what the embedding is for: there is no code here.
package deploy

import "embed"

// Files are the files that a machine gets, by their names in this directory.
//
//go:embed sluice.service sluice.yaml sluice.sysusers sluice.tmpfiles sluice.logrotate sysctl.conf nftables.conf
var Files embed.FS
