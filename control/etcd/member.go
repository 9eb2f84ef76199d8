package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Cluster makes an embedded etcd one member of several, which hold the same
// keys and outlive the loss of fewer than half of them.
type Cluster struct {
	// Peers are the URLs at which members talk to each other, by the names of
	// their nodes, the own one among them: https://10.0.0.1:2380. Empty where
	// SRV is given.
	Peers map[string]string
	// SRV is a domain whose records _etcd-server-ssl._tcp.<domain> name the
	// members (RFC 2782); their targets are to be the names in the members'
	// URLs.
	SRV string
	// URL is the own one, where SRV is given.
	URL string
	// Listen is where to wait for the others, host:port; "": at the own URL.
	Listen string
	// Token keeps clusters apart that meet by mistake; "": sluice.
	Token string
	// Joining is set by a member that is added to a cluster which exists.
	Joining bool
	// CA, Cert and Key are PEM files: every member shows a certificate that the
	// CA has signed, for clients as for servers.
	CA, Cert, Key string
}

// Check says what is wrong with the membership of a node.
func (c *Cluster) Check(node string) error {
	own := c.URL
	switch {
	case (len(c.Peers) == 0) == (c.SRV == ""):
		return errors.New("give either peers, names of nodes and their URLs, or srv, a domain")
	case c.SRV == "" && c.URL != "":
		return errors.New("url goes with srv; the own URL is among peers")
	case c.SRV == "":
		if own = c.Peers[node]; own == "" {
			return fmt.Errorf("this node, %q, is not among peers", node)
		}
	case c.URL == "":
		return errors.New("srv needs url, the one at which the others reach this node")
	}
	urls := []string{own}
	for _, u := range c.Peers {
		urls = append(urls, u)
	}
	clear := false
	for _, text := range urls {
		if strings.Contains(text, "@") {
			return errors.New("the URL of a peer has a user or a password in it, which would be in logs; leave it out: members know each other by tls")
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Port() == "" || u.Path != "" {
			return fmt.Errorf("%q is not the URL of a peer; write https://host:2380", text)
		}
		if u.Scheme == "http" {
			if addr, err := netip.ParseAddr(u.Hostname()); err != nil || !addr.IsLoopback() {
				return fmt.Errorf("%s has no TLS, and whoever reaches it could write every key; write https:// and give tls", text)
			}
			clear = true
		}
	}
	switch files := []string{c.CA, c.Cert, c.Key}; {
	case clear && !slices.Equal(files, []string{"", "", ""}):
		return errors.New("tls has no meaning for http:// peers; write https://")
	case !clear && slices.Contains(files, ""):
		return errors.New("tls needs all of ca, cert and key: members know each other by their certificates")
	}
	if c.Listen != "" {
		host, _, err := net.SplitHostPort(c.Listen)
		if addr, bad := netip.ParseAddr(host); err == nil && clear && (bad != nil || !addr.IsLoopback()) {
			return fmt.Errorf("listen: %s is not on loopback, and without TLS whoever reaches it could write every key; write 127.0.0.1 or give tls", c.Listen)
		}
		if err != nil {
			return fmt.Errorf("listen: %q is not an address; write host:port, such as 10.0.0.1:2380", c.Listen)
		}
	}
	return nil
}

// memberTick is between two heartbeats of the one that leads; after ten without
// any the others elect another. Tests are in more of a hurry.
var memberTick = 250 * time.Millisecond

// apply has e be a member of c.
func (c *Cluster) apply(e *embed.Config) error {
	if err := c.Check(e.Name); err != nil {
		return err
	}
	text := c.URL
	if text == "" {
		text = c.Peers[e.Name]
	}
	own, err := url.Parse(text)
	if err != nil {
		return err
	}
	listen := *own
	if c.Listen != "" {
		listen.Host = c.Listen
	}
	e.ListenPeerUrls, e.AdvertisePeerUrls = []url.URL{listen}, []url.URL{*own}
	e.InitialClusterToken = c.Token
	if c.Token == "" {
		e.InitialClusterToken = "sluice"
	}
	e.ClusterState = embed.ClusterStateFlagNew
	if c.Joining {
		e.ClusterState = embed.ClusterStateFlagExisting
	}
	e.InitialCluster, e.DNSCluster = "", c.SRV
	if c.SRV == "" {
		members := make([]string, 0, len(c.Peers))
		for name, u := range c.Peers {
			members = append(members, name+"="+u)
		}
		slices.Sort(members)
		e.InitialCluster = strings.Join(members, ",")
	}
	if own.Scheme == "https" {
		t := &e.PeerTLSInfo
		t.CertFile, t.KeyFile, t.TrustedCAFile, t.ClientCertAuth = c.Cert, c.Key, c.CA, true
		t.MinVersion = tls.VersionTLS12
	}
	// Members are apart: what a datacenter's defaults take for a dead leader is
	// a slow moment between two continents.
	e.TickMs, e.ElectionMs = uint(memberTick/time.Millisecond), uint(10*memberTick/time.Millisecond)
	e.PreVote = true
	// Every node asks its own member, and does not work on what that last heard.
	e.StrictReconfigCheck = true
	return nil
}

// Backup writes all of etcd's data, as `etcdutl snapshot restore` reads it.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	data, err := conn.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("ask etcd for its data: %w", err)
	}
	defer data.Close()
	if _, err := io.Copy(w, data); err != nil {
		return fmt.Errorf("read etcd's data: %w", err)
	}
	return nil
}
