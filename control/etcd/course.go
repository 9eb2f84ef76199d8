package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errSetBack says that etcd is not the one it was: it was restored from a backup,
// its disk set back to an earlier copy, or it is another cluster at the same
// address. Revisions then mean other changes, and whoever goes on from one has a
// mixture of two configurations.
var errSetBack = errors.New("etcd is another cluster, or was set back to what it had earlier")

// course is what a feed knows of the etcd whose changes it follows, and by which
// it is known again when a stream takes the place of a lost one.
type course struct {
	conn    *clientv3.Client
	patient time.Duration // for an answer
	cluster uint64        // 0: not known yet
	mark    mark
	opened  bool // whether a stream was opened before
}

// mark is the newest change that is known of, or a key that there is none of.
type mark struct {
	span  int
	key   string
	value []byte
	rev   int64 // 0: there is no such key
	since int64 // where there is none, since when
}

// firstMark returns the newest of what was loaded from spans, of revision rev.
// Keys are below prefix.
func firstMark(prefix string, spans []span, kvs []KV, rev int64) mark {
	newest := mark{key: spans[0].from, since: rev}
	for _, kv := range kvs {
		if kv.ModRev > newest.rev {
			newest = mark{key: kv.Key, value: kv.Value, rev: kv.ModRev}
		}
	}
	if newest.rev == 0 {
		return newest
	}
	newest.key = prefix + newest.key
	for i, sp := range spans {
		if newest.key >= sp.from && newest.key < sp.end {
			newest.span = i
		}
	}
	return newest
}

// note keeps the last of the events of a span.
func (c *course) note(span int, events []*mvccpb.Event) {
	last := events[len(events)-1]
	if rev := last.Kv.ModRevision; c.conn == nil || rev < max(c.mark.rev, c.mark.since) {
		return
	}
	c.mark = mark{span: span, key: string(last.Kv.Key), value: last.Kv.Value, rev: last.Kv.ModRevision}
	if last.Type == mvccpb.Event_DELETE {
		c.mark.value, c.mark.rev, c.mark.since = nil, 0, last.Kv.ModRevision
	}
}

// checkCluster returns an error if an answer is of another cluster than those
// before.
func (c *course) checkCluster(h *etcdserverpb.ResponseHeader) error {
	id := h.GetClusterId()
	if c.cluster != 0 && id != 0 && id != c.cluster {
		return fmt.Errorf("%w: its ID is %x and was %x", errSetBack, id, c.cluster)
	}
	if id != 0 {
		c.cluster = id
	}
	return nil
}

// check returns an error if etcd does not have at revision rev, until which all
// changes of the mark's span have arrived, what the mark says. A cluster's ID
// alone does not tell: a disk that was set back has it too.
func (c *course) check(ctx context.Context, rev int64) error {
	if c.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.patient)
	defer cancel()
	got, err := c.conn.Get(ctx, c.mark.key, clientv3.WithRev(rev))
	var known rpctypes.EtcdError
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("%w: it had reached revision %d, and has not now", errSetBack, rev)
	case errors.Is(err, rpctypes.ErrNoLeader):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &known) && known.Code() == codes.Unavailable:
		return status.Error(codes.Unavailable, err.Error()) // another try may tell
	case err != nil:
		return err
	}
	if err := c.checkCluster(got.Header); err != nil {
		return err
	}
	there := len(got.Kvs) > 0
	if there != (c.mark.rev > 0) || there && (got.Kvs[0].ModRevision != c.mark.rev || !bytes.Equal(got.Kvs[0].Value, c.mark.value)) {
		return fmt.Errorf("%w: %s was another one at revision %d", errSetBack, strings.ToValidUTF8(c.mark.key, "?"), rev)
	}
	return nil
}

// leases are those of a client that are being kept alive.
type leases struct {
	mu  sync.Mutex
	all map[*lease]struct{}
}

func (s *leases) add(l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*lease]struct{}{}
	}
	s.all[l] = struct{}{}
}

func (s *leases) remove(l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
}

// end ends all of them: an etcd that was set back may know them still, and not
// what was written under them since.
func (s *leases) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.all {
		l.end(cause)
	}
}
