package main

import (
	"context"
	"math"
	"os"
	"strings"
	"testing"
)

func TestParseRollup(t *testing.T) {
	text := "5601-7fff ---p 00000000 00:00 0    [rollup]\nRss:               20716 kB\nPss:               10000 kB\nPss_Anon: 1 kB\n"
	if rss, ok := parseRollup([]byte(text)); !ok || rss != 20716<<10 {
		t.Errorf("parseRollup = %d, %v; want %d", rss, ok, 20716<<10)
	}
	for _, bad := range []string{"", "Rss: 12\n", "Rss: many kB\n", "Pss: 12 kB\n"} {
		if rss, ok := parseRollup([]byte(bad)); ok {
			t.Errorf("parseRollup(%q) = %d, want that it is not understood", bad, rss)
		}
	}
}

func TestFootprintCountsOpenFiles(t *testing.T) {
	before, err := footprintOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const more = 20
	for range more {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	after, err := footprintOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after.FDs != before.FDs+more || after.RSS <= 0 {
		t.Errorf("footprint %+v, then %+v; want %d files more, and memory", before, after, more)
	}
}

func TestAgreed(t *testing.T) {
	reads := make([]footprint, settleReads)
	for i := range reads {
		reads[i] = footprint{RSS: int64(10000 + i), FDs: i}
	}
	if f, ok := agreed(reads); !ok || f.RSS != 10000+settleReads/2 {
		t.Errorf("agreed = %+v, %v; want the median", f, ok)
	}
	if _, ok := agreed(reads[1:]); ok {
		t.Error("too few readings agree")
	}
	reads[0].RSS = 10500
	if _, ok := agreed(reads); ok {
		t.Error("readings five per cent apart agree")
	}
}

func TestSettledEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := settled(ctx, &edge{name: "test", root: os.Getpid()}); err == nil {
		t.Error("no error")
	}
}

func TestFileLimit(t *testing.T) {
	limit, err := fileLimit(1)
	if err != nil || limit == 0 {
		t.Fatalf("fileLimit = %d, %v", limit, err)
	}
	// Where it may not be raised it stays what it is.
	if again, err := fileLimit(limit); err != nil || again != limit {
		t.Errorf("fileLimit(%d) = %d, %v", limit, again, err)
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[float64]string{0: "0.00 B", 2048: "2048 B", 20480: "20.0 KB", 60 << 20: "60.0 MB", -4 << 20: "-4.00 MB", math.NaN(): "–"} {
		if got := byteSize(n); got != want {
			t.Errorf("byteSize(%v) = %q, want %q", n, got, want)
		}
	}
}

func TestMetric(t *testing.T) {
	text := []byte("# HELP sluice_x of\nsluice_x{a=\"b\"} 3\nsluice_x 1.5e+03\nsluice_xy 7\n")
	if v, err := metric(text, "sluice_x"); err != nil || v != 1500 {
		t.Errorf("metric = %v, %v; want 1500", v, err)
	}
	if _, err := metric(text, "sluice_y"); err == nil || !strings.Contains(err.Error(), "sluice_y") {
		t.Errorf("metric = %v, want that there is none", err)
	}
}
