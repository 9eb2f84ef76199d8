package etcd

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// feed is the gRPC stream of a watch, with a watcher for each span. It goes on
// with another one, from where it was, when the connection is lost.
//
// It speaks the protocol itself because the client library's Watcher passes
// each answer through four goroutines, and waking them takes most of the CPU
// time that a single edit costs a node.
type feed struct {
	remote  etcdserverpb.WatchClient
	spans   []span
	deliver func(arrival) // called by run
	ask     chan struct{} // holds a token while etcd is to be asked how far it is
	before  bool          // whether events are to say what there was before
	exact   bool          // whether to end with errEarly where etcd answers questions too early
	// whole is the size up to which an answer comes in one piece, in bytes, and
	// fragments says that one was larger, so that they come in fragments.
	whole     int
	fragments bool

	course // run's

	// current is the stream that questions are sent on; nil: there is none.
	current atomic.Pointer[etcdserverpb.Watch_WatchClient]
	// The rest belongs to run.
	// Of the stream: whether a question has been answered, and whether answers
	// are known to come after what they speak of.
	answered, proven bool

	next []int64                       // by span, the first revision that may not have arrived
	part []*etcdserverpb.WatchResponse // by span, what has arrived of one in fragments
}

// allSpans is the span of an arrival that concerns the whole stream.
const allSpans = -1

// arrival is one answer of a span's watcher, or of all, or the end of the feed.
type arrival struct {
	span     int
	rev      int64 // of etcd as it answered
	events   []*mvccpb.Event
	progress bool  // the span has, or all have, reached rev
	err      error // why the feed has ended
	load     bool  // it is the load of what is aside, kvs, as of rev
	kvs      []KV
}

// newFeed returns a feed that has arrived at revision rev.
func (c *Client) newFeed(conn *clientv3.Client, spans []span, rev int64, deliver func(arrival)) *feed {
	f := &feed{
		remote: etcdserverpb.NewWatchClient(conn.ActiveConnection()), spans: spans, deliver: deliver, whole: c.whole,
		ask: make(chan struct{}, 1), next: make([]int64, len(spans)), part: make([]*etcdserverpb.WatchResponse, len(spans)),
	}
	for i := range f.next {
		f.next[i] = rev + 1
	}
	return f
}

// The pauses between attempts to get a stream: a lost connection is mended by
// gRPC, at its own pace.
const (
	reopenMin = time.Millisecond
	reopenMax = 100 * time.Millisecond
)

// mostWhole is the size in bytes beyond which an answer is to come in fragments, of
// 1.5 MB or so. To cut them off, etcd takes the size of each anew with each event:
// 40,000 small ones, as a watcher misses while somebody loads a table, take it half
// a minute, during which it does little else, and 200 ms where they come whole.
const mostWhole = 256 << 20

// run delivers until ctx ends, or something is wrong that another stream would
// not mend, which it delivers last.
func (f *feed) run(ctx context.Context) {
	again := pause{next: reopenMin, max: reopenMax}
	for {
		arrived, err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.ResourceExhausted && !f.fragments {
			f.fragments = true
			continue
		}
		if !isPassing(err) {
			f.deliver(arrival{span: allSpans, err: rpctypes.Error(err)})
			return
		}
		if arrived {
			again.next = reopenMin
		}
		if !again.wait(ctx) {
			return
		}
	}
}

// isPassing reports whether err, of a stream, is one of the connection or of a
// server that will be back.
func isPassing(err error) bool {
	code := status.Code(err)
	return (code == codes.Unavailable || code == codes.Internal) && !errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader)
}

// follow delivers what one stream brings, until that ends.
func (f *feed) follow(ctx context.Context) (arrived bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	most := f.whole
	if f.fragments {
		most = math.MaxInt32 // a single event may be larger than a fragment
	}
	ws, err := f.remote.Watch(ctx, grpc.MaxCallRecvMsgSize(most))
	if err != nil {
		return false, err
	}
	clear(f.part)
	f.answered, f.proven = false, false
	again := f.opened
	f.opened = true
	for i, sp := range f.spans {
		// What is wrong with the stream, Recv says.
		_ = ws.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: &etcdserverpb.WatchCreateRequest{
			WatchId: watchID(i), Key: []byte(sp.from), RangeEnd: []byte(sp.end), StartRevision: f.next[i], ProgressNotify: true, Fragment: f.fragments, PrevKv: f.before,
		}}})
	}
	if f.exact {
		f.probe(ws)
	}
	f.current.Store(&ws)
	defer f.current.Store(nil)
	f.askProgress() // what was asked before may not have been answered
	for {
		resp, err := ws.Recv()
		if err != nil {
			return arrived, err
		}
		if again { // once the stream is there: what follows is of the etcd that is asked
			if again, err = false, f.check(ctx, f.next[f.mark.span]-1); err != nil {
				return false, err
			}
		}
		arrived = true
		if err := f.take(resp); err != nil {
			return true, err
		}
	}
}

