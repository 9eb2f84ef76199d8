package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// machine is where and with what the figures came about.
type machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryGB string `json:"memory"`
	Kernel   string `json:"kernel"`
	OS       string `json:"os"`
	// Load is the load average before the first row: others at work here.
	Load     string   `json:"load_before"`
	Go       string   `json:"go"`         // that built the bench
	MaxProcs int      `json:"gomaxprocs"` // of the bench, and sluice's unless Env says else
	Env      []string `json:"env"`        // what changes a Go program's run time, sluice's too
	Revision string   `json:"revision"`   // of the tree the bench ran in
}

func describeMachine(ctx context.Context) machine {
	m := machine{
		CPU:      field("/proc/cpuinfo", "model name", ":"),
		Cores:    runtime.NumCPU(),
		MemoryGB: field("/proc/meminfo", "MemTotal", ":"),
		Kernel:   contents("/proc/sys/kernel/osrelease"),
		OS:       strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`),
		Load:     contents("/proc/loadavg"),
		Go:       runtime.Version(),
		MaxProcs: runtime.GOMAXPROCS(0),
		Revision: gitRevision(ctx),
	}
	for _, name := range []string{"GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "GOAMD64"} {
		if v, ok := os.LookupEnv(name); ok {
			m.Env = append(m.Env, name+"="+v)
		}
	}
	return m
}

// contents returns a small file without its last line end, or "unknown".
func contents(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// field returns the value of the first line of a file that begins with name.
func field(path, name, separator string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() {
		key, value, ok := strings.Cut(scan.Text(), separator)
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// gitRevision returns the short revision of the working directory's tree, with
// "-dirty" where files it tracks have changed, or "norev".
func gitRevision(ctx context.Context) string {
	out, err := command(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "norev"
	}
	revision := strings.TrimSpace(string(out))
	if command(ctx, "git", "diff", "--quiet", "HEAD").Run() != nil {
		revision += "-dirty"
	}
	return revision
}

// toolVersions returns the versions of the load generators and etcdctl, of
// those that are there.
func toolVersions(ctx context.Context, o *options) map[string]string {
	all := make(map[string]string)
	for _, t := range o.tools() {
		switch t {
		case h2loadTool:
			all["h2load"] = firstLine(ctx, t, "--version")
		case etcdctlTool:
			all["etcdctl"] = firstLine(ctx, t, "version")
		}
	}
	return all
}

// firstLine returns the first line of what a tool prints, or why there is none.
func firstLine(ctx context.Context, t tool, arg string) string {
	program, err := t.path()
	if err != nil {
		return "unknown: " + err.Error()
	}
	out, err := command(ctx, program, arg).CombinedOutput()
	if err != nil {
		return "unknown: " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// buildOf returns what the Go compiler recorded in a binary.
func buildOf(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "(no build information: " + err.Error() + ")"
	}
	parts := []string{info.GoVersion}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision", "vcs.modified", "GOAMD64", "-pgo", "-gcflags", "-tags":
			parts = append(parts, s.Key+"="+s.Value)
		}
	}
	return fmt.Sprintf("(%s)", strings.Join(parts, " "))
}
