package doctor

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	certdns "github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/proxy/listen"
)

// get asks for a URL, without proxies.
func get(ctx context.Context, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return resp.StatusCode, string(text), err
}

// Metrics returns the metrics of the node at an admin address, "" where none
// answers.
func Metrics(ctx context.Context, admin string) string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, body, err := get(ctx, "http://"+admin+"/metrics")
	if err != nil || status != http.StatusOK || !strings.Contains(body, "sluice_") {
		return ""
	}
	return body
}

func checkPorts(ctx context.Context, s *Subject, r *Report) {
	c := s.Config
	if s.Live == "" {
		fields := map[string]string{"admin": c.Admin}
		for i, l := range c.Listeners.HTTPS {
			fields[fmt.Sprintf("listeners.https[%d]", i)] = l.Address
		}
		for i, l := range c.Listeners.HTTP {
			fields[fmt.Sprintf("listeners.http[%d]", i)] = l.Address
		}
		if len(c.Etcd.Endpoints) == 0 {
			fields["etcd.listen"] = c.Etcd.Listen
		}
		if c.API.Listen != "" {
			fields["api.listen"] = c.API.Listen
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			s.address(ctx, r, field, fields[field])
		}
	}
	s.mappedPorts(ctx, r)
	s.firewall(ctx, r)
}

// address tries to open an address that the node is to open.
func (s *Subject) address(ctx context.Context, r *Report, field, addr string) {
	ln, err := listen.TCP(ctx, addr)
	switch {
	case err == nil:
		ln.Close()
		r.ok("%s: %s is free", field, addr)
	case errors.Is(err, syscall.EADDRINUSE):
		err = listen.WithOwner(ctx, err)
		r.add(Critical, fmt.Sprintf("stop it, or choose another address; `ss -lntp 'sport = :%d'` shows it", config.Port(addr)), "%s: %v", field, err)
	case errors.Is(err, syscall.EACCES) && s.Config.User == "" && os.Geteuid() != 0:
		r.add(Note, "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit", "%s: this user may not open %s; who runs the node has to", field, addr)
	default:
		r.add(Critical, "", "%s: %v", field, err)
	}
}

// mappedPorts looks for other programs' sockets on the ports of mappings.
func (s *Subject) mappedPorts(ctx context.Context, r *Report) {
	type taken struct {
		network string
		port    int
	}
	var inodes []uint32
	var where []taken
	for _, network := range []string{"tcp", "udp"} {
		all, err := listen.Receivers(network)
		if err != nil {
			r.unknown("who has %s ports: %v", network, err)
			continue
		}
		for _, socket := range all {
			if port := int(socket.Local.Port()); s.Config.Ports.Contains(port) {
				inodes, where = append(inodes, socket.Inode), append(where, taken{network, port})
			}
		}
	}
	var said []string
	for i, owner := range listen.Processes(ctx, inodes...) {
		if s.Live != "" && (owner == "" || strings.HasPrefix(owner, "sluice")) {
			continue
		}
		said = append(said, fmt.Sprintf("%s/%d by %s", where[i].network, where[i].port, cmp.Or(owner, "a process that cannot be seen")))
	}
	if len(said) == 0 {
		r.ok("no other program has a port of `ports`")
		return
	}
	slices.Sort(said)
	said = slices.Compact(said)
	more := ""
	if len(said) > 10 {
		said, more = said[:10], fmt.Sprintf(", and %d more", len(said)-10)
	}
	r.add(Warning, "have them use other ports, or take theirs out of `ports`; `ss -lntup` shows them", "ports for mappings are in use: %s%s", strings.Join(said, ", "), more)
}

