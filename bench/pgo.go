package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// pgoRows are the loads that the compiler is shown: what a node does all day,
// in every protocol, for the same time each.
const pgoRows = "h1,h1tls,h2-16x16,h2-64x1,h3-16x16,h3-64x1,large-h1tls,large-h2,upload-h2,tls-full,tls-resumed,pingpong,connect,udp"

const (
	pgoSeconds = 4 // of each row
	// pgoLimit is what a profile that is checked in may have: git keeps each one.
	pgoLimit = 1536 << 10
)

// gatherPGO profiles sluice under the chosen rows and leaves the merged profile
// in o.pgo, where the compiler takes it from.
func gatherPGO(ctx context.Context, o *options, out io.Writer) error {
	b, err := newBench(o, out)
	if err != nil {
		return err
	}
	defer b.close()
	s, err := b.site(judged)
	if err != nil {
		return err
	}
	// A profile names the file of the program: not a path of who gathers it.
	program := filepath.Join(b.dir, "program")
	if err := copyProgram(o.sluice, program); err != nil {
		return err
	}
	copied := *o
	copied.sluice = program
	s.options = &copied
	profiles, err := b.profiles(ctx, s)
	if err != nil {
		return err
	}
	merged, err := pprofTool(ctx, s.dir, profiles, "-proto")
	if err != nil {
		return err
	}
	if len(merged) > pgoLimit {
		return fmt.Errorf("the profile has %s, which is more than the %s that may be checked in", byteSize(float64(len(merged))), byteSize(pgoLimit))
	}
	if err := os.WriteFile(o.pgo, merged, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "wrote %s, %s\n", o.pgo, byteSize(float64(len(merged))))
	return nil
}

// profiles returns a CPU profile of each chosen row.
func (b *bench) profiles(ctx context.Context, s *site) ([][]byte, error) {
	e, err := sluice().start(ctx, s)
	if err != nil {
		return nil, err
	}
	defer e.proc.stop()
	if err := verify(ctx, e); err != nil {
		return nil, err
	}
	var all [][]byte
	for _, r := range b.options.rows {
		if r.half != nil {
			return nil, fmt.Errorf("%s has a rate that nginx decides; it cannot be profiled", r.name)
		}
		start := time.Now()
		raw, err := profile(ctx, r, e, pgoSeconds)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", r.name, err), e.proc.alive())
		}
		fmt.Fprintf(b.out, "%-12s profiled in %.1f s\n", r.name, time.Since(start).Seconds())
		all = append(all, raw)
	}
	return all, nil
}

func copyProgram(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("%w; run make build first, or give -sluice", err)
	}
	return os.WriteFile(to, b, 0o755)
}
