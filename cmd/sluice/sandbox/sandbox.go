// Package sandbox takes from a process what a node never needs: another user's
// rights, files apart from its own, system calls that no proxy makes.
//
// Landlock, seccomp, capabilities and user IDs belong to threads, and a Go
// program has many. So Enter binds one thread and has the program executed anew
// from it, in the same process with the same open files: what the new program
// starts with holds for all of its threads, and for what they start, such as
// the next version of the program in an upgrade. Nothing of it can be undone.
//
// Enter is to be called once, early, by a program whose beginning may be done
// twice. What is in force is asked of the kernel (Observe) and not remembered.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config says what a process is to keep. The zero value takes everything that
// can be taken and leaves the user as it is.
type Config struct {
	// User is who to be from then on, a name or name:group. "": as now. To become
	// somebody else takes root.
	User string
	// Off leaves files and system calls alone.
	Off bool
	// Require makes it an error if the kernel cannot do all of it.
	Require bool
	// Read are files and directories that may be read, with all below them, and
	// Write those where anything may be done but to execute. What does not exist
	// is left out. The program's own file may always be executed.
	Read, Write []string
	// Must are those of them without which nothing goes: a process whose parent
	// was confined without them ends with an error.
	Must []string
	// Capabilities are those to keep, of those that the process has (CAP_...).
	// Where the user stays root, all are kept.
	Capabilities []int
	// BPF says that the system call bpf is needed.
	BPF bool
}

// marker is the environment variable by which a process knows that it was
// executed by Enter: its value is the ID of that process.
const marker = "SLUICE_CONFINED"

// Enter confines the process, and does not return then: the program begins anew,
// and there Enter returns. Without Require it returns without an error where the
// kernel can do none of it.
func Enter(c Config) error {
	by := os.Getenv(marker)
	if by == strconv.Itoa(os.Getpid()) {
		return c.satisfied()
	}
	if by != "" && (c.Off || Observe().Files || Observe().Calls) {
		return c.inherited() // from the process that started this one
	}
	if c.Off && c.User == "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program's own file: %w", err)
	}
	runtime.LockOSThread() // and never unlocked: either the program begins anew or it ends
	if err := c.bind(self); err != nil {
		return err
	}
	env := []string{marker + "=" + strconv.Itoa(os.Getpid())}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, marker+"=") {
			env = append(env, v)
		}
	}
	if err := syscall.Exec(self, os.Args, env); err != nil {
		return fmt.Errorf("begin anew as %s: execute %s: %w; it has to be readable and executable for that user, and so the directories above it", c.who(), self, err)
	}
	return nil
}

func (c Config) who() string {
	if c.User == "" {
		return "the same user"
	}
	return "user " + c.User
}

// bind binds the calling thread.
func (c Config) bind(self string) error {
	if err := c.become(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if c.Off {
		return nil
	}
	if err := c.confineFiles(self); err != nil && (c.Require || !unavailable(err)) {
		return fmt.Errorf("confine the process to its files (Landlock): %w%s", err, c.hint())
	}
	if err := c.confineCalls(); err != nil && (c.Require || !unavailable(err)) {
		return fmt.Errorf("confine the process to its system calls (seccomp): %w%s", err, c.hint())
	}
	return nil
}

func (c Config) hint() string {
	if c.Require {
		return "; sandbox: auto in sluice.yaml does without what the kernel lacks"
	}
	return ""
}

// unavailable reports whether the kernel, or who rules over it, has no such
// thing.
func unavailable(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM)
}

// satisfied wants what was required to be in force.
func (c Config) satisfied() error {
	if s := Observe(); c.Require && !c.Off && (!s.Files || !s.Calls) {
		return fmt.Errorf("sandbox: require: the kernel has confined this process to %s; sandbox: auto does without the rest", s)
	}
	return nil
}

// inherited is for a process whose parent was confined. What that one could not
// read this one cannot either: files that the configuration names only now.
func (c Config) inherited() error {
	for _, path := range c.Must {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.EACCES) && Observe().Files {
			return fmt.Errorf("read %s: the process that started this one was not confined to it, and this one cannot have more; stop the node and start it anew", path)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
	return c.satisfied()
}

// State is what a process is confined to, as the kernel says it.
type State struct {
	// Files says that Landlock keeps the process from files that are not its own.
	Files bool
	// Calls says that seccomp keeps it from system calls.
	Calls bool
	// NoNewPrivileges says that no program that it executes can have more rights.
	NoNewPrivileges bool
	// Root says that it is the user 0.
	Root bool
}

// Observe asks the kernel about the calling process.
func Observe() State {
	s := State{Root: os.Geteuid() == 0}
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil {
		s.NoNewPrivileges = n == 1
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	s.Files = errors.Is(err, unix.EACCES)
	// Without a filter it is the address that is wrong.
	_, _, errno := unix.Syscall6(unix.SYS_ADD_KEY, 0, 0, 0, 0, 0, 0)
	s.Calls = errno == unix.EPERM
	return s
}

// String says what is in force.
func (s State) String() string {
	var said []string
	if s.Files {
		said = append(said, "its own files")
	}
	if s.Calls {
		said = append(said, "the system calls of a proxy")
	}
	if len(said) == 0 {
		return "nothing"
	}
	return strings.Join(said, " and ")
}