// firewall looks for rules that refuse what nobody has allowed.
func (s *Subject) firewall(ctx context.Context, r *Report) {
	if os.Geteuid() != 0 {
		r.unknown("what the firewall lets in takes root to find out")
		return
	}
	program, err := exec.LookPath("nft")
	if err != nil {
		program = "/usr/sbin/nft"
	}
	cmd := exec.CommandContext(ctx, program, "list", "ruleset")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		r.unknown("what the firewall lets in: nft list ruleset: %v", err)
		return
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "hook input") && strings.Contains(line, "policy drop") {
			r.add(Note, "nft list ruleset; deploy/ has rules for a node", "the firewall drops what no rule lets in: see that the ports of listeners and mappings, TCP and UDP, are let in, and in the cloud's security group as well")
			return
		}
	}
	r.ok("the firewall of this machine lets everything in; the cloud's may not")
}

func checkClock(ctx context.Context, s *Subject, r *Report) {
	var tx unix.Timex
	switch state, err := unix.Adjtimex(&tx); {
	case err != nil:
		r.unknown("whether the clock is kept right: %v", err)
	case state == unix.TIME_ERROR:
		r.add(Warning, "timedatectl set-ntp true, or apt-get install chrony", "nobody keeps the clock of this machine right (it is not synchronised)")
	default:
		r.ok("the kernel says that the clock is kept right")
	}
	var mu sync.Mutex // guards answers
	answers := 0
	var asking sync.WaitGroup
	for _, server := range s.NTP {
		asking.Go(func() {
			off, err := ntp(ctx, server)
			if err != nil {
				return
			}
			mu.Lock()
			answers++
			mu.Unlock()
			s.offset(r, "the time server "+server, off)
		})
	}
	for _, endpoint := range s.Config.Etcd.Endpoints {
		asking.Go(func() {
			if off, err := httpTime(ctx, endpoint); err == nil {
				s.offset(r, "etcd at "+endpoint, off)
			}
		})
	}
	asking.Wait()
	if answers == 0 && len(s.NTP) > 0 {
		r.unknown("no time server answers (%s): this machine is offline, or a firewall drops UDP port 123", strings.Join(s.NTP, ", "))
	}
}

// offset judges how far the clock is from another.
func (s *Subject) offset(r *Report, whose string, off time.Duration) {
	away := off.Abs()
	mend := "chronyc makestep, or systemctl restart systemd-timesyncd"
	switch {
	case away > time.Minute:
		r.add(Critical, mend, "the clock is %v from that of %s: certificates are not yet or no longer good, and leases seem over", off.Round(time.Second), whose)
	case away > 2*time.Second:
		r.add(Warning, mend, "the clock is %v from that of %s", off.Round(time.Millisecond), whose)
	default:
		r.ok("the clock goes with that of %s, by %v", whose, away.Round(time.Millisecond))
	}
}

// ntp asks a time server how far this clock is ahead (RFC 5905, the client's part
// of SNTP).
func ntp(ctx context.Context, server string) (time.Duration, error) {
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "123")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "udp", server)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if at, ok := ctx.Deadline(); ok {
		c.SetDeadline(at)
	}
	ask := make([]byte, 48)
	ask[0] = 4<<3 | 3 // version 4, client
	sent := time.Now()
	binary.BigEndian.PutUint64(ask[40:], uint64(sent.UnixNano())) // comes back, and tells answers apart
	if _, err := c.Write(ask); err != nil {
		return 0, err
	}
	answer := make([]byte, 256)
	n, err := c.Read(answer)
	got := time.Now()
	switch {
	case err != nil:
		return 0, err
	case n < 48 || answer[0]&7 != 4 || answer[1] == 0 || string(answer[24:32]) != string(ask[40:48]):
		return 0, fmt.Errorf("%s: that is no time", server)
	}
	theirs := ntpTime(answer[32:]).Add(ntpTime(answer[40:]).Sub(ntpTime(answer[32:])) / 2)
	return sent.Add(got.Sub(sent) / 2).Sub(theirs), nil
}

// ntpTime reads seconds since 1900 and their fraction.
func ntpTime(b []byte) time.Time {
	const to1970 = 2208988800
	return time.Unix(int64(binary.BigEndian.Uint32(b))-to1970, int64(binary.BigEndian.Uint32(b[4:]))*1e9>>32)
}

