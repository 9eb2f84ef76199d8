package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// nginxH3Release is the Debian release whose nginx speaks HTTP/3.
const nginxH3Release = "trixie"

// nginxH3Packages are that nginx and the libraries that it is linked with, the
// C library among them, so that it runs on any Debian.
func nginxH3Packages() []string {
	return []string{"nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3t64", "libzstd1", "zlib1g"}
}

// nginxH3Libraries is where those are, and the loader that finds them there.
const nginxH3Libraries = "usr/lib/x86_64-linux-gnu"

// nginxH3Tool is a newer Debian's nginx in a directory of its own: its packages
// are fetched and checked by apt, unpacked, and not installed.
var nginxH3Tool = tool{file: "usr/sbin/nginx", made: &recipe{
	dir:  "nginx-" + nginxH3Release,
	how:  "unpack nginx and its libraries of Debian " + nginxH3Release,
	make: unpackNginxH3,
}}

func unpackNginxH3(ctx context.Context, dir string) error {
	apt := filepath.Join(dir, "apt")
	for _, d := range []string{"lists/partial", "archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(apt, d), 0o755); err != nil {
			return err
		}
	}
	sources := filepath.Join(apt, "sources.list")
	line := "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian " + nginxH3Release + " main\n"
	if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(apt, "status"), nil, 0o644); err != nil {
		return err
	}
	own := []string{
		"-qq", "-o", "Dir::Etc::sourcelist=" + sources, "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(apt, "lists"), "-o", "Dir::State::status=" + filepath.Join(apt, "status"),
		"-o", "Dir::Cache=" + apt,
	}
	debs := filepath.Join(apt, "debs")
	for _, args := range [][]string{slices.Concat(own, []string{"update"}), slices.Concat(own, []string{"download"}, nginxH3Packages())} {
		cmd := command(ctx, "apt-get", args...)
		cmd.Dir = debs
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get: %w\n%s", err, tail(out))
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if out, err := command(ctx, "dpkg-deb", "-x", f, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", f, err, tail(out))
		}
	}
	return os.RemoveAll(apt)
}

// nginxH3Name is the contender's, beside which Debian 12's is "nginx".
const nginxH3Name = "nginx-h3"

// nginxH3 is a current nginx, for HTTP/3 alone: Debian 12's has none.
func nginxH3() contender {
	return contender{
		name:  nginxH3Name,
		tools: []tool{nginxH3Tool},
		web:   true,
		start: startNginxH3,
		version: func(ctx context.Context, _ *options) string {
			argv, err := nginxH3Command()
			if err != nil {
				return "unknown: " + err.Error()
			}
			out, err := command(ctx, argv[0], append(argv[1:], "-v")...).CombinedOutput()
			if err != nil {
				return "unknown: " + err.Error()
			}
			return strings.TrimSpace(strings.TrimPrefix(string(out), "nginx version: ")) + " of Debian " + nginxH3Release
		},
	}
}

// nginxH3Command runs it with its own loader and libraries.
func nginxH3Command() ([]string, error) {
	program, err := nginxH3Tool.path()
	if err != nil {
		return nil, err
	}
	libraries := filepath.Join(strings.TrimSuffix(program, nginxH3Tool.file), nginxH3Libraries)
	return []string{filepath.Join(libraries, "ld-linux-x86-64.so.2"), "--library-path", libraries, program}, nil
}

func startNginxH3(ctx context.Context, s *site) (*edge, error) {
	addr, err := s.ports.pick()
	if err != nil {
		return nil, err
	}
	addrs := addressBook{serviceH3: addr}
	config, err := s.writeConfig("nginx-h3.conf", configValues{Listen: addrs.byName()})
	if err != nil {
		return nil, err
	}
	argv, err := nginxH3Command()
	if err != nil {
		return nil, err
	}
	return s.launch(ctx, nginxH3Name, addrs, append(argv, "-p", s.dir, "-c", config, "-e", "stderr")...)
}
