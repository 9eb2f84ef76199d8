package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// h2load is a run of nghttp2's load generator.
type h2load struct {
	scheme           string
	service          service
	alpn             string // the protocol that must be in use: http/1.1 or h2
	clients, streams int
	path             string        // "": one that the origin answers bodySize bytes to
	body             int64         // bytes of each answer; 0: bodySize
	upload           int           // bytes of each request's body
	costIn           time.Duration // what a sample's cost counts in; 0: microseconds
}

// loadTail is how long the load goes on after the window, so that the window
// never sees it end.
const loadTail = 200 * time.Millisecond

// measure runs h2load for longer than the window and counts in its log the
// responses that ended within. Connecting and handshakes are thereby left out.
func (l h2load) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-h2load-")
	if err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "log")
	program, err := h2loadTool.path()
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := l.args(e, ph, log)
	if l.upload > 0 {
		file := filepath.Join(dir, "upload")
		if err := os.WriteFile(file, filler(l.upload), 0o600); err != nil {
			return sample{}, err
		}
		args = append(args, "--data", file)
	}
	cmd := command(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return sample{}, fmt.Errorf("start h2load: %w", err)
	}
	w, err := observe(ctx, e.root, ph, func() {})
	if err != nil {
		cancel()
		return sample{}, errors.Join(err, cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return sample{}, fmt.Errorf("h2load: %w\n%s", err, tail(out.Bytes()))
	}
	return l.sample(w, out.Bytes(), log)
}

func (l h2load) args(e *edge, ph phases, log string) []string {
	addr := e.addrs[l.service]
	length := ph.warm + ph.main + loadTail
	args := []string{
		"--duration", strconv.FormatInt(length.Milliseconds(), 10) + "ms",
		"--clients", strconv.Itoa(l.clients),
		"--max-concurrent-streams", strconv.Itoa(l.streams),
		"--threads", "1",
		"--log-file", log,
		"--connect-to", addr.String(),
		// Servers differ in which suite they prefer of several.
		"--tls13-ciphers", "TLS_AES_128_GCM_SHA256",
	}
	if l.alpn == "http/1.1" {
		args = append(args, "--h1")
	}
	if l.body > bodySize {
		// Windows like those of browsers: 1 MB for a stream, 16 MB in all.
		args = append(args, "--window-bits", "20", "--connection-window-bits", "24")
	}
	return append(args, urlOf(l.scheme, addr, cmp.Or(l.path, usualPath)))
}

// sample reads the run's results and refuses those of a run with any failure.
func (l h2load) sample(w window, out []byte, log string) (sample, error) {
	sum, err := parseH2load(out)
	if err != nil {
		return sample{}, err
	}
	if err := sum.check(l.alpn, cmp.Or(l.body, bodySize)); err != nil {
		return sample{}, err
	}
	f, err := os.Open(log)
	if err != nil {
		return sample{}, fmt.Errorf("read h2load's log: %w", err)
	}
	defer f.Close()
	latency, err := readH2loadLog(f, w.from, w.to)
	if err != nil {
		return sample{}, err
	}
	if len(latency) == 0 {
		return sample{}, errors.New("no response at all within the window")
	}
	s := perUnit(w, float64(len(latency)), cmp.Or(l.costIn, time.Microsecond), latency)
	s.TLS = sum.tls
	return s, nil
}

// h2loadSummary is what h2load prints at its end, as far as it is used.
type h2loadSummary struct {
	alpn      string
	tls       string // protocol and cipher suite; "" without TLS
	succeeded int64  // responses with status 2xx or 3xx
	bad       int64  // failed, errored and timed out requests
	other     int64  // responses with a status other than 2xx
	data      int64  // bytes of bodies
}

var (
	h2loadALPN     = regexp.MustCompile(`(?m)^Application protocol: (\S+)$`)
	h2loadTLS      = regexp.MustCompile(`(?m)^TLS Protocol: (\S+)\nCipher: (\S+)$`)
	h2loadRequests = regexp.MustCompile(`(?m)^requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$`)
	h2loadStatus   = regexp.MustCompile(`(?m)^status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx$`)
	h2loadData     = regexp.MustCompile(`(?m)^traffic: .* \S+ \((\d+)\) data$`)
)

func parseH2load(out []byte) (h2loadSummary, error) {
	var s h2loadSummary
	requests, status, data := h2loadRequests.FindSubmatch(out), h2loadStatus.FindSubmatch(out), h2loadData.FindSubmatch(out)
	if requests == nil || status == nil || data == nil {
		return s, fmt.Errorf("h2load printed no summary that is understood:\n%s", tail(out))
	}
	number := func(b []byte) int64 {
		n, _ := strconv.ParseInt(string(b), 10, 64) // digits, by the expression
		return n
	}
	s.succeeded = number(requests[1])
	s.bad = number(requests[2]) + number(requests[3]) + number(requests[4])
	s.other = number(status[1]) + number(status[2]) + number(status[3])
	s.data = number(data[1])
	if m := h2loadALPN.FindSubmatch(out); m != nil {
		s.alpn = string(m[1])
	}
	if m := h2loadTLS.FindSubmatch(out); m != nil {
		s.tls = string(m[1]) + " " + string(m[2])
	}
	return s, nil
}

// check returns an error if anything but the origin's response came back, which
// has so many bytes.
func (s h2loadSummary) check(alpn string, body int64) error {
	switch {
	case s.alpn != alpn:
		return fmt.Errorf("h2load spoke %q, not %q", s.alpn, alpn)
	case s.bad > 0:
		return fmt.Errorf("%d requests failed beside %d that succeeded", s.bad, s.succeeded)
	case s.other > 0:
		return fmt.Errorf("%d of %d responses had a status other than 2xx", s.other, s.succeeded)
	case s.data < s.succeeded*body:
		return fmt.Errorf("bodies are too short: %d bytes in %d responses, want %d in each", s.data, s.succeeded, body)
	}
	return nil
}

// readH2loadLog returns the times that the requests took whose response ended
// from from to to. A line is the wall-clock start in microseconds, the status
// (-1: failed) and the duration in microseconds.
func readH2loadLog(r io.Reader, from, to time.Time) ([]time.Duration, error) {
	var latency []time.Duration
	low, high := from.UnixMicro(), to.UnixMicro()
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		var field [3]int64
		rest := scan.Bytes()
		for i := range field {
			var word []byte
			word, rest, _ = bytes.Cut(rest, []byte("\t"))
			n, err := strconv.ParseInt(string(word), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("h2load's log: line %q is not understood", scan.Bytes())
			}
			field[i] = n
		}
		start, status, took := field[0], field[1], field[2]
		if status < 200 || status > 299 {
			return nil, fmt.Errorf("h2load's log: a request ended with status %d", status)
		}
		if end := start + took; low <= end && end < high {
			latency = append(latency, time.Duration(took)*time.Microsecond)
		}
	}
	return latency, scan.Err()
}
