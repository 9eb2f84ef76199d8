package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// streamResult is how event streams come through: from the request until the
// first event, and from when an event was sent until it is there.
type streamResult struct {
	Streams int          `json:"streams"` // of each way
	Ways    []*streamWay `json:"ways"`    // the first one is direct, without a proxy
}

// streamWay is one way to the origin.
type streamWay struct {
	Contender string    `json:"contender"` // "": the origin itself
	Proto     string    `json:"proto"`
	First     []float64 `json:"first_us"` // from the request until the first event
	Later     []float64 `json:"later_us"` // of each other event, from being sent
	Error     string    `json:"error,omitempty"`
}

// streamLimit is how much later than direct the first event may be there in
// sluice's streams, at the median.
const streamLimit = time.Millisecond

// runStreams opens streams one after the other, on every way in turn, so that
// what disturbs the machine disturbs them all.
func runStreams(ctx context.Context, b *bench) error {
	direct := &edge{name: "", addrs: addressBook{serviceHTTP: b.origin[serviceHTTP]}}
	ways := []*streamClient{newStreamClient(direct, "HTTP/1.1", serviceHTTP)}
	defer func() {
		for _, w := range ways {
			w.tr.CloseIdleConnections()
		}
	}()
	for _, c := range b.options.withHTTPS() {
		s, err := b.site("stream-" + c.name)
		if err != nil {
			return err
		}
		e, err := c.start(ctx, s)
		if err != nil {
			return err
		}
		defer e.proc.stop()
		if err := verify(ctx, e); err != nil {
			return err
		}
		ways = append(ways, newStreamClient(e, "HTTP/1.1", serviceHTTPS), newStreamClient(e, "HTTP/2.0", serviceHTTPS))
	}
	res := &streamResult{Streams: b.options.streams}
	for _, w := range ways {
		res.Ways = append(res.Ways, &w.streamWay)
	}
	for i := range b.options.streams + 1 { // the first one is for connecting
		for _, w := range ways {
			if w.Error != "" {
				continue
			}
			if err := w.once(ctx, i > 0); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				w.Error = err.Error()
			}
		}
	}
	b.result.Streams = res
	return nil
}

// streamClient opens streams by one way, on one connection.
type streamClient struct {
	streamWay
	tr  *http.Transport
	url string
}

func newStreamClient(e *edge, proto string, s service) *streamClient {
	scheme, addr := "https", e.addrs[s]
	if s == serviceHTTP {
		scheme = "http"
	}
	var protocols http.Protocols
	protocols.SetHTTP1(proto == "HTTP/1.1")
	protocols.SetHTTP2(proto == "HTTP/2.0")
	return &streamClient{
		streamWay: streamWay{Contender: e.name, Proto: proto}, url: urlOf(scheme, addr, streamPath),
		tr: &http.Transport{
			Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: e.roots, ServerName: host}, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialTCP(ctx, addr) },
		},
	}
}

// once reads one stream to its end and notes its times if they count.
func (w *streamClient) once(ctx context.Context, counts bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return err
	}
	start := time.Now()
	resp, err := w.tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Proto != w.Proto {
		return fmt.Errorf("got %s %s, want %s 200", resp.Proto, resp.Status, w.Proto)
	}
	events := 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		now := time.Now()
		sent, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		nanos, err := strconv.ParseInt(string(sent), 10, 64)
		if err != nil {
			return fmt.Errorf("an event %q without a time", lines.Bytes())
		}
		switch events++; {
		case !counts:
		case events == 1:
			w.First = append(w.First, micros(now.Sub(start)))
		default:
			w.Later = append(w.Later, micros(now.Sub(time.Unix(0, nanos))))
		}
	}
	if events != streamEvents {
		return fmt.Errorf("a stream ended after %d of %d events", events, streamEvents)
	}
	return nil
}

// above returns how much later than direct the first event is there at the
// median, in microseconds.
func (r *streamResult) above(w *streamWay) float64 { return median(w.First) - median(r.Ways[0].First) }

func (r *streamResult) section() string {
	cells := [][]string{{fmt.Sprintf("%d event streams", r.Streams), "protocol", "first event, p50", "above direct", "later events, p50", "p99"}}
	for _, w := range r.Ways {
		name := w.Contender
		if name == "" {
			name = "direct"
		}
		if len(w.First) == 0 || len(w.Later) == 0 {
			cells = append(cells, []string{name, w.Proto, "–", "–", "–", "–"})
			continue
		}
		later := percentiles(slices.Clone(w.Later), 50, 99)
		cells = append(cells, []string{name, w.Proto, latency(median(w.First)), signed(r.above(w)), latency(later[0]), latency(later[1])})
	}
	return align(cells) + "\nThe first event counts from the request, later ones from when the origin sent them; one stream at a time.\n"
}

// signed is a latency that may be below 0.
func signed(us float64) string {
	if us < 0 {
		return "-" + latency(-us)
	}
	return latency(us)
}

func (r *streamResult) bars() []bar {
	var all []bar
	for _, w := range r.Ways {
		if w.Contender != judged || len(w.First) == 0 {
			continue
		}
		above := r.above(w)
		all = append(all, bar{"event streams over " + w.Proto + ": first event above direct, p50", "≤ " + latency(micros(streamLimit)),
			signed(above), w.Error == "" && above <= micros(streamLimit)})
	}
	return all
}

func (r *streamResult) failures() []string {
	var all []string
	for _, w := range r.Ways {
		if w.Error != "" {
			all = append(all, fmt.Sprintf("stream: %s over %s: %s", w.Contender, w.Proto, w.Error))
		}
	}
	return all
}
