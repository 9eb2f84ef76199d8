package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// minders are programs that mind the one process that they have started, by that
// alone: small inits of containers, which end with it, and supervisors that start
// it again.
var minders = []string{
	"tini", "docker-init", "podman-init", "catatonit", "dumb-init",
	"runsv", "s6-supervise", "supervise", "supervisord", "supervise-daemon",
}

// minder returns the name of the parent process where it is one of those.
func minder() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if parent := strings.TrimSpace(string(name)); err == nil && slices.Contains(minders, parent) {
		return parent
	}
	return ""
}
