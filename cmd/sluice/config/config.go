// Package config reads sluice.yaml, the node's own file: what a node needs
// before it can reach etcd, and nothing that changes while it runs.
//
// Load is pure but for reading the files and environment variables it is given,
// and never half-succeeds: the Config it returns is complete, checked and has
// every default filled in, so that nobody downstream asks whether a field is
// zero. Errors name file, line, field and what would be right. cmd/sluice is
// its only caller.
package config

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/router"
)

// Config is the content of sluice.yaml. It must not be modified once loaded.
type Config struct {
	// Node is the node's name in nodes/ and verdicts/. Default: the host name.
	Node string `json:"node"`
	// User is who the node runs as when root starts it, user or user:group.
	// Default: whoever starts it.
	User string `json:"user"`
	// Sandbox says whether the node confines itself to its own files and to the
	// system calls of a proxy: "auto" as far as the kernel can, "require" or it
	// does not start, "off". Default: auto.
	Sandbox string `json:"sandbox"`
	// Zone is where the node stands, in the words of the targets' zones. Default:
	// nowhere in particular.
	Zone string `json:"zone"`
	// CookieKey is the secret, the same on all nodes of a cluster, by which the
	// cookies of sticky backends are made. Default: one of the node's own.
	CookieKey string `json:"cookie_key"`
	// ClusterKeyFile holds the key that seals what the nodes share of
	// certificates. Default: <data>/cluster.key, which the first node of a cluster
	// makes.
	ClusterKeyFile string `json:"cluster_key_file"`
	// UpstreamTLS are the files that backends' TLS refers to, by a name of your
	// choice.
	UpstreamTLS map[string]UpstreamTLS `json:"upstream_tls"`
	// PasswordFiles are files of users and hashes of their passwords, as htpasswd
	// makes them, by a name of your choice that basic_auth.file refers to.
	PasswordFiles map[string]string `json:"password_files"`
	// Data is the directory for embedded etcd, certificates and the last good
	// state. Default: /var/lib/sluice.
	Data string `json:"data"`
	Etcd Etcd   `json:"etcd"`
	// Fleet says what the node is among others.
	Fleet Fleet `json:"fleet"`
	// ShrinkGuard says when deletions are held back.
	ShrinkGuard ShrinkGuard `json:"shrink_guard"`
	// History says how long changes of keys are kept.
	History History `json:"history"`

	Listeners Listeners `json:"listeners"`
	// Ports are the ports that mappings may open, TCP and UDP. Default: none.
	Ports router.Ports `json:"ports"`
	// PortsMode says how those are opened: "bind", a socket for each mapped
	// port; "steer", a few sockets for all of them; "auto", steer where the
	// machine allows it. Default: auto.
	PortsMode string `json:"ports_mode"`
	// Admin is the address of metrics, health and pprof. Default:
	// 127.0.0.1:9180. It has no authentication: keep it on loopback or a
	// private network.
	Admin string `json:"admin"`

	// API is where the control API is, besides /api/ of the admin address.
	API API `json:"api"`

	ACME ACME `json:"acme"`
	// DNS are the DNS providers that certificates are obtained through, by a
	// name of your choice.
	DNS map[string]dns.Config `json:"dns"`
	// LocalCA has names without any other certificate served by a certificate
	// of the node's own development CA, whose root is <data>/ca.pem.
	LocalCA bool `json:"local_ca"`
	// Demo is the address of the built-in demo backend. Default: none.
	Demo string `json:"demo"`

	// HTTP is what is done with the responses of every route that does not say
	// otherwise. Default: nothing.
	HTTP router.Policy `json:"http"`
	// Pages is the directory of the files that error pages may be taken from.
	// Default: none.
	Pages string `json:"pages"`

	// TLS says how TLS is spoken with clients.
	TLS TLS `json:"tls"`
	// ClientAuth are the authorities of clients' certificates that domains refer
	// to, by a name of your choice.
	ClientAuth map[string]ClientAuth `json:"client_auth"`
	// Clients bound what client connections may take.
	Clients Clients `json:"clients"`

	// TrustedProxies are the networks whose PROXY headers are believed.
	TrustedProxies []netip.Prefix `json:"trusted_proxies"`
	// DrainTimeout is how long flows may go on after SIGTERM. Default: 30s.
	DrainTimeout time.Duration `json:"drain_timeout"`
	// Upgrade says how the node is replaced by another version of itself.
	Upgrade Upgrade `json:"upgrade"`
	Log     Log     `json:"log"`
}

