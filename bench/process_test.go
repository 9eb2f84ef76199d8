package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStopEndsChildrenToo(t *testing.T) {
	dir := t.TempDir()
	p, err := startProcess("parent", dir, nil, nil, "sh", "-c", "sleep 1000 & echo $! > "+filepath.Join(dir, "child")+"; wait")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	err = until(t.Context(), p, 10*time.Second, func(context.Context) error {
		tree, err := processTree("/proc", p.pid())
		if err == nil && len(tree) < 2 {
			err = errors.New("no child yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := processTree("/proc", p.pid())
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.stop() // does nothing
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range tree {
		for {
			// A dead child that nobody has waited for yet is a zombie.
			b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
			if err != nil || strings.Contains(string(b), ") Z ") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("process %d still runs after stop", pid)
			}
		}
	}
}

func TestAliveTellsHowItEnded(t *testing.T) {
	p, err := startProcess("short", t.TempDir(), nil, nil, "sh", "-c", "echo the reason >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	<-p.done
	err = p.alive()
	for _, want := range []string{"short", "exit status 3", "the reason"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("alive = %v, want %q in it", err, want)
		}
	}
	// Whoever waits for it hears so at once.
	err = until(t.Context(), p, time.Hour, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("until = %v, want how the process ended", err)
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd := command(ctx, "sh", "-c", "sleep 1000; true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("Wait = nil, want that the command was ended")
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("line\n", 40) + "last\n"
	got := string(tail([]byte(long)))
	if n := strings.Count(got, "\n") + 1; n != 15 || !strings.HasSuffix(got, "last") {
		t.Errorf("tail = %d lines %q, want the last 15", n, got)
	}
	if got := string(tail([]byte("one\ntwo\n"))); got != "one\ntwo" {
		t.Errorf("tail of two lines = %q", got)
	}
}
