package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// MemberState says what a member of an etcd cluster is doing.
type MemberState string

// The states of members.
const (
	MemberLeads     MemberState = "leads"
	MemberFollows   MemberState = "follows"
	MemberSilent    MemberState = "no answer"
	MemberUnstarted MemberState = "not started yet" // since it was added
)

// Member is a member of an etcd cluster.
type Member struct {
	ID     string      `json:"id"`   // as etcdctl writes it
	Name   string      `json:"name"` // "" until it has started for the first time
	State  MemberState `json:"state"`
	Detail string      `json:"detail,omitempty"` // why there is no answer
	Peers  []string    `json:"peers"`
	id     uint64
}

func (m *Member) up() bool { return m.State == MemberLeads || m.State == MemberFollows }

// Membership is who makes up an etcd cluster, as the member that was asked has it.
type Membership struct {
	Members []Member // by name
	// Leader is the name of the one that leads; "": none does, since most are
	// down or out of reach, and nothing can be changed.
	Leader string
	asked  uint64 // ID of the member that answered
}

// PeerTLS returns what members of c are asked with at their peers' URLs, nil
// where those have no TLS.
func (c *Cluster) PeerTLS() (*tls.Config, error) {
	if c.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("read etcd.cluster.tls.ca: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read etcd.cluster.tls.ca: %s holds no PEM certificate", c.CA)
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("read etcd.cluster.tls.cert and key: %w", err)
	}
	t.Certificates = []tls.Certificate{pair}
	return t, nil
}

// Members returns the members of the cluster, each of which is asked whether it
// is there: where its peers reach it, else where clients do, unless that is its
// own loopback. peers is what https:// ones are asked with; nil: as anybody.
func (c *Client) Members(ctx context.Context, peers *tls.Config) (*Membership, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	asked, leader, err := c.leader(ctx, conn)
	if err != nil {
		return nil, err
	}
	var opts []clientv3.OpOption
	if leader == 0 { // what most agree on, nobody can say
		opts = append(opts, clientv3.WithSerializable())
	}
	list, err := c.memberList(ctx, conn, opts...)
	if err != nil && leader != 0 { // which may have gone since
		if _, now, failed := c.leader(ctx, conn); failed == nil && now == 0 {
			leader = 0
			list, err = c.memberList(ctx, conn, clientv3.WithSerializable())
		}
	}
	if err != nil {
		return nil, err
	}
	all := &Membership{Members: make([]Member, len(list)), asked: asked}
	var asking sync.WaitGroup
	for i, m := range list {
		at := &all.Members[i]
		*at = Member{ID: strconv.FormatUint(m.ID, 16), Name: m.Name, Peers: m.PeerURLs, State: MemberFollows, id: m.ID}
		if m.ID == leader {
			at.State, all.Leader = MemberLeads, m.Name
		}
		if m.Name == "" {
			at.State = MemberUnstarted
		} else if m.ID != asked {
			asking.Go(func() {
				if err := askMember(ctx, conn, m, peers); err != nil {
					at.State, at.Detail = MemberSilent, err.Error()
					if peers == nil && errors.As(err, new(x509.UnknownAuthorityError)) {
						at.Detail += "; give the node's file by --config, which names the cluster's authority"
					}
				}
			})
		}
	}
	asking.Wait()
	slices.SortFunc(all.Members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// MemberNames returns the names of the members of the cluster, "" for those that
// have not started yet since they were added.
func (c *Client) MemberNames(ctx context.Context) ([]string, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.memberList(ctx, conn)
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = m.Name
	}
	return names, err
}

// leader returns the IDs of the member that answers and of the one that it
// follows, which is 0 where there is none.
func (c *Client) leader(ctx context.Context, conn *clientv3.Client) (asked, leader uint64, err error) {
	failed := errors.New("no endpoint")
	for _, ep := range conn.Endpoints() {
		st, err := statusOf(ctx, conn, ep, c.pace.request)
		if err != nil {
			failed = err
			continue
		}
		if asked == 0 || st.Leader != 0 {
			asked, leader = st.Header.MemberId, st.Leader
		}
		if leader != 0 {
			break
		}
	}
	if asked == 0 {
		return 0, 0, fmt.Errorf("ask etcd who leads it: %w", c.explain(conn, failed))
	}
	return asked, leader, nil
}

func statusOf(ctx context.Context, conn *clientv3.Client, endpoint string, limit time.Duration) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return conn.Status(ctx, endpoint)
}

func (c *Client) memberList(ctx context.Context, conn *clientv3.Client, opts ...clientv3.OpOption) ([]*etcdserverpb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, c.pace.request)
	defer cancel()
	resp, err := conn.MemberList(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("list the members of etcd: %w", c.explain(conn, err))
	}
	return resp.Members, nil
}

// askLimit bounds the wait for a member's sign of life.
const askLimit = 3 * time.Second

// askMember returns why a member gives no sign of life, nil where it does.
func askMember(ctx context.Context, conn *clientv3.Client, m *etcdserverpb.Member, peers *tls.Config) error {
	failed := askPeer(ctx, m.PeerURLs, peers)
	for _, at := range m.ClientURLs {
		if failed == nil || onLoopback(at) { // of which machine?
			continue
		}
		if st, err := statusOf(ctx, conn, at, askLimit); err == nil && st.Header.MemberId == m.ID {
			return nil
		}
	}
	return failed
}

func onLoopback(text string) bool {
	u, err := url.Parse(text)
	return err == nil && checkLoopback(u.Host) == nil
}

// askPeer asks as other members do, for something that takes no majority.
func askPeer(ctx context.Context, urls []string, peers *tls.Config) error {
	t := &http.Transport{TLSClientConfig: peers, DisableKeepAlives: true}
	client := http.Client{Transport: t, Timeout: askLimit}
	failed := errors.New("it has no address")
	for _, at := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(at, "/")+"/version", http.NoBody)
		if err != nil {
			failed = err
			continue
		}
		resp, err := client.Do(req)
		if err != nil {
			failed = err
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		failed = fmt.Errorf("%s says %s", at, resp.Status)
	}
	return failed
}
