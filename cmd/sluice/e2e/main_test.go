// Package e2e drives the built program from outside, with the clients and
// servers that its users have: etcdctl, curl, ssh, browsers, ACME and DNS
// servers. Nothing here imports the program's own code but test servers.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// buildDir is where programs are built to.
var buildDir string

// currentEtcdctl builds etcdctl of the version that the node's own etcd has, and
// returns its path.
var currentEtcdctl = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "etcdctl")
	if out, err := exec.Command("go", "build", "-o", path, "go.etcd.io/etcd/etcdctl/v3").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build etcdctl: %w\n%s", err, out)
	}
	return path, nil
})

// binary is the program under test, built with the race detector.
var binary string

func TestMain(m *testing.M) {
	os.Exit(runMain(m))
}

func runMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sluice")
	// The profile would have everything compiled once more.
	build := exec.Command("go", "build", "-race", "-pgo=off", "-o", binary, "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the program: %v\n%s", err, out)
		return 1
	}
	buildDir = dir
	return m.Run()
}
