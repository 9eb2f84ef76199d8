package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// validate checks a Config whose defaults are filled in. Errors are
// *router.FieldError.
func (c Config) validate() error {
	checks := []func() error{c.checkNode, c.checkFleet, c.checkEtcd, c.checkAPI, c.checkAddresses, c.checkACME, c.checkLog, c.checkUpstreamTLS, c.checkTLS, c.checkHTTP, c.checkClients}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func wrong(path, format string, args ...any) error {
	for i, arg := range args {
		if d, is := arg.(time.Duration); is {
			args[i] = router.DurationText(d)
		}
	}
	return &router.FieldError{Path: path, Msg: fmt.Sprintf(format, args...)}
}

// minCookieKey is how long a secret has to be, in bytes.
const minCookieKey = 16

func (c Config) checkNode() error {
	if _, err := router.ParseKey("pools/" + c.Node); err != nil {
		return wrong("node", "%q is not a name; write letters, digits, '-', '_' and '.', at most 128", c.Node)
	}
	if !slices.Contains([]string{"auto", "bind", "steer"}, c.PortsMode) {
		return wrong("ports_mode", "%q is not known; write auto, bind or steer", c.PortsMode)
	}
	if !slices.Contains([]string{"auto", "require", "off"}, c.Sandbox) {
		return wrong("sandbox", "%q is not known; write auto, require or off", c.Sandbox)
	}
	if g := c.ShrinkGuard; g.Percent < 1 || g.Percent > 100 {
		return wrong("shrink_guard.percent", "must be from 1 to 100, which turns it off")
	} else if g.Least < 1 {
		return wrong("shrink_guard.least", "must be 1 or more")
	} else if g.Window < 0 {
		return wrong("shrink_guard.window", "must not be negative")
	}
	if c.History.Keep < time.Minute {
		return wrong("history.keep", "must be a minute or more")
	}
	if c.History.Size < 1e6 || c.History.Size > 1e9 {
		return wrong("history.size", "must be from 1MB to 1GB, and well below etcd's own quota")
	}
	if c.CookieKey != "" && len(c.CookieKey) < minCookieKey {
		return wrong("cookie_key", "is %d bytes long, which can be guessed; give %d or more at random", len(c.CookieKey), minCookieKey)
	}
	if c.Upgrade.Timeout < time.Second || c.Upgrade.Timeout > 10*time.Minute {
		return wrong("upgrade.timeout", "must be from 1s to 10m")
	}
	if c.DrainTimeout < 0 {
		return wrong("drain_timeout", "must not be negative")
	}
	return nil
}

func (c Config) checkEtcd() error {
	e := c.Etcd
	for i, s := range e.Endpoints {
		if carriesLogin(s) {
			return wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "has a user or a password in it, which would be in logs; give them as etcd.username and etcd.password")
		}
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%q is not a URL; write http://host:2379 or https://host:2379", s)
		}
	}
	for i, s := range e.Endpoints {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" {
			continue
		}
		if e.TLS != (EtcdTLS{}) {
			return wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%q is without TLS, for which tls has no meaning; write https://", s)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); e.Password != "" && u.Hostname() != "localhost" && (err != nil || !addr.IsLoopback()) {
			return wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%q is without TLS, and the password would be sent for everybody to read; write https://", s)
		}
	}
	if !strings.HasPrefix(e.Prefix, "/") || strings.HasSuffix(e.Prefix, "/") || strings.Contains(e.Prefix, "//") {
		return wrong("etcd.prefix", "%q is not a prefix; write it as /sluice, with a slash before and none after", e.Prefix)
	}
	if (e.TLS.Cert == "") != (e.TLS.Key == "") {
		return wrong("etcd.tls", "cert and key belong together; give both or neither")
	}
	if (e.Username == "") != (e.Password == "") {
		return wrong("etcd", "username and password belong together; give both or neither")
	}
	if e.Cluster != nil && len(e.Endpoints) > 0 {
		return wrong("etcd.cluster", "makes the embedded etcd a member, and with endpoints there is none; leave one out")
	}
	return checkAddress("etcd.listen", e.Listen)
}

// carriesLogin reports whether a URL, or what was meant to be one, has a user or a
// password in it. Such a value must not be in a message either.
func carriesLogin(text string) bool {
	if !strings.Contains(text, "@") {
		return false
	}
	u, err := url.Parse(text)
	return err != nil || u.Host == "" || u.User != nil
}

// listener is an address that the node opens, and the field that says so.
type listener struct {
	path, addr string
}

// peerListener returns where other members reach the embedded etcd, "" for none.
func (c Config) peerListener() listener {
	m := c.Etcd.Cluster
	switch {
	case m == nil:
		return listener{}
	case m.Listen != "":
		return listener{"etcd.cluster.listen", m.Listen}
	}
	path, own := "etcd.cluster.peers."+c.Node, m.Peers[c.Node]
	if m.SRV != "" {
		path, own = "etcd.cluster.url", m.URL
	}
	if u, err := url.Parse(own); err == nil && u.Port() != "" { // what is wrong with it, its own check says
		return listener{path, u.Host}
	}
	return listener{}
}

// collides reports whether only one of two addresses can be opened: they have the
// same port, and the same host or one that stands for every address. Those of
// IPv4 and IPv6 take the other's as well.
func collides(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	every := func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return host == "" || err == nil && ip.IsUnspecified()
	}
	if hostA == "localhost" {
		hostA = "127.0.0.1"
	}
	if hostB == "localhost" {
		hostB = "127.0.0.1"
	}
	return hostA == hostB || every(hostA) || every(hostB)
}