// Upgrade says how the node is replaced by another version of itself.
type Upgrade struct {
	// Linger is how long a process that was replaced keeps the flows that it has;
	// 0 means not at all. nil means 12h, and Load leaves none.
	Linger *time.Duration `json:"linger"`
	// Timeout is how long a new process may take until it is ready. Default: 1m.
	Timeout time.Duration `json:"timeout"`
}

// Etcd says where the cluster's etcd is.
type Etcd struct {
	// Endpoints are the URLs of an etcd cluster. Empty: the node runs its own.
	Endpoints []string `json:"endpoints"`
	// Listen is the client address of the embedded etcd. Default:
	// 127.0.0.1:2379.
	Listen string `json:"listen"`
	// Prefix is put before every key. Default: /sluice.
	Prefix   string  `json:"prefix"`
	Username string  `json:"username"`
	Password string  `json:"password"`
	TLS      EtcdTLS `json:"tls"`
	// Cluster makes the embedded etcd a member of a cluster of nodes. Default:
	// it is alone.
	Cluster *EtcdCluster `json:"cluster"`
}

// EtcdCluster are the nodes whose embedded etcd form a cluster. It has the
// fields of etcd.Cluster.
type EtcdCluster struct {
	Peers   map[string]string `json:"peers"`   // URLs by the names of nodes, this one among them
	SRV     string            `json:"srv"`     // or a domain whose SRV records name them
	URL     string            `json:"url"`     // of this node, with srv
	Listen  string            `json:"listen"`  // where the others reach it. Default: as in its URL
	Token   string            `json:"token"`   // keeps clusters apart. Default: sluice
	Joining bool              `json:"joining"` // this node is added to a cluster that exists
	TLS     EtcdTLS           `json:"tls"`     // members know each other by
}

// ShrinkGuard says when deletions of mappings or routes are held back until
// somebody confirms them.
type ShrinkGuard struct {
	// Percent of all that may go within Window. Default: 30. 100: all, which
	// turns the guard off.
	Percent int `json:"percent"`
	// Least is how many have to go for the guard to care. Default: 20.
	Least int `json:"least"`
	// Window is the time within which deletions add up. Default: 1m.
	Window time.Duration `json:"window"`
}

// History says how long changes of keys are kept, below history/ in etcd.
type History struct {
	// Keep is the age at which a change is forgotten. Default: 720h.
	Keep time.Duration `json:"keep"`
	// Size is the size of all of it beyond which the oldest is forgotten.
	// Default: 64MB. It is part of etcd's own quota.
	Size router.Bytes `json:"size"`
}

// EtcdTLS are the PEM files for etcd over TLS.
type EtcdTLS struct {
	CA   string `json:"ca"`   // verifies the server; empty: the system's roots
	Cert string `json:"cert"` // client certificate
	Key  string `json:"key"`  // of the client certificate
}

// UpstreamTLS are PEM files for TLS with backends. They are read when a backend
// first needs them, and anew once they have changed.
type UpstreamTLS struct {
	CA   string `json:"ca"`   // authorities of backends' certificates
	Cert string `json:"cert"` // this node's certificate
	Key  string `json:"key"`  // of that certificate
}

// ClientAuth are PEM files about the authorities of clients' certificates. They
// are read at start, and anew once they have changed.
type ClientAuth struct {
	CA  string `json:"ca"`  // the authorities' certificates
	CRL string `json:"crl"` // lists of revoked certificates of theirs; empty: none are looked at
}

