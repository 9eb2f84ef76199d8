package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// window is a stretch of time in the middle of a run and the CPU time that a
// process tree spent in it.
type window struct {
	from, to time.Time
	cpu      time.Duration
}

func (w window) length() time.Duration { return w.to.Sub(w.from) }

// observe lets ph.warm pass and then measures the tree under the process root
// for ph.main. It calls mark at both ends of the window.
func observe(ctx context.Context, root int, ph phases, mark func()) (window, error) {
	if err := pause(ctx, ph.warm); err != nil {
		return window{}, err
	}
	tree, err := processTree("/proc", root)
	if err != nil {
		return window{}, err
	}
	var w window
	before, err := cpuTime(tree)
	if err != nil {
		return window{}, err
	}
	w.from = time.Now()
	mark()
	if err := pause(ctx, ph.main); err != nil {
		return window{}, err
	}
	after, err := cpuTime(tree)
	if err != nil {
		return window{}, err
	}
	w.to = time.Now()
	mark()
	w.cpu = after - before
	now, err := processTree("/proc", root)
	if err != nil {
		return window{}, err
	}
	if !slices.Equal(tree, now) {
		return window{}, fmt.Errorf("processes came or went during the measurement: %v, then %v", tree, now)
	}
	return w, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// cpuTime returns the CPU time that the processes, all threads, have spent so
// far. It is the utime+stime of /proc/PID/stat, which the kernel derives from
// this clock, but to the nanosecond instead of the 10 ms tick.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(processClock(pid), &ts); err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// processClock is clock_getcpuclockid(3): the complement of the process id
// above three bits that ask for scheduler time (2) of the whole process.
func processClock(pid int) int32 {
	const schedulerTime = 2
	return int32(^pid<<3) | schedulerTime
}

// processTree returns the process root and all below it, in ascending order.
func processTree(proc string, root int) ([]int, error) {
	stats, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	if err != nil {
		return nil, err
	}
	children := make(map[int][]int)
	alive := false
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // ended since the listing
		}
		pid, parent, ok := parseStat(b)
		if !ok {
			return nil, fmt.Errorf("read %s: not a stat line: %q", name, b)
		}
		alive = alive || pid == root
		children[parent] = append(children[parent], pid)
	}
	if !alive {
		return nil, fmt.Errorf("process %d has ended", root)
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	slices.Sort(tree)
	return tree, nil
}

// parseStat takes the process id and its parent's from /proc/PID/stat. The name
// between them is in parentheses and may hold some itself.
func parseStat(b []byte) (pid, parent int, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	if err != nil {
		return 0, 0, false
	}
	rest := bytes.Fields(b[end+1:]) // state, parent, ...
	if len(rest) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(rest[1]))
	return pid, parent, err == nil
}