// errEarly says that etcd is one before 3.4.25 or 3.5.8, which answers questions
// at once, while changes up to the revision that it names are still to come.
var errEarly = errors.New("etcd says of a watch that is catching up that it has")

// probe finds out whether etcd answers too early: by a question that is sent
// right behind watchers that have yet to catch up, and a watcher that is created
// behind the question, and to which nothing is ever sent. Where questions are
// answered at once, the answer comes before word of that watcher. (It can, if
// rarely, elsewhere: all watchers have caught up within that moment.)
func (f *feed) probe(ws etcdserverpb.Watch_WatchClient) {
	_ = ws.Send(progressQuestion)
	_ = ws.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: &etcdserverpb.WatchCreateRequest{
		WatchId: watchID(len(f.spans)), Key: []byte(f.spans[0].from),
		Filters: []etcdserverpb.WatchCreateRequest_FilterType{etcdserverpb.WatchCreateRequest_NOPUT, etcdserverpb.WatchCreateRequest_NODELETE},
	}}})
}

// watchID is the ID of a span's watcher: 0 would have etcd choose one.
func watchID(span int) int64 { return int64(span) + 1 }

// take delivers an answer, or returns why it ends the feed.
func (f *feed) take(resp *etcdserverpb.WatchResponse) error {
	span := int(resp.WatchId - watchID(0))
	if err := f.checkCluster(resp.Header); err != nil {
		return err
	}
	if err := refusal(resp); err != nil {
		return err
	}
	rev := resp.Header.GetRevision()
	switch {
	case resp.Created:
		if resp.WatchId == watchID(len(f.spans)) { // the probe
			if f.answered {
				return errEarly
			}
			f.proven = true
		}
	case resp.WatchId == clientv3.InvalidWatchID: // the answer to a question
		f.answered = true
		if f.exact && !f.proven {
			return nil
		}
		// It says nothing of where another stream may go on: etcd before 3.4.25
		// and 3.5.8 answers at once, while changes up to that revision are still
		// to come. They would be lost with this stream. What a watcher says of
		// itself comes in order.
		f.deliver(arrival{span: allSpans, rev: rev, progress: true})
	case span < 0 || span >= len(f.spans): // of no watcher of ours
	case resp.Fragment || f.part[span] != nil:
		return f.takePart(span, resp)
	case len(resp.Events) == 0:
		f.next[span] = max(f.next[span], rev+1)
		f.deliver(arrival{span: span, rev: rev, progress: true})
	default:
		f.next[span] = resp.Events[len(resp.Events)-1].Kv.ModRevision + 1
		f.note(span, resp.Events)
		f.deliver(arrival{span: span, rev: rev, events: resp.Events})
	}
	return nil
}

// takePart puts an answer together that comes in fragments.
func (f *feed) takePart(span int, resp *etcdserverpb.WatchResponse) error {
	whole := f.part[span]
	if whole == nil {
		whole = resp
	} else {
		whole.Events = append(whole.Events, resp.Events...)
	}
	if resp.Fragment {
		f.part[span] = whole
		return nil
	}
	f.part[span], whole.Fragment = nil, false
	return f.take(whole)
}

// refusal returns why etcd ends a watcher, nil if it does not.
func refusal(resp *etcdserverpb.WatchResponse) error {
	switch {
	case resp.CompactRevision != 0:
		return rpctypes.ErrCompacted
	case !resp.Canceled:
		return nil
	case resp.CancelReason == "":
		return errors.New("etcd closed the watch without a reason")
	}
	// Some reasons are texts of gRPC errors.
	_, reason, isStatus := strings.Cut(resp.CancelReason, " desc = ")
	if !isStatus {
		reason = resp.CancelReason
	}
	return status.Error(codes.FailedPrecondition, reason) // run finds etcd's own error by it
}

// askProgress has etcd asked how far it is.
func (f *feed) askProgress() {
	select {
	case f.ask <- struct{}{}:
	default: // one question is queued already, and will do
	}
}

var progressQuestion = &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{ProgressRequest: &etcdserverpb.WatchProgressRequest{}}}

// sendQuestions sends the questions that askProgress queues. It is a goroutine
// of its own because sending blocks while the connection takes nothing.
func (f *feed) sendQuestions(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.ask:
			// A new stream asks anew, and the end of this one run tells.
			if ws := f.current.Load(); ws != nil {
				_ = (*ws).Send(progressQuestion)
			}
		}
	}
}
