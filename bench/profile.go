package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// profile has a row's load run on a sluice and returns the CPU profile of that
// many seconds of it.
func profile(ctx context.Context, r row, e *edge, seconds int) ([]byte, error) {
	const slack = 500 * time.Millisecond
	ph := phases{warm: slack, main: time.Duration(seconds)*time.Second + 2*slack}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loaded := make(chan error, 1)
	go func() {
		_, err := r.measure(ctx, e, ph)
		loaded <- err
	}()
	if err := pause(ctx, 2*slack); err != nil {
		return nil, errors.Join(err, <-loaded)
	}
	raw, err := getAdmin(ctx, e.admin, "/debug/pprof/profile?seconds="+strconv.Itoa(seconds))
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("take a CPU profile: %w", err), <-loaded)
	}
	return raw, <-loaded
}

// pprofTool runs the go command's reader of profiles on files of them.
func pprofTool(ctx context.Context, dir string, profiles [][]byte, args ...string) ([]byte, error) {
	args = append([]string{"tool", "pprof", "-symbolize=none"}, args...)
	for i, p := range profiles {
		file := filepath.Join(dir, fmt.Sprintf("cpu-%d.pprof", i))
		if err := os.WriteFile(file, p, 0o600); err != nil {
			return nil, err
		}
		args = append(args, file)
	}
	cmd := command(ctx, "go", args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go tool pprof: %w\n%s", err, tail(complaints.Bytes()))
	}
	return out.Bytes(), nil
}

// share is a function's of a profile, 1 being all of it.
type share struct {
	Self  float64 `json:"self"`
	Calls float64 `json:"calls"` // with what it calls
}

// parseTop returns the functions' shares from what pprof prints for -top.
func parseTop(out []byte) (map[string]share, error) {
	shares := make(map[string]share)
	_, lines, ok := strings.Cut(string(out), "cum%\n")
	if !ok {
		return nil, fmt.Errorf("pprof printed no table that is understood:\n%s", tail(out))
	}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line) // flat, flat%, sum%, cum, cum%, function
		if len(f) < 6 {
			return nil, fmt.Errorf("pprof's line %q is not understood", line)
		}
		self, err := strconv.ParseFloat(strings.TrimSuffix(f[1], "%"), 64)
		calls, err2 := strconv.ParseFloat(strings.TrimSuffix(f[4], "%"), 64)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("pprof's line %q is not understood: %w", line, err)
		}
		shares[strings.TrimSuffix(strings.Join(f[5:], " "), " (inline)")] = share{self / 100, calls / 100}
	}
	return shares, nil
}
