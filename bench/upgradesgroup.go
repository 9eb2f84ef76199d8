package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// groupOf returns the processes of a group that have not ended. Those that have,
// and are children of the bench's, are given back to the kernel: whoever started a
// node is the parent of its successors.
func groupOf(pgid int) (pids []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		var pid, parent, group int
		var state string
		text := string(b)
		if _, err := fmt.Sscan(text, &pid); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		// The name, in brackets, may hold anything.
		if _, err := fmt.Sscan(text[strings.LastIndexByte(text, ')')+1:], &state, &parent, &group); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		switch {
		case group != pgid:
		case state == "Z" && pid != pgid && parent == os.Getpid():
			if _, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); err != nil && !errors.Is(err, syscall.ECHILD) {
				return nil, os.NewSyscallError("wait4", err)
			}
		case state != "Z":
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// endGroup ends all processes of a group and waits for them.
func endGroup(pgid int) {
	syscall.Kill(-pgid, syscall.SIGTERM)
	for end := time.Now().Add(stopGrace); ; time.Sleep(pollInterval) {
		left, err := groupOf(pgid)
		if err != nil || len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			syscall.Kill(-pgid, syscall.SIGKILL)
		}
	}
}
