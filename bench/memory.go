package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// footprint is what a process tree holds.
type footprint struct {
	RSS int64 `json:"rss_bytes"` // resident memory, pages that two of them share counted twice
	FDs int   `json:"fds"`
}

// footprintOf adds up the processes at and below root.
func footprintOf(root int) (footprint, error) {
	tree, err := processTree("/proc", root)
	if err != nil {
		return footprint{}, err
	}
	var f footprint
	for _, pid := range tree {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		b, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			return footprint{}, fmt.Errorf("read memory of process %d: %w", pid, err)
		}
		rss, ok := parseRollup(b)
		if !ok {
			return footprint{}, fmt.Errorf("read memory of process %d: no Rss line in %q", pid, b)
		}
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			return footprint{}, fmt.Errorf("count files of process %d: %w", pid, err)
		}
		f.RSS += rss
		f.FDs += len(fds)
	}
	return f, nil
}

// parseRollup takes the resident bytes from /proc/PID/smaps_rollup, which adds
// up page tables: the counters of /proc/PID/statm lag behind by a batch for
// each core.
func parseRollup(b []byte) (rss int64, ok bool) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 3 && string(f[0]) == "Rss:" && string(f[2]) == "kB" {
			n, err := strconv.ParseInt(string(f[1]), 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}

const (
	settleEvery = 250 * time.Millisecond
	settleReads = 12 // that have to agree: three seconds
	settleLimit = 60 * time.Second
)

// settled waits until the edge's memory stays where it is, and returns the
// median of the readings that agree. A Go program is told to collect its
// garbage, which it would do by itself within two minutes.
func settled(ctx context.Context, e *edge) (footprint, error) {
	if e.admin.IsValid() {
		for range 2 { // pools let go of what they hold at the second
			if err := collectGarbage(ctx, e.admin); err != nil {
				return footprint{}, err
			}
		}
	}
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	var last []footprint
	for start := time.Now(); ; {
		f, err := footprintOf(e.root)
		if err != nil {
			return footprint{}, err
		}
		last = append(last, f)
		if len(last) > settleReads {
			last = last[1:]
		}
		if f, ok := agreed(last); ok {
			return f, nil
		}
		if time.Since(start) > settleLimit {
			return footprint{}, fmt.Errorf("the memory of %s does not settle in %v; the last readings: %v", e.name, settleLimit, last)
		}
		select {
		case <-ctx.Done():
			return footprint{}, ctx.Err()
		case <-tick.C:
		}
	}
}

// agreed returns the median of enough readings that lie within one per cent.
func agreed(reads []footprint) (footprint, bool) {
	if len(reads) < settleReads {
		return footprint{}, false
	}
	sorted := slices.SortedFunc(slices.Values(reads), func(a, b footprint) int { return int(a.RSS - b.RSS) })
	least, most := sorted[0].RSS, sorted[len(sorted)-1].RSS
	return sorted[len(sorted)/2], most-least <= least/100
}

// collectGarbage has a node's runtime collect, by its admin address.
func collectGarbage(ctx context.Context, admin netip.AddrPort) error {
	_, err := getAdmin(ctx, admin, "/debug/pprof/heap?gc=1")
	return err
}

// getAdmin returns what a node's admin address answers with status 200.
func getAdmin(ctx context.Context, admin netip.AddrPort, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%v%s", admin, path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, tail(b))
	}
	return b, err
}

// fileLimit returns how many files each process may have open, raised to want
// first where that is allowed. Children inherit it.
func fileLimit(want uint64) (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	raised := unix.Rlimit{Cur: max(l.Max, want), Max: max(l.Max, want)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return raised.Cur, nil
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return l.Cur, nil
}

// byteSize writes a number of bytes in the unit that suits it.
func byteSize(n float64) string {
	switch {
	case math.IsNaN(n):
		return "–"
	case n >= 1<<20 || n <= -1<<20:
		return figure(n/(1<<20)) + " MB"
	case n >= 10<<10 || n <= -10<<10:
		return figure(n/(1<<10)) + " KB"
	}
	return figure(n) + " B"
}
