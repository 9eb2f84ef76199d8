package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// h3Client is quic-go's client, which has a flaw: where GOAWAY comes just when a
// request begins, between the moment that ClientConn.openRequestStream looks for
// one and that in which it notes the stream (TrackStream), handleControlStream
// takes the connection for idle and closes it with H3_NO_ERROR. That is no doing of
// the server's, which closes nothing before it has said a second time, and of one
// stream, that it takes no more (RFC 9114 section 5.2). The request is made again,
// as its Transport does itself with one that finds the connection closed already.
type h3Client struct {
	*http3.Transport
	again *atomic.Int64 // how often
}

func (c h3Client) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(req)
	if own, ok := errors.AsType[*http3.Error](err); ok && !own.Remote && own.ErrorCode == http3.ErrCodeNoError {
		c.again.Add(1)
		return c.Transport.RoundTrip(req)
	}
	return resp, err
}

func (t *upgradesTrial) h3Client(conf *tls.Config) h3Client {
	addr := t.node.edge.addrs[serviceHTTPS]
	return h3Client{&http3.Transport{TLSClientConfig: conf, DisableCompression: true,
		Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, addr.String(), tc, qc)
		}}, &t.again}
}

// upgradesLoads are runs of h2load. It goes on by another connection when an answer
// over HTTP/1.1 says that this one closes, but not after GOAWAY: over HTTP/2 each
// connection asks once for all that it is to have, and runs are many and short.
func upgradesLoads() map[string]h2load {
	return map[string]h2load{
		"h2load h1": {scheme: "https", service: serviceHTTPS, alpn: "http/1.1", clients: 2, streams: 1},
		"h2load h2": {scheme: "https", service: serviceHTTPS, alpn: "h2", clients: 4, streams: 5},
	}
}

// upgradesKept is how many requests a client of h2load makes over HTTP/1.1, which
// takes as long as some upgrades.
const upgradesKept = 5000

// upgradesLoadLimit is how long a run of h2load may take, on a machine that has
// much else to do: one that is ended counts as so many failed requests.
const upgradesLoadLimit = 5 * time.Minute

// load runs h2load again and again.
func (t *upgradesTrial) load(ctx context.Context, what string, l h2load) {
	for !t.over() && ctx.Err() == nil {
		requests := l.clients * l.streams
		if l.streams == 1 {
			requests = l.clients * upgradesKept
		}
		sum, err := l.once(ctx, t.node.edge, requests)
		if ctx.Err() != nil {
			return
		}
		t.noteSome(what, int64(requests), sum, err)
		if pause(ctx, pollInterval) != nil {
			return
		}
	}
}

// once makes so many requests by each client's own connection.
func (l h2load) once(ctx context.Context, e *edge, requests int) (sum h2loadSummary, err error) {
	program, err := h2loadTool.path()
	if err != nil {
		return sum, err
	}
	ctx, cancel := context.WithTimeout(ctx, upgradesLoadLimit)
	defer cancel()
	addr := e.addrs[l.service]
	args := []string{
		"--requests", strconv.Itoa(requests), "--clients", strconv.Itoa(l.clients), "--max-concurrent-streams", strconv.Itoa(l.streams),
		"--connect-to", addr.String(),
	}
	if l.alpn == "http/1.1" {
		args = append(args, "--h1")
	}
	out, err := command(ctx, program, append(args, urlOf(l.scheme, addr, usualPath))...).CombinedOutput()
	if err != nil {
		return sum, fmt.Errorf("h2load: %w: %s", err, tail(out))
	}
	if sum, err = parseH2load(out); err == nil {
		err = sum.check(l.alpn, bodySize)
	}
	return sum, err
}

// noteSome notes a run of h2load. Requests that it does not tell of have failed.
func (t *upgradesTrial) noteSome(what string, requests int64, sum h2loadSummary, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.Requests[what] += requests
	if err == nil {
		return
	}
	t.res.Failed[what] += max(1, requests-sum.succeeded+sum.other)
	t.tell(fmt.Errorf("%s: %w", what, err))
}
