package dns

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxServers  = 3 // resolv.conf(5)
	maxSearch   = 32
	maxNdots    = 15
	maxTimeout  = 30 * time.Second
	maxAttempts = 5
)

// conf is what resolv.conf(5) says.
type conf struct {
	servers  []netip.Addr
	search   []string // without a dot at the end
	ndots    int
	timeout  time.Duration // for one question to one server
	attempts int
	rotate   bool
	tcp      bool // use-vc
	noAAAA   bool
}

// parseConf reads a resolv.conf; what it does not understand it passes over, as
// every resolver does.
func parseConf(text []byte) *conf {
	c := &conf{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	searched := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, ";") || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(c.servers) < maxServers {
				c.servers = append(c.servers, a)
			}
		case "domain":
			c.search, searched = searchList(fields[1:2]), true
		case "search":
			c.search, searched = searchList(fields[1:]), true
		case "options":
			for _, o := range fields[1:] {
				c.option(o)
			}
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	if !searched {
		host, _ := os.Hostname()
		if _, domain, ok := strings.Cut(host, "."); ok {
			c.search = searchList([]string{domain})
		}
	}
	return c
}

func searchList(domains []string) []string {
	var list []string
	for _, d := range domains {
		d = strings.ToLower(strings.Trim(d, "."))
		if d != "" && len(list) < maxSearch {
			list = append(list, d)
		}
	}
	return list
}

func (c *conf) option(o string) {
	name, value, _ := strings.Cut(o, ":")
	n, err := strconv.Atoi(value)
	isNumber := err == nil && n >= 0
	switch {
	case name == "ndots" && isNumber:
		c.ndots = min(n, maxNdots)
	case name == "timeout" && isNumber:
		c.timeout = min(max(time.Duration(n)*time.Second, time.Second), maxTimeout)
	case name == "attempts" && isNumber:
		c.attempts = min(max(n, 1), maxAttempts)
	case name == "rotate":
		c.rotate = true
	case name == "use-vc", name == "usevc", name == "tcp":
		c.tcp = true
	case name == "no-aaaa":
		c.noAAAA = true
	}
}

// names returns the full names that name may stand for, in the order to try,
// each with a dot at its end; none if name cannot be one.
func (c *conf) names(name string) []string {
	fit := func(list []string, name string) []string {
		if _, err := dnsmessage.NewName(name); err != nil || !fits(name) {
			return list
		}
		return append(list, name)
	}
	if strings.HasSuffix(name, ".") {
		return fit(nil, name)
	}
	var list []string
	asIs := strings.Count(name, ".") >= c.ndots
	if asIs {
		list = fit(list, name+".")
	}
	for _, domain := range c.search {
		list = fit(list, name+"."+domain+".")
	}
	if !asIs {
		list = fit(list, name+".")
	}
	return list
}

// fits reports whether name, with a dot at its end, is of the lengths that DNS
// can hold (RFC 1035 section 2.3.4).
func fits(name string) bool {
	if len(name) > 254 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}

// hosts is what hosts(5) says: the addresses of names in lower case.
type hosts map[string][]netip.Addr

func parseHosts(text []byte) hosts {
	h := hosts{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		addr = addr.Unmap()
		for _, name := range fields[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if known := h[name]; len(known) < maxAddrs && !contains(known, addr) {
				h[name] = append(known, addr)
			}
		}
	}
	return h
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, x := range list {
		if x == a {
			return true
		}
	}
	return false
}