// httpTime returns how far this clock is ahead of that of a server, to a second.
func httpTime(ctx context.Context, endpoint string) (time.Duration, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" {
		return 0, errors.New("not asked over TLS")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/version", nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, err
	}
	off := time.Since(at.Add(time.Second / 2))
	if off.Abs() < time.Second {
		off = 0
	}
	return off, nil
}

func checkResolvers(ctx context.Context, s *Subject, r *Report) {
	conf, err := dns.ClientConfigFromFile(s.Root + "/etc/resolv.conf")
	if err != nil || len(conf.Servers) == 0 {
		r.add(Warning, "write `nameserver ADDRESS` into /etc/resolv.conf", "/etc/resolv.conf names no name server: backends' names are looked up in /etc/hosts alone")
		return
	}
	servers := slices.Clone(s.Config.ACME.Resolvers)
	for _, server := range conf.Servers {
		servers = append(servers, net.JoinHostPort(server, cmp.Or(conf.Port, "53")))
	}
	var asking sync.WaitGroup
	for _, server := range servers {
		asking.Go(func() {
			q := new(dns.Msg).SetQuestion(".", dns.TypeNS)
			at := time.Now()
			a, _, err := (&dns.Client{Timeout: 3 * time.Second}).ExchangeContext(ctx, q, server)
			switch took := time.Since(at); {
			case err != nil:
				r.add(Warning, "see /etc/resolv.conf and acme.resolvers, and `dig @"+strings.TrimSuffix(server, ":53")+" . NS`", "the name server %s does not answer: %v", server, err)
			case a.Rcode == dns.RcodeServerFailure:
				r.add(Warning, "see that name server's log", "the name server %s says SERVFAIL: it reaches nobody", server)
			case took > time.Second:
				r.add(Warning, "have a nearer one", "the name server %s took %v", server, took.Round(time.Millisecond))
			default:
				r.ok("the name server %s answers", server)
			}
		})
	}
	asking.Wait()
}

func checkProviders(ctx context.Context, s *Subject, r *Report) {
	var asking sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(s.Config.DNS)) {
		c := s.Config.DNS[name]
		p, err := certdns.New(name, c, nil)
		if err != nil {
			r.add(Critical, "", "%v", err)
			continue
		}
		if len(c.Zones) == 0 {
			r.unknown("dns.%s lists no zones, and is checked for the names of domains by live nodes alone", name)
		}
		for _, zone := range c.Zones {
			asking.Go(func() {
				if err := p.Check(ctx, dns.Fqdn(zone), "_acme-challenge"); err != nil {
					r.add(Critical, "see what the account needs in CONFIGURATION.md, DNS providers", "dns.%s, zone %s: %v", name, zone, err)
				} else {
					r.ok("dns.%s may be used for the zone %s", name, zone)
				}
			})
			asking.Go(func() { s.delegated(ctx, r, name, zone) })
		}
	}
	asking.Wait()
}

// resolver returns one that asks acme.resolvers, the system's where there are none.
func (s *Subject) resolver() *net.Resolver {
	servers := s.Config.ACME.Resolvers
	if len(servers) == 0 {
		return net.DefaultResolver
	}
	var asked atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := servers[int(asked.Add(1)-1)%len(servers)] // another one at the next try
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
}

// delegated looks whether DNS leads to a zone.
func (s *Subject) delegated(ctx context.Context, r *Report, name, zone string) {
	if len(s.Config.DNS[name].Nameservers) > 0 {
		return // DNS does not lead there, and need not
	}
	servers, err := s.resolver().LookupNS(ctx, dns.Fqdn(zone))
	var dnsErr *net.DNSError
	switch {
	case err == nil:
		r.ok("the zone %s is served by %d servers", zone, len(servers))
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		r.add(Critical, "name the provider's servers at the registrar of "+zone+"; `dig +trace "+zone+" NS`", "DNS knows no name servers of the zone %s: nobody finds a name in it", zone)
	default:
		r.unknown("the name servers of the zone %s: %v", zone, err)
	}
}

// own returns the addresses of this machine, loopback left out.
func own() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return all
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			all[p.Addr().Unmap()] = true
		}
	}
	return all
}
