// Package install puts a node on a bare machine that runs systemd, and takes it
// away again: the files that the .deb has too, and the commands that put them in
// force. Doing it twice changes nothing the second time. It knows nothing of what
// a node does.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/remotegpu/sluice/deploy"
)

// Program is where the program goes; packages have it in /usr/bin.
const Program = "/usr/local/bin/sluice"

// Options say what is done where.
type Options struct {
	// Root is the directory that stands for the machine's root. Other than "/",
	// files are put below it and no command is run, as for an image of a machine.
	Root string
	// Binary is the path of the program to install.
	Binary string
	// DryRun says what would be done, and does nothing.
	DryRun bool
	// Purge has Uninstall remove configuration, state and logs too.
	Purge bool
	// Say is told each step before it is done.
	Say func(Step)
}

// Step is one thing that is done, or need not be.
type Step struct {
	// Done is "put", "remove" or "run"; "keep" for what is so already, or stays;
	// "fail" for what did not work and is not needed.
	Done string `json:"done"`
	What string `json:"what"` // a path, a command, or how one failed
	Why  string `json:"why,omitempty"`
}

// String writes a step as a line for people.
func (s Step) String() string {
	line := map[string]string{"put": "+ ", "remove": "- ", "run": "$ ", "keep": "= ", "fail": "! "}[s.Done] + s.What
	if s.Why != "" {
		line += " " + s.Why
	}
	return line
}

// file is one that a machine gets.
type file struct {
	path string
	mode os.FileMode
	// theirs are the administrator's once they are there: never overwritten, and
	// removed by a purge alone.
	theirs bool
	// with is a directory without which the machine has no use for the file.
	with    string
	content []byte
}

// files returns what goes onto a machine, in the order in which it is put there.
func (o *Options) files() ([]file, error) {
	binary, err := os.ReadFile(o.Binary)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	all := []file{{path: Program, mode: 0o755, content: binary}}
	for _, f := range []struct {
		name string
		file
	}{
		{"sluice.sysusers", file{path: "/etc/sysusers.d/sluice.conf"}},
		{"sluice.tmpfiles", file{path: "/etc/tmpfiles.d/sluice.conf"}},
		{"sysctl.conf", file{path: "/etc/sysctl.d/60-sluice.conf", theirs: true}},
		{"sluice.logrotate", file{path: "/etc/logrotate.d/sluice", with: "/etc/logrotate.d"}},
		{"sluice.yaml", file{path: "/etc/sluice/sluice.yaml", theirs: true}},
		{"sluice.service", file{path: "/etc/systemd/system/sluice.service"}},
	} {
		if f.content, err = deploy.Files.ReadFile(f.name); err != nil {
			return nil, err
		}
		f.mode = 0o644
		if f.name == "sluice.service" {
			f.content = bytes.ReplaceAll(f.content, []byte("/usr/bin/sluice"), []byte(Program))
		}
		all = append(all, f.file)
	}
	return all, nil
}

// Install puts the node on the machine and starts it, or has it take up a new
// program. What an administrator may have changed stays. On an error what was done
// so far stays done: mend the reason, and install again.
func Install(ctx context.Context, o Options) error {
	if err := o.refusePackaged(); err != nil {
		return err
	}
	files, err := o.files()
	if err != nil {
		return err
	}
	changed := false
	for _, f := range files {
		put, err := o.put(f)
		if err != nil {
			return fmt.Errorf("put %s: %w", f.path, err)
		}
		changed = changed || put && !f.theirs
	}
	for _, command := range []string{
		"systemd-sysusers /etc/sysusers.d/sluice.conf",
		"systemd-tmpfiles --create /etc/tmpfiles.d/sluice.conf",
		"/lib/systemd/systemd-sysctl 60-sluice.conf",
		"systemctl daemon-reload",
		Program + " check --config /etc/sluice/sluice.yaml",
		"systemctl enable --quiet sluice.service",
	} {
		if err := o.run(ctx, command); err != nil {
			// A container may not set what belongs to the whole machine.
			if !strings.Contains(command, "systemd-sysctl") {
				return err
			}
			o.Say(Step{Done: "fail", What: err.Error()})
		}
	}
	if changed && o.active(ctx) {
		// The new program takes the sockets over; where it does not get ready the old one serves on.
		return o.run(ctx, "systemctl reload sluice.service")
	}
	return o.run(ctx, "systemctl start sluice.service")
}

