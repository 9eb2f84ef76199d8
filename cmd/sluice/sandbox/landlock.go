package sandbox

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock distinguishes, by the version of its ABI since which it does.
const (
	readFiles  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	execute    = unix.LANDLOCK_ACCESS_FS_EXECUTE
	writeFiles = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	devices   = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK // nobody makes any
	ofFiles   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | execute | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	sinceABI2 = unix.LANDLOCK_ACCESS_FS_REFER
	sinceABI3 = unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// ABI returns the version of Landlock that the kernel has, or an error where it
// has none.
func ABI() (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}

// confineFiles binds the calling thread to the files that c names, and those
// that any program needs.
func (c Config) confineFiles(self string) error {
	abi, err := ABI()
	if err != nil {
		return err
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: readFiles | execute | writeFiles | devices}
	written := uint64(readFiles | writeFiles)
	if abi >= 2 {
		attr.Handled_access_fs |= sinceABI2
		written |= sinceABI2
	}
	if abi >= 3 {
		attr.Handled_access_fs |= sinceABI3
		written |= sinceABI3
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a set of rules: %w", errno)
	}
	r := rules{fd: int(fd)}
	defer unix.Close(r.fd)
	for _, path := range c.Read {
		r.allow(path, readFiles)
	}
	for _, path := range c.Write {
		r.allow(path, written)
	}
	// The directory rather than the file, which an upgrade replaces.
	r.allow(filepath.Dir(self), readFiles|execute)
	if interpreted(self) {
		for _, path := range []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64"} {
			r.allow(path, readFiles|execute)
		}
		r.allow("/etc/ld.so.cache", readFiles)
	}
	for _, path := range []string{"/dev/null", "/dev/urandom", "/dev/random"} {
		r.allow(path, readFiles|unix.LANDLOCK_ACCESS_FS_WRITE_FILE)
	}
	if r.err != nil {
		return r.err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// rules is a set of rules in the making.
type rules struct {
	fd  int
	err error // the first
}

// allow adds a rule for path, if there is such a thing.
func (r *rules) allow(path string, access uint64) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return // nobody could open it later on but by making it, for which its directory has to be named
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= ofFiles
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 && r.err == nil {
		r.err = fmt.Errorf("allow %s: %w", path, errno)
	}
}

// interpreted reports whether a program is loaded by another one, the dynamic
// linker, which is to be executable then.
func interpreted(self string) bool {
	f, err := elf.Open(self)
	if err != nil {
		return true
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}
