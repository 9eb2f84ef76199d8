package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// BusyError says that an address is taken. errors.Is finds syscall.EADDRINUSE
// in it.
type BusyError struct {
	Network string // "tcp" or "udp"
	Addr    string // as asked for
	// Owner is who has it, such as "sshd (pid 812)", once Owners has found
	// that out; "" until then.
	Owner string
}

func (e *BusyError) Error() string {
	text := fmt.Sprintf("listen on %s %s: already in use", e.Network, e.Addr)
	if e.Owner != "" {
		text += " by " + e.Owner
	}
	return text
}

// Unwrap returns syscall.EADDRINUSE.
func (e *BusyError) Unwrap() error { return syscall.EADDRINUSE }

// unseen is the owner of a socket that no process which we may look into has.
const unseen = "a process that cannot be seen from here (`ss -lntup` names it to root)"

// WithOwner returns err with its owner where it is a *BusyError without one,
// and any other err as it is. See Owners for what that costs.
func WithOwner(ctx context.Context, err error) error {
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Owner != "" {
		return err
	}
	found := *busy
	found.Owner = Owners(ctx, busy)[0]
	return &found
}

// Owners finds out who has the addresses of busy, in the same order, as far as
// the rights of this process reach: all sockets are listed, but which process
// has one is told of one's own processes only, or of all to root.
//
// It looks through the open files of every process, which can take a second
// where there are many: once for all of busy, so ask about many at a time, and
// not while others wait. When ctx ends it gives up and knows nobody.
func Owners(ctx context.Context, busy ...*BusyError) []string {
	inodes := make([]uint32, len(busy))
	for _, network := range []string{"tcp", "udp"} {
		// Any connection keeps others from binding to its port, but who
		// listens there is the likelier answer.
		for _, list := range []func() ([]Socket, error){
			func() ([]Socket, error) { return Receivers(network) },
			func() ([]Socket, error) { return sockets(network, anyState) },
		} {
			if matchAll(busy, inodes, network) {
				break
			}
			if all, err := list(); err == nil {
				match(busy, inodes, network, all)
			}
		}
	}
	return Processes(ctx, inodes...)
}

// matchAll reports whether every error of the network has its socket.
func matchAll(busy []*BusyError, inodes []uint32, network string) bool {
	for i, b := range busy {
		if b.Network == network && inodes[i] == 0 {
			return false
		}
	}
	return true
}

// match finds for each error that has none yet the socket in its way.
func match(busy []*BusyError, inodes []uint32, network string, all []Socket) {
	byPort := map[uint16][]Socket{}
	for _, s := range all {
		byPort[s.Local.Port()] = append(byPort[s.Local.Port()], s)
	}
	for i, b := range busy {
		if b.Network != network || inodes[i] != 0 {
			continue
		}
		host, text, err := net.SplitHostPort(b.Addr)
		port, perr := strconv.ParseUint(text, 10, 16)
		if err != nil || perr != nil {
			continue
		}
		ip, _ := netip.ParseAddr(host) // invalid for a name, and that overlaps with all
		for _, s := range byPort[uint16(port)] {
			if s.Inode != 0 && overlap(s.Local.Addr(), ip) { // 0: in TIME_WAIT, nobody's
				inodes[i] = s.Inode
				break
			}
		}
	}
}

// overlap reports whether a socket at one address can be in the way of one at
// the other.
func overlap(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a.IsUnspecified() || b.IsUnspecified() {
		return true
	}
	return a.Unmap().WithZone("") == b.Unmap().WithZone("")
}

// ThisProcess is what Owners and Processes call this process.
func ThisProcess() string { return fmt.Sprintf("this process (pid %d)", os.Getpid()) }

// Processes names the process that has each of the sockets with the given
// inodes. The cost and the limits are those of Owners.
func Processes(ctx context.Context, inodes ...uint32) []string {
	wanted := map[string]string{} // by link; "": not found
	for _, inode := range inodes {
		if inode != 0 {
			wanted[socketLink(inode)] = ""
		}
	}
	searchProcesses(ctx, "/proc", wanted)
	names := make([]string, len(inodes))
	for i, inode := range inodes {
		if names[i] = wanted[socketLink(inode)]; names[i] == "" {
			names[i] = unseen
		}
	}
	return names
}

func socketLink(inode uint32) string { return "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]" }

// searchProcesses fills in the processes that have the wanted links among their
// open files. It looks at this process first: one port asked for twice is the
// likeliest case of all.
func searchProcesses(ctx context.Context, proc string, wanted map[string]string) {
	left := len(wanted)
	if left == 0 {
		return
	}
	self := strconv.Itoa(os.Getpid())
	if left -= searchFiles(filepath.Join(proc, self, "fd"), wanted, ThisProcess); left == 0 {
		return
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return
	}
	for _, e := range entries {
		pid := e.Name()
		if pid[0] < '0' || pid[0] > '9' || pid == self {
			continue
		}
		if left == 0 || ctx.Err() != nil {
			return
		}
		left -= searchFiles(filepath.Join(proc, pid, "fd"), wanted, func() string {
			comm, _ := os.ReadFile(filepath.Join(proc, pid, "comm"))
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
		})
	}
}

// searchFiles looks for wanted links in dir, a process's open files, and gives
// those that it finds the process's name. It returns how many it found.
func searchFiles(dir string, wanted map[string]string, name func() string) (found int) {
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer d.Close()
	for {
		// In pieces, since a process may have a hundred thousand files.
		files, err := d.Readdirnames(1024)
		for _, file := range files {
			link, err := os.Readlink(filepath.Join(dir, file))
			if err != nil {
				continue
			}
			if owner, ok := wanted[link]; ok && owner == "" {
				wanted[link] = name()
				found++
			}
		}
		if err != nil {
			return found
		}
	}
}