// TLS says how TLS is spoken with clients.
type TLS struct {
	// MinVersion is the oldest version: "1.2" or "1.3". Default: 1.2.
	MinVersion string `json:"min_version"`
	// TicketKeys is for how long a key of session tickets seals. All nodes of a
	// cluster should have the same. Default: 8h.
	TicketKeys time.Duration `json:"ticket_keys"`
}

// Listeners are the public addresses besides the mapped ports.
type Listeners struct {
	// HTTPS serve TLS on TCP (HTTP/1.1, HTTP/2, passthrough by SNI) and HTTP/3
	// on UDP.
	HTTPS []Listener `json:"https"`
	// HTTP serve clear-text HTTP: a redirect to HTTPS, but for routes that
	// name the port.
	HTTP []Listener `json:"http"`
}

// Listener is one public address. It may be written as "host:port" alone.
type Listener struct {
	Address string `json:"address"`
	// TrustedProxies takes the place of the node's trusted_proxies here. nil
	// means those of the node, an empty list that nobody is trusted.
	TrustedProxies []netip.Prefix `json:"trusted_proxies"`
	// HTTP3 false has an https listener open no UDP socket and announce no
	// HTTP/3. nil means true.
	HTTP3 *bool `json:"http3"`
	// HTTP3Port is the UDP port that clients of an https listener are told of in
	// Alt-Svc. 0 means the listener's own.
	HTTP3Port int `json:"http3_port"`
}

// ServesHTTP3 reports whether an https listener serves HTTP/3 as well.
func (l Listener) ServesHTTP3() bool { return l.HTTP3 == nil || *l.HTTP3 }

// Longhand implements router.Shorthand.
func (*Listener) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	if raw[0] != '"' {
		return raw, nil
	}
	return json.Marshal(map[string]json.RawMessage{"address": raw})
}

// String returns the listener's address.
func (l Listener) String() string { return l.Address }

// Log says what is logged and where to.
type Log struct {
	Level  string `json:"level"`  // debug, info, warn or error. Default: info
	Format string `json:"format"` // text or json. Default: text
	// Access is where the record of each flow goes, as JSON lines: a file,
	// "stdout", or "none". Default: stdout.
	Access string `json:"access"`
}

func (c Config) withDefaults(hostname string) Config {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.Node, hostname)
	set(&c.Data, defaultData)
	set(&c.Etcd.Listen, "127.0.0.1:2379")
	set(&c.Etcd.Prefix, "/sluice")
	set(&c.PortsMode, "auto")
	set(&c.Sandbox, "auto")
	set(&c.Admin, "127.0.0.1:9180")
	set(&c.TLS.MinVersion, "1.2")
	c.TLS.TicketKeys = cmp.Or(c.TLS.TicketKeys, 8*time.Hour)
	set(&c.Log.Level, "info")
	set(&c.Log.Format, "text")
	set(&c.Log.Access, "stdout")
	c.ACME = c.ACME.withDefaults()
	c.Fleet = c.Fleet.withDefaults(c.Zone)
	c.API = c.API.withDefaults()
	c.ShrinkGuard.Percent = cmp.Or(c.ShrinkGuard.Percent, 30)
	c.ShrinkGuard.Least = cmp.Or(c.ShrinkGuard.Least, 20)
	c.ShrinkGuard.Window = cmp.Or(c.ShrinkGuard.Window, time.Minute)
	if c.History.Keep == 0 {
		c.History.Keep = 30 * 24 * time.Hour
	}
	if c.History.Size == 0 {
		c.History.Size = 64e6
	}
	c.Clients = c.Clients.withDefaults()
	if c.Upgrade.Linger == nil {
		c.Upgrade.Linger = new(12 * time.Hour)
	}
	if c.Upgrade.Timeout == 0 {
		c.Upgrade.Timeout = time.Minute
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 30 * time.Second
	}
	return c
}
