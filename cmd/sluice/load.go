package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/control/fleet"
)

// loadEvery is how often a node says how busy it is.
const loadEvery = time.Minute

// showLoad says how busy the node is, until ctx ends.
func (n *node) showLoad(ctx context.Context) error {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	before, at := usageNow(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, elapsed := usageNow(), time.Since(at).Seconds()
		n.registrar.SetLoad(fleet.Load{
			CPU:   math.Round((now.cpu-before.cpu)/elapsed/float64(runtime.NumCPU())*1000) / 1000,
			Flows: n.engine.Left(), Files: openFiles(),
			In: int64(max(now.in-before.in, 0) / elapsed), Out: int64(max(now.out-before.out, 0) / elapsed),
		})
		before, at = now, time.Now()
	}
}

// usage is what the process, and of bytes the machine, has used up since it began.
type usage struct {
	cpu     float64 // seconds
	in, out float64 // bytes
}

func usageNow() (u usage) {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err == nil {
		u.cpu = time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	}
	text, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(text)) {
		name, counters, _ := strings.Cut(line, ":")
		fields := strings.Fields(counters)
		if len(fields) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		in, _ := strconv.ParseFloat(fields[0], 64)
		out, _ := strconv.ParseFloat(fields[8], 64)
		u.in, u.out = u.in+in, u.out+out
	}
	return u
}

// openFiles returns how many files the process has open.
func openFiles() int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names) - 1 // dir itself
}