// checkAddresses checks every listening address, and that no two collide with
// each other or with the mapped ports.
func (c Config) checkAddresses() error {
	all := []listener{{"admin", c.Admin}}
	if len(c.Etcd.Endpoints) == 0 {
		all = append(all, listener{"etcd.listen", c.Etcd.Listen})
	}
	if peers := c.peerListener(); peers.addr != "" {
		all = append(all, peers)
	}
	if c.Demo != "" {
		all = append(all, listener{"demo", c.Demo})
	}
	if c.API.Listen != "" {
		all = append(all, listener{"api.listen", c.API.Listen})
	}
	for i, l := range slices.Concat(c.Listeners.HTTPS, c.Listeners.HTTP) {
		if l.Address == "" {
			path := fmt.Sprintf("listeners.https[%d].address", i)
			if http := i - len(c.Listeners.HTTPS); http >= 0 {
				path = fmt.Sprintf("listeners.http[%d].address", http)
			}
			return wrong(path, "is missing; give host:port such as :8443")
		}
	}
	if err := c.Listeners.checkHTTP3(); err != nil {
		return err
	}
	for i, a := range c.Listeners.HTTPS {
		all = append(all, listener{fmt.Sprintf("listeners.https[%d]", i), a.Address})
	}
	for i, a := range c.Listeners.HTTP {
		all = append(all, listener{fmt.Sprintf("listeners.http[%d]", i), a.Address})
	}
	for i, l := range all {
		if err := checkAddress(l.path, l.addr); err != nil {
			return err
		}
		for _, other := range all[:i] {
			switch {
			case l.addr == other.addr:
				return wrong(l.path, "%s is already the address of %s; choose another port", l.addr, other.path)
			case collides(l.addr, other.addr):
				return wrong(l.path, "%s and %s, the address of %s, cannot both be opened; choose another port", l.addr, other.addr, other.path)
			}
		}
		if port := Port(l.addr); c.Ports.Contains(port) {
			return wrong(l.path, "port %d lies in ports (%v), which is for mappings; choose another port or take it out there", port, c.Ports)
		}
	}
	return nil
}

// checkHTTP3 checks what listeners say of HTTP/3.
func (l Listeners) checkHTTP3() error {
	for i, a := range l.HTTPS {
		path := fmt.Sprintf("listeners.https[%d].http3_port", i)
		switch {
		case a.HTTP3Port < 0 || a.HTTP3Port > 65535:
			return wrong(path, "%d is not a port; give one from 1 to 65535, or leave it out for the listener's own", a.HTTP3Port)
		case a.HTTP3Port != 0 && !a.ServesHTTP3():
			return wrong(path, "there is no HTTP/3 to announce where http3 is false; leave one of them out")
		}
	}
	for i, a := range l.HTTP {
		if a.HTTP3 != nil || a.HTTP3Port != 0 {
			return wrong(fmt.Sprintf("listeners.http[%d].http3", i), "is for https listeners: HTTP/3 is never in clear text")
		}
	}
	return nil
}

func checkAddress(path, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return wrong(path, "%q is not an address; write host:port such as 127.0.0.1:8443, or :8443 for every address", addr)
	}
	if strings.ContainsAny(host, "/ ") {
		return wrong(path, "%q: %q is not a host", addr, host)
	}
	if _, err := router.ParsePort(port); err != nil {
		return wrong(path, "%q: %v", addr, err)
	}
	return nil
}

// Port returns the port of an address that Load has checked.
func Port(addr string) int {
	_, text, _ := net.SplitHostPort(addr)
	port, _ := router.ParsePort(text)
	return port
}

// checkTLS checks what is said of TLS with clients.
func (c Config) checkTLS() error {
	if v := c.TLS.MinVersion; v != "1.2" && v != "1.3" {
		return wrong("tls.min_version", "%q is not spoken here; write \"1.2\" or \"1.3\", in quotes", v)
	}
	if p := c.TLS.TicketKeys; p < 10*time.Second || p > 48*time.Hour {
		return wrong("tls.ticket_keys", "must be from 10s to 48h: tickets are opened for twice as long at most, and clients keep them for a week")
	}
	for _, name := range slices.Sorted(maps.Keys(c.ClientAuth)) {
		if c.ClientAuth[name].CA == "" {
			return wrong("client_auth."+name+".ca", "is missing; give the path of the authorities' certificates in PEM")
		}
	}
	return nil
}

func (c Config) checkHTTP() error {
	if err := c.HTTP.Check("http"); err != nil {
		return err
	}
	_, err := c.ErrorPages()
	return err
}

func (c Config) checkUpstreamTLS() error {
	for _, name := range slices.Sorted(maps.Keys(c.UpstreamTLS)) {
		switch f := c.UpstreamTLS[name]; {
		case (f.Cert == "") != (f.Key == ""):
			return wrong("upstream_tls."+name, "cert and key belong together; give both or neither")
		case f.Cert == "" && f.CA == "":
			return wrong("upstream_tls."+name, "is empty; give ca, or cert and key, or all three")
		}
	}
	return nil
}

func (c Config) checkLog() error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		return wrong("log.level", "%q is not known; write debug, info, warn or error", c.Log.Level)
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		return wrong("log.format", "%q is not known; write text or json", c.Log.Format)
	}
	return nil
}
