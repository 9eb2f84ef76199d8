package v1

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// topics are what can be watched, and the folders that they are.
var topics = map[string]string{
	"mappings": "ports/", "routes": "routes/", "domains": "domains/", "names": "names/", "pools": "pools/",
	"environments": "envs/", "verdicts": "verdicts/", "nodes": "nodes/",
}

const (
	watchOperation = "watch"
	// maxWatchers bounds the event streams of a node.
	maxWatchers = 100
	// aliveEvery is how often a stream without changes says that it is alive.
	aliveEvery = 15 * time.Second
)

// watch registers the event stream.
func (s *Server) watch(to huma.API) {
	sse.Register(to, huma.Operation{
		OperationID: watchOperation, Method: http.MethodGet, Path: "/watch", Tags: []string{"cluster"}, Summary: "Watch keys change",
		Description: "Server-sent events. The last of a revision has that for its ID, so that a client which connects again with Last-Event-ID goes on where it was. The first, alive, comes at once and has the revision that the others come after.",
		Metadata:    needsAll(tokens.Viewer),
	}, map[string]any{"changed": wire.Changed{}, "alive": wire.Alive{}, "lost": wire.Lost{}}, s.sendChanges)
}

func (s *Server) sendChanges(ctx context.Context, in *struct {
	Topics []string `query:"topics" enum:"mappings,routes,domains,names,pools,environments,verdicts,nodes" minItems:"1" maxItems:"8" required:"true"`
	After  int64    `query:"after" minimum:"0" doc:"Changes after this etcd revision; 0: from now on."`
	Last   int64    `header:"Last-Event-ID" doc:"As after."`
}, send sse.Sender) {
	if s.watchers.Add(1) > maxWatchers {
		s.watchers.Add(-1)
		_ = send.Data(wire.Lost{Detail: "this node has as many watchers as it takes; ask another one"})
		return
	}
	defer s.watchers.Add(-1)
	wanted := func(c etcd.Change) bool {
		return slices.ContainsFunc(in.Topics, func(topic string) bool { return strings.HasPrefix(c.Key, topics[topic]) })
	}
	if after, ok := s.beginWatch(ctx, max(in.After, in.Last), send); ok {
		s.sendAfter(ctx, after, wanted, send)
	}
}

// beginWatch returns the revision after which a stream begins for a client that knows all
// up to after, 0 being nothing, and false where it cannot begin.
func (s *Server) beginWatch(ctx context.Context, after int64, send sse.Sender) (int64, bool) {
	now, err := s.newest(ctx)
	switch {
	case err != nil && after != 0: // it may well answer in a moment
	case err != nil:
		_ = send.Data(wire.Lost{Detail: err.Error()})
		return 0, false
	case after > now:
		return now, send(lostAt(now, aheadText)) == nil
	case after == 0:
		after = now
	}
	return after, true
}

// sendAfter sends the changes after a revision that are wanted, for as long as the
// client takes them.
func (s *Server) sendAfter(ctx context.Context, after int64, wanted func(etcd.Change) bool, send sse.Sender) {
	t := tokenOf(ctx)
	seen := after
	changes := make(chan []etcd.Change)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// All keys by one watcher: those of several come in no order, and whoever
		// went on after one's revision would miss what another had yet to say.
		failed <- s.cfg.Keys.Client.Follow(ctx, []string{""}, after, func(c []etcd.Change) (bool, error) {
			select {
			case changes <- c:
				return false, nil
			case <-ctx.Done():
				return false, ctx.Err()
			}
		})
	}()
	// At once, so that the client hears that it is heard, and from where on.
	if send(sse.Message{ID: int(after), Data: wire.Alive{Time: time.Now().UTC()}}) != nil {
		return
	}
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case err := <-failed:
			s.sendEnd(ctx, err, send)
			return
		case <-alive.C:
			if now, failed := s.newest(ctx); failed == nil && now < seen {
				_ = send(lostAt(now, aheadText))
				return
			}
			err = send.Data(wire.Alive{Time: time.Now().UTC()})
		case some := <-changes:
			if len(some) > 0 {
				seen = some[len(some)-1].ModRev
			}
			err = sendAll(send, slices.DeleteFunc(some, func(c etcd.Change) bool { return !wanted(c) }))
		}
		if !s.stillGood(t) {
			_ = send.Data(wire.Lost{Detail: "the token is good no longer"})
			return
		}
		if err != nil {
			return // the client is gone, or takes nothing
		}
	}
}

// sendEnd says why a stream ends, unless err is nil.
func (s *Server) sendEnd(ctx context.Context, err error, send sse.Sender) {
	var now int64
	if errors.Is(err, rpctypes.ErrCompacted) {
		err = errors.New("etcd does not remember that revision any more")
		now, _ = s.newest(ctx) // 0: whoever connects again hears the same
	}
	if err != nil {
		_ = send(lostAt(now, err.Error()))
	}
}

// aheadText says what has become of etcd whose revision is below one that a client
// was told.
const aheadText = "etcd has not come as far as that revision: it was restored, or has begun anew"

// lostAt is the event that changes up to rev may have been missed. Whoever connects
// again with its ID goes on from there.
func lostAt(rev int64, why string) sse.Message {
	return sse.Message{ID: int(rev), Data: wire.Lost{Detail: why}}
}

// newest returns the revision that etcd is at.
func (s *Server) newest(ctx context.Context) (rev int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, rev, err = s.cfg.Keys.Client.ReadUnder(ctx, "edits/", 0)
	return rev, err
}

// sendAll sends changes. The last of each revision has that for its ID: a client
// that goes on after it has had all of them.
func sendAll(send sse.Sender, changes []etcd.Change) error {
	for i, c := range changes {
		m := sse.Message{Data: changed(c)}
		if i+1 == len(changes) || changes[i+1].ModRev != c.ModRev {
			m.ID = int(c.ModRev)
		}
		if err := send(m); err != nil {
			return err
		}
	}
	return nil
}

// stillGood reports whether a token is what it was when a stream began.
func (s *Server) stillGood(t *tokens.Token) bool {
	now := s.cfg.Tokens.Get(t.Name)
	return now != nil && now.Role == t.Role && now.Unscoped() && (now.Hash == t.Hash || now.Former == t.Hash && time.Now().Before(now.FormerUntil)) &&
		(now.ExpiresAt.IsZero() || time.Now().Before(now.ExpiresAt))
}

// changed returns the event of a change, without secrets.
func changed(c etcd.Change) wire.Changed {
	e := wire.Changed{Key: c.Key, Revision: c.ModRev}
	switch {
	case c.Deleted:
	case strings.HasPrefix(c.Key, "envs/"):
		if env, err := envs.ParseEnv(strings.TrimPrefix(c.Key, "envs/"), c.Value); err == nil {
			env.Rev = c.ModRev
			e.Value, _ = json.Marshal(EnvironmentOf(env)) // of what was read from JSON
		}
	default:
		e.Value = wire.ValueOf(string(c.Value))
	}
	return e
}
