package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/cmd/sluice/sandbox"
)

// confine has the process become its own user, and confines it to what a node
// needs. It does not return where that has the program begin anew, with the same
// arguments.
func confine(c *config.Config, path string) error {
	if err := c.CheckSecrets(); err != nil {
		return usageError{fmt.Errorf("%s: %w", path, err)}
	}
	if err := makeData(c); err != nil {
		return err
	}
	if err := readableBy(c, path); err != nil {
		return err
	}
	if err := sandbox.Enter(confinement(c, path)); err != nil {
		return fmt.Errorf("confine the node: %w", err)
	}
	return nil
}

// makeData makes the data directory while somebody may who may, and wants it to
// belong to who the node is to be.
func makeData(c *config.Config) error {
	info, err := os.Stat(c.Data)
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		if err := os.MkdirAll(c.Data, 0o700); err != nil {
			return fmt.Errorf("create the data directory: %w", err)
		}
		info, err = os.Stat(c.Data)
	}
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if c.User == "" || os.Geteuid() != 0 {
		return nil
	}
	id, err := sandbox.Lookup(c.User)
	if err != nil {
		return usageError{fmt.Errorf("user: %w", err)}
	}
	if made {
		if err := os.Chown(c.Data, id.UID, id.GID); err != nil {
			return fmt.Errorf("give the data directory to %s: %w", c.User, err)
		}
		return nil
	}
	if owner := ownerOf(info); owner != id.UID {
		return usageError{fmt.Errorf("user: the data directory %s belongs to user %d, and the node is to run as %s: `chown -R %s %s`",
			c.Data, owner, c.User, strings.SplitN(c.User, ":", 2)[0]+":", c.Data)}
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// readableBy wants the node's file to be one that the node's own user can read.
func readableBy(c *config.Config, path string) error {
	if c.User == "" || os.Geteuid() != 0 {
		return nil
	}
	id, err := sandbox.Lookup(c.User)
	if err != nil {
		return usageError{fmt.Errorf("user: %w", err)}
	}
	files := append([]config.File{{Field: "the node's file", Path: path}}, c.Files()...)
	for _, f := range files {
		info, err := os.Stat(f.Path)
		if err != nil || mayRead(info, id) {
			continue // who reads it says what is wrong
		}
		group := id.GID
		return usageError{fmt.Errorf("user: %s (%s) is not readable for %s: `chgrp %d %s && chmod 640 %s`", f.Path, f.Field, c.User, group, f.Path, f.Path)}
	}
	return nil
}

// mayRead reports whether a file's mode lets a user read it.
func mayRead(info fs.FileInfo, id sandbox.Identity) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case !ok:
		return true
	case int(st.Uid) == id.UID:
		return mode&0o400 != 0
	case int(st.Gid) == id.GID || slices.Contains(id.Groups, int(st.Gid)):
		return mode&0o040 != 0
	}
	return mode&0o004 != 0
}

// confinement returns what a node with this file needs.
func confinement(c *config.Config, path string) sandbox.Config {
	s := sandbox.Config{User: c.User, Off: c.Sandbox == "off", Require: c.Sandbox == "require", BPF: c.PortsMode != "bind"}
	s.Read, s.Write = systemFiles(c.User == "" && os.Geteuid() == 0), []string{c.Data}
	for _, f := range append(c.Files(), config.File{Path: path}) {
		s.Read = append(s.Read, withItsDirectory(f.Path)...)
		s.Must = append(s.Must, f.Path)
	}
	s.Must = append(s.Must, c.Data, "/etc/resolv.conf", "/etc/hosts")
	if c.Pages != "" {
		s.Read = append(s.Read, c.Pages)
	}
	for _, v := range os.Environ() { // secrets that are mounted: NAME_FILE for ${NAME}
		name, value, _ := strings.Cut(v, "=")
		if (strings.HasSuffix(name, "_FILE") || name == "SSL_CERT_DIR" || name == "CREDENTIALS_DIRECTORY") && filepath.IsAbs(value) {
			s.Read = append(s.Read, withItsDirectory(value)...)
		}
	}
	if a := c.Log.Access; a != "stdout" && a != "none" {
		s.Write = append(s.Write, filepath.Dir(a)) // where a rotated log is opened anew
	}
	if c.PortsMode != "bind" {
		s.Capabilities = append(s.Capabilities, unix.CAP_NET_ADMIN, unix.CAP_BPF)
	}
	if lowPorts(c) {
		s.Capabilities = append(s.Capabilities, unix.CAP_NET_BIND_SERVICE)
	}
	return s
}

