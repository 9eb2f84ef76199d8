package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/router"
)

// etcd returns a client of the cluster that the node's file names, or of its
// embedded one.
func (s *Subject) etcd(ctx context.Context) (*clientv3.Client, []string, error) {
	e := s.Config.Etcd
	endpoints := e.Endpoints
	if len(endpoints) == 0 {
		endpoints = []string{"http://" + e.Listen}
	}
	if s.EtcdTLSError != nil {
		return nil, endpoints, s.EtcdTLSError
	}
	c, err := clientv3.New(clientv3.Config{
		Context: ctx, Endpoints: endpoints, Username: e.Username, Password: e.Password, TLS: s.EtcdTLS, DialTimeout: 3 * time.Second, Logger: zap.NewNop(),
	})
	return c, endpoints, err
}

func checkEtcd(ctx context.Context, s *Subject, r *Report) {
	if len(s.Config.Etcd.Endpoints) == 0 && s.Live == "" {
		r.add(Note, "", "the embedded etcd is looked at while the node runs")
		return
	}
	c, endpoints, err := s.etcd(ctx)
	if err != nil {
		r.add(Critical, "", "reach etcd: %v", err)
		return
	}
	defer c.Close()
	versions := map[string]bool{}
	up := 0
	for _, endpoint := range endpoints {
		if st := s.endpoint(ctx, r, c, endpoint); st != nil {
			up++
			versions[st.Version] = true
		}
	}
	if up == 0 {
		return
	}
	if len(versions) > 1 {
		r.add(Warning, "bring all to the newest version, one after the other", "etcd's members have %d different versions", len(versions))
	}
	s.members(ctx, r, c)
	if alarms, err := c.AlarmList(ctx); err != nil {
		r.unknown("etcd's alarms: %v", err)
	} else {
		for _, a := range alarms.Alarms {
			r.add(Critical, "etcdctl compact REV && etcdctl defrag && etcdctl alarm disarm; see \"etcd is full\" in OPERATIONS.md", "etcd has the alarm %v", a.Alarm)
		}
	}
}

// endpoint asks one, and returns its status, or nil.
func (s *Subject) endpoint(ctx context.Context, r *Report, c *clientv3.Client, endpoint string) *clientv3.StatusResponse {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	at := time.Now()
	st, err := c.Status(ctx, endpoint)
	took := time.Since(at)
	if err != nil {
		severity := Warning
		if len(s.Config.Etcd.Endpoints) < 2 {
			severity = Critical
		}
		r.add(severity, "etcdctl --endpoints "+endpoint+" endpoint health; see whether etcd runs there, and a firewall lets this machine in", "etcd at %s does not answer: %v", endpoint, err)
		return nil
	}
	const quota = 2 << 30 // etcd's own default; a larger one is not told
	switch {
	case st.Leader == 0:
		r.add(Critical, "sluice etcd members", "etcd at %s follows no leader: no key can be changed", endpoint)
	case took > 500*time.Millisecond:
		r.add(Warning, "have etcd nearer, or on a faster disk", "etcd at %s took %v for an answer", endpoint, took.Round(time.Millisecond))
	case st.DbSize > quota/10*8:
		r.add(Warning, "etcdctl --endpoints "+endpoint+" defrag; see \"etcd is full\" in OPERATIONS.md", "etcd at %s has %d MB of the 2048 that it may have by default, %d of them in use", endpoint, st.DbSize>>20, st.DbSizeInUse>>20)
	default:
		r.ok("etcd %s at %s answers in %v, with %d MB", st.Version, endpoint, took.Round(time.Millisecond), st.DbSize>>20)
	}
	for _, e := range st.Errors {
		r.add(Warning, "", "etcd at %s says: %s", endpoint, e)
	}
	return st
}

func (s *Subject) members(ctx context.Context, r *Report, c *clientv3.Client) {
	list, err := c.MemberList(ctx)
	if err != nil {
		r.unknown("etcd's members: %v", err)
		return
	}
	voters := 0
	for _, m := range list.Members {
		if !m.IsLearner {
			voters++
		}
		if m.Name == "" {
			r.add(Warning, "start it, or take it out: sluice etcd members, sluice etcd replace", "etcd's member at %s has never started, and counts as one that is down", strings.Join(m.PeerURLs, ","))
		}
	}
	if slices.ContainsFunc(list.Members, func(m *pb.Member) bool { return m.IsLearner }) {
		r.add(Note, "", "an etcd member is a learner still")
	}
	if voters%2 == 0 {
		r.add(Warning, "have one more or one less", "etcd has %d voting members: an even number outlives no more failures than one less", voters)
	} else {
		r.ok("etcd has %d voting members", voters)
	}
}

// checkNames looks whether the names of routes and domains lead to this machine.
func checkNames(ctx context.Context, s *Subject, r *Report) {
	if len(s.Config.Etcd.Endpoints) == 0 && s.Live == "" {
		r.add(Note, "", "names are looked at once etcd is there")
		return
	}
	c, _, err := s.etcd(ctx)
	if err != nil {
		return // told by the check of etcd
	}
	defer c.Close()
	const most, atOnce = 200, 16
	prefix := s.Config.Etcd.Prefix + "/domains/"
	kvs, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(most))
	if err != nil {
		r.unknown("the names under domains/: %v", err)
		return
	}
	mine, named := own(), make(chan string)
	var here atomic.Int64
	var asking sync.WaitGroup
	for range atOnce {
		asking.Go(func() {
			for name := range named {
				if s.leadsTo(ctx, r, name, mine) {
					here.Add(1)
				}
			}
		})
	}
	for _, kv := range kvs.Kvs {
		if name, err := router.ParseDomainName(strings.TrimPrefix(string(kv.Key), prefix)); err == nil {
			named <- name
		}
	}
	close(named)
	asking.Wait()
	if n := here.Load(); n > 0 {
		r.ok("%d names under domains/ lead to this machine", n)
	}
	if rest := kvs.Count - int64(len(kvs.Kvs)); rest > 0 {
		r.unknown("where %d more names under domains/ lead: %d are looked up", rest, most)
	}
}

// leadsTo reports whether DNS has one of this machine's addresses for a name, and
// says so where it has not. It ends with ctx.
func (s *Subject) leadsTo(ctx context.Context, r *Report, name string, mine map[netip.Addr]bool) bool {
	asked := strings.Replace(name, "*", "sluice-doctor", 1) // a name that the wildcard covers
	addrs, err := s.resolver().LookupNetIP(ctx, "ip", asked)
	var dnsErr *net.DNSError
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		r.add(Warning, "add A and AAAA records of "+name+" with the addresses of nodes", "DNS knows no address of %s: %v", name, err)
	case err != nil:
		r.unknown("where %s leads: %v", name, err)
	case !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return mine[a.Unmap()] }):
		r.add(Note, "", "%s leads to %s, and none of that is an address of this machine: another node's, or this one is behind a NAT", name, fmt.Sprint(addrs))
	default:
		return true
	}
	return false
}
