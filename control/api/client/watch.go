package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/wire"
)

// Changes are those of one revision, all of them.
type Changes struct {
	Revision int64
	Changes  []wire.Changed
}

// LostError says that changes may have been missed: read what you need anew, and
// watch from there.
type LostError struct{ Detail string }

func (e *LostError) Error() string { return "changes may have been missed: " + e.Detail }

const (
	// silence is how long a stream may say nothing before it is taken for dead:
	// every 15 seconds it says that it is alive.
	silence = 40 * time.Second
	// longestPause is the longest one between two connections.
	longestPause = 5 * time.Second
	// maxEvent bounds one event, in bytes: etcd's values are smaller.
	maxEvent = 8 << 20
)

// Watch gives the changes of topics (mappings, routes, domains, names, pools,
// environments, verdicts, nodes) after a revision, 0 being from now on, revision
// by revision, each of them whole. Where the connection ends it goes on where it
// was. It ends with ctx, with a *LostError, and with what the API refuses for
// good, which is the last thing that it gives.
func (c *Client) Watch(ctx context.Context, after int64, topics ...string) iter.Seq2[Changes, error] {
	return func(yield func(Changes, error) bool) {
		w := &watcher{c: c, topics: topics, after: after, yield: yield}
		pause := firstPause
		for ctx.Err() == nil {
			heard, err := w.stream(ctx)
			switch {
			case errors.Is(err, errEnough):
				return
			case ctx.Err() != nil:
			case isLast(err):
				yield(Changes{}, err)
				return
			}
			if heard {
				pause = firstPause
			}
			if wait(ctx, pause) != nil {
				break
			}
			pause = min(2*pause, longestPause)
		}
		yield(Changes{}, ctx.Err())
	}
}

// isLast reports whether it is of no use to connect again.
func isLast(err error) bool {
	if errors.As(err, new(*LostError)) || errors.Is(err, errSelf) {
		return true
	}
	p := ProblemOf(err)
	return p != nil && p.Code != wire.Unavailable && p.Code != wire.TooMany && p.Code != wire.Internal
}

// errEnough is that whoever iterates wants no more.
var errEnough = errors.New("enough")

// watcher is a watch, over its connections.
type watcher struct {
	c      *Client
	topics []string
	after  int64 // all up to it was passed on
	some   []wire.Changed
	yield  func(Changes, error) bool
}

// stream passes on what one connection brings. heard is whether it brought
// anything.
func (w *watcher) stream(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	query := url.Values{"topics": {strings.Join(w.topics, ",")}}
	in := call{method: http.MethodGet, path: []string{"watch"}, query: query, header: http.Header{"Accept": {"text/event-stream"}}}
	if w.after > 0 {
		in.header.Set("Last-Event-Id", strconv.FormatInt(w.after, 10))
	}
	w.some = nil // of a revision that did not come whole
	req, err := w.c.request(ctx, in, nil)
	if err != nil {
		return false, errors.Join(errSelf, err)
	}
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	resp, err := w.c.http.Do(req)
	if err != nil {
		return false, w.c.unreached(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what came of it has to do
		return false, w.c.problem(resp, text)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	var e event
	for lines.Scan() {
		quiet.Reset(silence)
		if line := lines.Text(); line != "" {
			e.line(line)
			continue
		}
		heard = true
		if err := w.take(e); err != nil {
			return heard, err
		}
		e = event{}
	}
	return heard, lines.Err()
}

// event is one server-sent event, as its lines have it so far.
type event struct {
	name, data string
	id         int64
}

// line adds a line (WHATWG HTML, section 9.2.6). Fields that are not known mean
// nothing.
func (e *event) line(text string) {
	field, value, _ := strings.Cut(text, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "event":
		e.name = value
	case "data":
		e.data += value
	case "id":
		e.id, _ = strconv.ParseInt(value, 10, 64)
	}
}

// take passes on what an event completes.
func (w *watcher) take(e event) error {
	switch e.name {
	case "lost":
		var l wire.Lost
		if err := json.Unmarshal([]byte(e.data), &l); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		return &LostError{l.Detail}
	case "changed":
		var c wire.Changed
		if err := json.Unmarshal([]byte(e.data), &c); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		w.some = append(w.some, c)
	}
	if e.id == 0 {
		return nil
	}
	w.after = e.id
	some := w.some
	w.some = nil
	if len(some) > 0 && !w.yield(Changes{e.id, some}, nil) {
		return errEnough
	}
	return nil
}
