package listen

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
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
	// Owner is the process that has it, such as "sshd (pid 812)", or "" where
	// that could not be found out.
	Owner string
}

func (e *BusyError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("listen on %s %s: already in use by a process that cannot be seen from here", e.Network, e.Addr)
	}
	return fmt.Sprintf("listen on %s %s: already in use by %s", e.Network, e.Addr, e.Owner)
}

// Unwrap returns syscall.EADDRINUSE.
func (e *BusyError) Unwrap() error { return syscall.EADDRINUSE }

// owner finds the process that holds addr through /proc, as far as the rights
// of this process reach: the sockets of all are listed, but which process has
// one is told of one's own processes only, or of all to root.
func owner(ctx context.Context, network, addr string) string {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ""
	}
	ip, _ := netip.ParseAddr(host) // invalid for a name, and that overlaps with all
	for _, family := range []string{"", "6"} {
		inode := socketInode("/proc/net/"+network+family, ip, uint16(port))
		if inode == "" {
			continue
		}
		if process := processOf(ctx, "/proc", "socket:["+inode+"]"); process != "" {
			return process
		}
	}
	return ""
}

// socketInode looks into a table of sockets, such as /proc/net/tcp6, for the
// one that keeps others from binding to ip and port.
func socketInode(table string, ip netip.Addr, port uint16) string {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan() // headings
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[9] == "0" { // 0: in TIME_WAIT, nobody's
			continue
		}
		if local, ok := parseLocal(fields[1]); ok && local.Port() == port && overlap(local.Addr(), ip) {
			return fields[9]
		}
	}
	return ""
}

// parseLocal reads 0100007F:0016, the words of the address in the byte order of
// the machine.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, text, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	port, err := strconv.ParseUint(text, 16, 16)
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok && err == nil
}

// overlap reports whether a socket at one address can be in the way of one at
// the other.
func overlap(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a.IsUnspecified() || b.IsUnspecified() {
		return true
	}
	return a.Unmap().WithZone("") == b.Unmap().WithZone("")
}

// processOf finds the process that has link, the socket, among its open files.
// It looks at this process first: one port asked for twice is the likeliest
// case of all.
func processOf(ctx context.Context, proc, link string) string {
	self := strconv.Itoa(os.Getpid())
	if hasFile(filepath.Join(proc, self, "fd"), link) {
		return fmt.Sprintf("this process (pid %s)", self)
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		pid := e.Name()
		if pid[0] < '0' || pid[0] > '9' || pid == self {
			continue
		}
		if ctx.Err() != nil {
			return ""
		}
		if hasFile(filepath.Join(proc, pid, "fd"), link) {
			name, _ := os.ReadFile(filepath.Join(proc, pid, "comm"))
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}

// hasFile reports whether one of the links in dir, a process's open files,
// leads to link.
func hasFile(dir, link string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	for {
		// In pieces, since a process may have a hundred thousand files.
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && to == link {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
}
