package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tool is a file that a Debian package brings, or a recipe makes.
type tool struct {
	pkg  string // Debian package; "" with a recipe
	file string // a program's name, or the absolute path of another file; with a recipe its path in the recipe's directory
	made *recipe
}

var (
	nginxTool       = tool{pkg: "nginx-light", file: "nginx"}
	nginxStreamTool = tool{pkg: "libnginx-mod-stream", file: nginxStreamModule}
	haproxyTool     = tool{pkg: "haproxy", file: "haproxy"}
	h2loadTool      = tool{pkg: "nghttp2-client", file: "h2load"}
	etcdctlTool     = tool{pkg: "etcd-client", file: "etcdctl"}
	etcdTool        = tool{pkg: "etcd-server", file: "etcd"}
	ipTool          = tool{pkg: "iproute2", file: "ip"}
)

// path returns where the tool is. Debian keeps servers in /usr/sbin, which an
// ordinary user's PATH lacks.
func (t tool) path() (string, error) {
	if t.made != nil {
		return t.made.path(t.file)
	}
	if filepath.IsAbs(t.file) {
		_, err := os.Stat(t.file)
		return t.file, err
	}
	if p, err := exec.LookPath(t.file); err == nil {
		return p, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", t.file))
}

// provide makes sure that all tools are there. Where some are missing it
// installs their packages if it may, and names them if not.
func provide(ctx context.Context, tools []tool, install bool, out io.Writer) error {
	if err := makeMissing(ctx, tools, install, out); err != nil {
		return err
	}
	missing := missingPackages(tools)
	if len(missing) == 0 {
		return nil
	}
	how := "apt-get install " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || !install || os.Geteuid() != 0 {
		return fmt.Errorf("missing Debian packages; as root: %s", how)
	}
	fmt.Fprintln(out, how)
	if err := aptInstall(ctx, missing); err != nil {
		return fmt.Errorf("%s: %w", how, err)
	}
	if missing = missingPackages(tools); len(missing) > 0 {
		return fmt.Errorf("installed, but still not usable: %s", strings.Join(missing, " "))
	}
	return nil
}

func missingPackages(tools []tool) []string {
	var missing []string
	for _, t := range tools {
		if _, err := t.path(); err != nil && t.made == nil && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	return missing
}

// aptInstall installs packages without starting the services they contain.
func aptInstall(ctx context.Context, packages []string) error {
	restore, err := forbidServices("/usr/sbin/policy-rc.d")
	if err != nil {
		return err
	}
	defer restore()
	install := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...)
	if apt(ctx, install) == nil {
		return nil
	}
	// Most often the package lists are missing or old.
	return errors.Join(apt(ctx, []string{"update", "-qq"}), apt(ctx, install))
}

func apt(ctx context.Context, args []string) error {
	cmd := command(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, tail(out))
	}
	return nil
}

// forbidServices has Debian's maintainer scripts start nothing, by the hook
// they ask first, until restore is called. A hook that is there already is the
// administrator's and stays.
func forbidServices(hook string) (restore func(), err error) {
	f, err := os.OpenFile(hook, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keep new services from starting: %w", err)
	}
	// Status 101: the action is forbidden.
	_, werr := f.WriteString("#!/bin/sh\nexit 101\n")
	return func() { os.Remove(hook) }, errors.Join(werr, f.Close())
}
