package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	for _, tt := range []struct {
		line        string
		pid, parent int
		ok          bool
	}{
		{"12 (nginx) S 7 12 12 0", 12, 7, true},
		{"34 (a) b (c) R 1 34", 34, 1, true},
		{"56 (no end S 1", 0, 0, false},
		{"x (nginx) S 7 12", 0, 0, false},
		{"12 (nginx) S", 0, 0, false},
		{"", 0, 0, false},
	} {
		pid, parent, ok := parseStat([]byte(tt.line))
		if ok != tt.ok || ok && (pid != tt.pid || parent != tt.parent) {
			t.Errorf("parseStat(%q) = %d, %d, %v; want %d, %d, %v", tt.line, pid, parent, ok, tt.pid, tt.parent, tt.ok)
		}
	}
}

func TestProcessTree(t *testing.T) {
	proc := t.TempDir()
	for pid, parent := range map[int]int{1: 0, 10: 1, 30: 10, 20: 10, 40: 30, 11: 1} {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%d (p) S %d 0 0", pid, parent)
		if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := processTree(proc, 10)
	if want := []int{10, 20, 30, 40}; err != nil || !slices.Equal(got, want) {
		t.Errorf("processTree(10) = %v, %v; want %v", got, err, want)
	}
	if got, err := processTree(proc, 99); err == nil {
		t.Errorf("processTree of a process that is not there = %v, want an error", got)
	}
}

// The clock must be what utime+stime of /proc/self/stat is made from.
func TestCPUTimeIsThatOfStat(t *testing.T) {
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
	}
	before := statTime(t)
	got, err := cpuTime([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	after := statTime(t)
	const tick = 10 * time.Millisecond
	if got < before-tick || got > after+2*tick {
		t.Errorf("cpuTime = %v, want it from %v to %v give or take a tick", got, before, after)
	}
	if got, err := cpuTime([]int{1 << 22}); err == nil {
		t.Errorf("cpuTime of a process that cannot be = %v, want an error", got)
	}
}

func statTime(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	var ticks int
	for _, field := range f[11:13] { // utime, stime
		n, err := strconv.Atoi(string(field))
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

func TestParseChildrenTime(t *testing.T) {
	line := "812 (a) b) S 1 812 812 0 -1 4194560 500 600 0 0 11 12 13 14 20 0 1 0 100 200 300"
	if d, ok := parseChildrenTime([]byte(line)); !ok || d != 270*time.Millisecond {
		t.Errorf("parseChildrenTime = %v, %v; want 270ms", d, ok)
	}
	for _, bad := range []string{"", "812 (a) S 1", "812 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 x y 16"} {
		if d, ok := parseChildrenTime([]byte(bad)); ok {
			t.Errorf("parseChildrenTime(%q) = %v, want that it is not understood", bad, d)
		}
	}
}