// Uninstall stops the node and removes what Install put, but for the
// administrator's files, the node's state and its logs, unless it purges.
func Uninstall(ctx context.Context, o Options) error {
	if err := o.refusePackaged(); err != nil {
		return err
	}
	// Nothing of it is needed to know what to remove.
	o.Binary = os.DevNull
	files, err := o.files()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(o.at("/etc/systemd/system/sluice.service")); err == nil {
		if err := o.run(ctx, "systemctl disable --now --quiet sluice.service"); err != nil {
			return err
		}
	}
	for i := len(files) - 1; i >= 0; i-- {
		if files[i].theirs && !o.Purge {
			o.Say(Step{"keep", files[i].path, "stays; --purge removes it"})
			continue
		}
		if err := o.remove(files[i].path, os.Remove); err != nil {
			return err
		}
	}
	if o.Purge {
		for _, dir := range []string{"/var/lib/sluice", "/var/log/sluice"} {
			if err := o.remove(dir, os.RemoveAll); err != nil {
				return err
			}
		}
		// With secrets that somebody put there it stays.
		if entries, err := os.ReadDir(o.at("/etc/sluice")); err == nil && len(entries) == 0 {
			if err := o.remove("/etc/sluice", os.Remove); err != nil {
				return err
			}
		}
	}
	return o.run(ctx, "systemctl daemon-reload")
}

func (o *Options) at(path string) string { return filepath.Join(o.Root, path) }

// refusePackaged keeps the node of a package from getting a second unit, which
// would go before the package's.
func (o *Options) refusePackaged() error {
	if _, err := os.Lstat(o.at("/usr/lib/sysusers.d/sluice.conf")); err == nil {
		return errors.New("a package has put Sluice on this machine: upgrade or remove it with apt-get or dpkg")
	}
	return nil
}

// put writes a file, unless it is there, and says whether it did.
func (o *Options) put(f file) (bool, error) {
	if f.with != "" {
		if _, err := os.Stat(o.at(f.with)); err != nil {
			o.Say(Step{"keep", f.path, "is of no use here: there is no " + f.with})
			return false, nil
		}
	}
	path := o.at(f.path)
	there, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(there, f.content):
		o.Say(Step{Done: "keep", What: f.path})
		return false, nil
	case err == nil && f.theirs:
		o.Say(Step{"keep", f.path, "was changed, and stays as it is"})
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	o.Say(Step{Done: "put", What: f.path})
	if o.DryRun {
		return true, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, replace(path, f.content, f.mode)
}

// replace writes a file as a whole or not at all: a program that runs is not
// written to, and a machine that loses its power has the old one.
func replace(path string, content []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".sluice-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func (o *Options) remove(path string, remove func(string) error) error {
	if _, err := os.Lstat(o.at(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	o.Say(Step{Done: "remove", What: path})
	if o.DryRun {
		return nil
	}
	if err := remove(o.at(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// run runs a command of the machine, words with spaces between.
func (o *Options) run(ctx context.Context, command string) error {
	if o.Root != "/" {
		return nil
	}
	o.Say(Step{Done: "run", What: command})
	if o.DryRun {
		return nil
	}
	words := strings.Fields(command)
	if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(out))
	}
	return nil
}

// active says whether the node runs.
func (o *Options) active(ctx context.Context) bool {
	return o.Root == "/" && exec.CommandContext(ctx, "systemctl", "--quiet", "is-active", "sluice.service").Run() == nil
}
