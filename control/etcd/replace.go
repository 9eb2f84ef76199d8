package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Replacement is a member that a cluster is to expect anew.
type Replacement struct {
	Name string // of its node
	// URL is where the others reach it; "": where they did. It is needed where
	// the cluster has forgotten the member already.
	URL string
	// Healthy has a member replaced that is there.
	Healthy bool
	Peers   *tls.Config // what members are asked with; see Members
}

// ErrHealthy is in the error about a member that is there, and would be
// replaced for nothing.
var ErrHealthy = errors.New("nothing was changed")

const (
	// replaceLimit bounds the replacement of a member: it has to outlast an
	// election, and the seconds for which members are to have been in touch
	// before they take somebody in.
	replaceLimit = time.Minute
	// replaceTry bounds one attempt: a proposal that was lost with its leader is
	// never answered.
	replaceTry = 5 * time.Second
)

// ReplaceMember has the cluster forget a member whose data is lost, and expect
// another one at the same URL, which is to start as Joining. It changes nothing
// where the members that are up would not be most of the cluster until then.
// What was done by half is completed by another call, and what was done already
// is no error.
func (c *Client) ReplaceMember(ctx context.Context, r Replacement) error {
	all, err := c.Members(ctx, r.Peers)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all.Members, func(m Member) bool { return m.Name == r.Name })
	urls := []string{r.URL}
	if at >= 0 {
		urls = all.Members[at].Peers
	} else {
		expected := func(m Member) bool { return m.State == MemberUnstarted && slices.Contains(m.Peers, r.URL) }
		if slices.ContainsFunc(all.Members, expected) {
			return nil
		}
		if r.URL == "" {
			return fmt.Errorf("there is no member %q, and it is not known where the others would reach it; there are %s", r.Name, all.names())
		}
	}
	if err := all.bears(r, at); err != nil {
		return err
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, replaceLimit)
	defer cancel()
	if at >= 0 {
		id := all.Members[at].id
		err := c.reconfigure(ctx, conn, func(m *etcdserverpb.Member) bool { return m.ID == id }, false, func(ctx context.Context) error {
			_, err := conn.MemberRemove(ctx, id)
			return err
		})
		if err != nil {
			return fmt.Errorf("remove the member %s: %w", r.Name, c.explain(conn, err))
		}
	}
	isNew := func(m *etcdserverpb.Member) bool { return slices.Equal(m.PeerURLs, urls) }
	err = c.reconfigure(ctx, conn, isNew, true, func(ctx context.Context) error {
		_, err := conn.MemberAdd(ctx, urls)
		return err
	})
	if err != nil {
		return fmt.Errorf("the member %s is removed, but cannot be added again at %s yet: %w; run the same command again",
			r.Name, strings.Join(urls, ","), c.explain(conn, err))
	}
	return nil
}

// bears returns why the cluster is not to replace the member at a place, or to
// add one where that is negative.
func (all *Membership) bears(r Replacement, at int) error {
	if all.Leader == "" {
		return fmt.Errorf("no member leads the cluster, so its members cannot be changed: most of %s have to be up and reach each other", all.names())
	}
	var up int
	var missing []string
	size := len(all.Members)
	for i, m := range all.Members {
		switch {
		case i == at:
		case m.up():
			up++
		case m.Name == "":
			missing = append(missing, "the one expected at "+strings.Join(m.Peers, ",")+" ("+string(m.State)+")")
		default:
			missing = append(missing, m.Name+" ("+m.Detail+")")
		}
	}
	if at < 0 {
		size++
	} else if all.Members[at].id == all.asked {
		return fmt.Errorf("nothing was changed: %s is the very member that is asked; run this on another one's node", r.Name)
	}
	if most := size/2 + 1; up < most {
		why := "the cluster is too small for that"
		if len(missing) > 0 {
			why = "no answer from " + strings.Join(missing, ", ") + "; have them back first"
		}
		return fmt.Errorf("nothing was changed: until %s has started anew, %d of %d members have to be up, and %d would be: %s", r.Name, most, size, up, why)
	}
	if at >= 0 && all.Members[at].up() && !r.Healthy {
		return fmt.Errorf("%w: the member %s is up (it %s), and replacing it costs the cluster a member until it has started anew", ErrHealthy, r.Name, all.Members[at].State)
	}
	return nil
}

// names lists the members.
func (all *Membership) names() string {
	names := make([]string, len(all.Members))
	for i, m := range all.Members {
		if names[i] = m.Name; m.Name == "" {
			names[i] = "one expected at " + strings.Join(m.Peers, ",")
		}
	}
	return strings.Join(names, ", ")
}

// reconfigure tries to change the cluster until a member like is among its
// members, or is not, as wanted: the answer may be lost with the leader.
func (c *Client) reconfigure(ctx context.Context, conn *clientv3.Client, like func(*etcdserverpb.Member) bool, wanted bool, try func(context.Context) error) error {
	for {
		err := within(ctx, replaceTry, try)
		if err == nil {
			return nil
		}
		var list []*etcdserverpb.Member
		looked := within(ctx, replaceTry, func(ctx context.Context) (err error) {
			list, err = c.memberList(ctx, conn)
			return err
		})
		if looked == nil && slices.ContainsFunc(list, like) == wanted {
			return nil
		}
		if !passes(err) || !sleep(ctx, time.Second) {
			return err
		}
	}
}

func within(ctx context.Context, limit time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return call(ctx)
}

// passes reports whether an error of a change of members is of the moment: the
// cluster has no leader just now, or its members have not been in touch for long.
func passes(err error) bool {
	var known rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &known) {
		code = known.Code()
	}
	return errors.Is(err, context.DeadlineExceeded) || code == codes.Unavailable || code == codes.DeadlineExceeded
}
