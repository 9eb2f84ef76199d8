package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runImport runs the command, and returns its exit code and what it writes.
func runImport(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, said bytes.Buffer
	err := run(append([]string{"import", "nginx"}, args...), nil, nil, &out, &said)
	if err != nil {
		said.WriteString(err.Error())
	}
	return exitCode(err), out.String(), said.String()
}

func TestImportWritesFilesThatApplyTakes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if code, _, said := runImport(t, "nginx/testdata/platform", "--to", dir, "--pool", "ssh=50001,56376"); code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := map[string]string{}
	for _, name := range []string{"ports.yaml", "routes.yaml", "pools.yaml", "notes.txt", "sluice.yaml.part"} {
		before[name] = read(name)
	}
	if !strings.Contains(before["pools.yaml"], "backend_port: 22") {
		t.Errorf("the pool is %s", before["pools.yaml"])
	}
	var out bytes.Buffer
	if err := run([]string{"check", dir}, nil, nil, &out, &out); err != nil || out.String() != "16 keys, nothing amiss\n" {
		t.Errorf("check: %v, %s", err, out.String())
	}
	runImport(t, "nginx/testdata/platform", "--to", dir, "--pool", "ssh=50001,56376")
	for name, text := range before {
		if again := read(name); again != text {
			t.Errorf("%s was\n%s\nand is\n%s", name, text, again)
		}
	}
	// What has no keys any more goes, what is somebody else's stays.
	runImport(t, "nginx/testdata/platform", "--to", dir)
	if _, err := os.Stat(filepath.Join(dir, "pools.yaml")); err == nil {
		t.Error("pools.yaml is still there")
	}
	if err := os.WriteFile(filepath.Join(dir, "routes.yaml"), []byte("routes/mine: {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, said := runImport(t, "nginx/testdata/platform", "--to", dir); code != 1 || !strings.Contains(said, "is not a file that this command made") {
		t.Errorf("over somebody else's file: exit code %d, %s", code, said)
	}
}

func TestImportLeavesOutWhatNodesWouldRefuse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nginx.conf")
	text := "stream { server { listen 20001; proxy_pass 127.0.0.1:20001; } server { listen 20002; proxy_pass 10.0.0.1:22; } }"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, said := runImport(t, file)
	if code != 0 || strings.Contains(out, "ports/tcp/20001") || !strings.Contains(out, "ports/tcp/20002:") || !strings.Contains(said, "lost: ports/tcp/20001: nodes refuse it") {
		t.Errorf("exit code %d\n%s\n%s", code, out, said)
	}
	if code, _, said := runImport(t, file, "--strict"); code != 1 || !strings.Contains(said, "1 directive of") {
		t.Errorf("--strict: exit code %d, %s", code, said)
	}
}

func TestImportSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nginx.conf")
	if err := os.WriteFile(file, []byte("stream {\n server {\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{file}, file + ":3: the file ends within the block"},
		{[]string{filepath.Join(t.TempDir(), "none")}, "no such file"},
		{[]string{t.TempDir()}, "neither nginx.conf nor another file ending in .conf"},
		{[]string{"nginx/testdata/platform", "--pool", "ssh"}, "write a service and its ports"},
		{[]string{"nginx/testdata/platform", "--pool", "vnc=1-2"}, "no port among these is one of vnc"},
	} {
		if code, _, said := runImport(t, tc.args...); code != exitUsage || !strings.Contains(said, tc.want) {
			t.Errorf("%v: exit code %d, %s; want %s", tc.args, code, said, tc.want)
		}
	}
}