// lowPorts reports whether a port that only root may open otherwise is among
// those of c.
func lowPorts(c *config.Config) bool {
	const first = 1024
	low := func(addr string) bool { p := config.Port(addr); return p > 0 && p < first }
	for _, l := range slices.Concat(c.Listeners.HTTPS, c.Listeners.HTTP) {
		if low(l.Address) {
			return true
		}
	}
	for _, r := range c.Ports {
		if r.First < first {
			return true
		}
	}
	return low(c.Admin) || low(c.API.Listen)
}

// systemFiles are what any program reads that looks names up, verifies
// certificates and asks the kernel how it is set.
func systemFiles(root bool) []string {
	all := []string{
		"/proc", "/sys", "/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/run/systemd/resolve",
		"/run/resolvconf", "/run/NetworkManager", "/run/systemd/userdb", "/run/systemd/journal", "/run/systemd/notify",
	}
	if !root {
		// Files there that are not for everybody are not for the node's user. It
		// has the whole directory, since resolv.conf and hosts are replaced.
		return append(all, "/etc")
	}
	for _, name := range []string{
		"resolv.conf", "hosts", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols", "localtime", "timezone", "mime.types",
		"passwd", "group", "hostname", "ssl", "ca-certificates", "pki", "crypto-policies",
	} {
		path := filepath.Join("/etc", name)
		if all = append(all, path); name == "resolv.conf" {
			all = append(all, withItsDirectory(path)...)
		}
	}
	return all
}

// withItsDirectory returns a file and, since files are replaced rather than
// overwritten, the directory that it is in, where a link leads to it too. Not
// one that holds the files of the whole system, though.
func withItsDirectory(path string) []string {
	all := []string{path}
	for _, p := range []string{path, resolved(path)} {
		dir, err := filepath.Abs(filepath.Dir(p))
		if err != nil || slices.Contains(wide, dir) {
			continue
		}
		all = append(all, dir)
	}
	return all
}

// wide are directories of which a node is not given all for one file in it.
var wide = []string{"/", "/etc", "/usr", "/usr/local", "/usr/local/etc", "/var", "/var/lib", "/var/log", "/home", "/root", "/tmp", "/var/tmp", "/opt", "/srv", "/run", "/var/run", "/mnt", "/media", "/boot", "/dev"}

func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// tellConfinement says in the log and the metrics what the kernel keeps the node
// from.
func (n *node) tellConfinement() {
	s := sandbox.Observe()
	gauge := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_sandbox_in_force", Help: "Whether the kernel keeps the node from what it does not need.",
	}, []string{"part"})
	for part, on := range map[string]bool{"files": s.Files, "calls": s.Calls, "privileges": s.NoNewPrivileges, "user": !s.Root} {
		value := 0.0
		if on {
			value = 1
		}
		gauge.WithLabelValues(part).Set(value)
	}
	n.registry.MustRegister(gauge)
	abi, err := sandbox.ABI()
	if err != nil {
		abi = 0
	}
	n.log.Info("confined to "+s.String(), "sandbox", n.cfg.Sandbox, "uid", os.Geteuid(), "landlock", abi, "no_new_privileges", s.NoNewPrivileges)
	if n.cfg.Sandbox == "auto" && (!s.Files || !s.Calls) {
		n.log.Warn("the kernel, or who rules over it, does not let the node confine itself; `sluice doctor` says what is missing", "confined_to", s.String())
	}
}
