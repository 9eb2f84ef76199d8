package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/sandbox"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// read returns a file of the system in one line, or "".
func (s *Subject) read(path string) string {
	text, err := os.ReadFile(filepath.Join(s.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// number reads a file that holds one; ok is false where there is none.
func (s *Subject) number(path string) (n int64, ok bool) {
	n, err := strconv.ParseInt(s.read(path), 10, 64)
	return n, err == nil
}

func checkKernel(_ context.Context, s *Subject, r *Report) {
	if s.Config.PortsMode != "bind" {
		switch err := steer.Supported(); {
		case err == nil:
			r.ok("mapped ports can be steered (sk_lookup)")
		case os.Geteuid() != 0:
			r.unknown("whether mapped ports can be steered takes root to find out: %v", err)
		default:
			severity := Note
			if s.Config.PortsMode == "steer" {
				severity = Critical
			}
			r.add(severity, "Linux 5.9, and AmbientCapabilities=CAP_BPF CAP_NET_ADMIN in the unit; or ports_mode: bind in "+s.Path,
				"mapped ports cannot be steered, and take a socket each: %v", err)
		}
	}
	for _, o := range []struct {
		option, value int
		name          string
	}{{unix.UDP_SEGMENT, 1200, "send many datagrams at once (GSO)"}, {unix.UDP_GRO, 1, "take many datagrams at once (GRO)"}} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			r.unknown("a UDP socket: %v", err)
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, o.option, o.value); err != nil {
			r.add(Note, "Linux 5.0 or later", "the kernel does not %s: UDP and HTTP/3 take more time", o.name)
		} else {
			r.ok("the kernel can %s", o.name)
		}
		unix.Close(fd)
	}
	available, used := s.read("/proc/sys/net/ipv4/tcp_available_congestion_control"), s.read("/proc/sys/net/ipv4/tcp_congestion_control")
	switch {
	case used == "":
		r.unknown("which congestion control TCP uses cannot be read")
	case used == "bbr":
		r.ok("TCP uses BBR")
	case slices.Contains(strings.Fields(available), "bbr"):
		r.add(Note, "sysctl -w net.ipv4.tcp_congestion_control=bbr net.core.default_qdisc=fq", "TCP uses %s; BBR keeps its pace over long ways that lose packets", used)
	default:
		r.add(Note, "modprobe tcp_bbr && sysctl -w net.ipv4.tcp_congestion_control=bbr net.core.default_qdisc=fq", "TCP uses %s; BBR keeps its pace over long ways that lose packets", used)
	}
}

func checkSandbox(_ context.Context, s *Subject, r *Report) {
	if s.Config.Sandbox == "off" {
		r.add(Note, "take `sandbox: off` out of "+s.Path, "the node does not confine itself")
		return
	}
	severity := Note
	if s.Config.Sandbox == "require" {
		severity = Critical
	}
	if abi, err := sandbox.ABI(); err != nil {
		r.add(severity, "Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock among the lsm= of the kernel's command line; under systemd the calls in SystemCallFilter=",
			"the kernel has no Landlock (%v): a node can reach all files of its user", err)
	} else {
		r.ok("Landlock is there (ABI %d)", abi)
	}
	if !strings.Contains(s.read("/proc/sys/kernel/seccomp/actions_avail"), "errno") {
		r.add(severity, "a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp filters")
	} else {
		r.ok("seccomp filters are there")
	}
	for _, of := range []struct{ part, what string }{{"files", "files that are not its own"}, {"calls", "system calls that no proxy makes"}} {
		if v, ok := s.metric(fmt.Sprintf("sluice_sandbox_in_force{part=%q}", of.part)); ok && v != "1" {
			r.add(Warning, "look into the node's log for \"confined to\"; under systemd allow the calls of SystemCallFilter= in deploy/sluice.service", "the live node is not kept from %s", of.what)
		}
	}
	if v, ok := s.metric(`sluice_sandbox_in_force{part="user"}`); ok && v != "1" {
		r.add(Note, "useradd --system --home-dir /var/lib/sluice --shell /usr/sbin/nologin sluice, and `user: sluice` in "+s.Path, "the live node is root")
	}
}

func checkLimits(_ context.Context, s *Subject, r *Report) {
	s.files(r)
	s.memory(r)
	if most, ok := s.number("/sys/fs/cgroup/pids.max"); ok && most < 256 {
		r.add(Warning, "TasksMax=4096 in the unit", "at most %d threads may be made", most)
	}
	for _, f := range []struct {
		path  string
		least int64
		why   string
	}{
		{"/proc/sys/net/core/somaxconn", 4096, "connections that come at once are refused"},
		{"/proc/sys/net/ipv4/tcp_max_syn_backlog", 4096, "connections that come at once are refused"},
		{"/proc/sys/net/core/rmem_max", 7500000, "HTTP/3 and UDP lose datagrams when many come at once"},
		{"/proc/sys/net/core/wmem_max", 7500000, "HTTP/3 sends in small steps"},
	} {
		n, ok := s.number(f.path)
		name := strings.ReplaceAll(strings.TrimPrefix(f.path, "/proc/sys/"), "/", ".")
		switch {
		case !ok:
			r.unknown("%s cannot be read", name)
		case n < f.least:
			r.add(Note, fmt.Sprintf("sysctl -w %s=%d", name, f.least), "%s is %d, less than %d: %s", name, n, f.least, f.why)
		default:
			r.ok("%s is %d", name, n)
		}
	}
	if count, ok := s.number("/proc/sys/net/netfilter/nf_conntrack_count"); ok {
		if most, ok := s.number("/proc/sys/net/netfilter/nf_conntrack_max"); ok && count > most/10*8 {
			r.add(Warning, fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d, or notrack for the mapped ports", 4*most),
				"%d of %d connections that the firewall can follow are there; when it can follow no more, nobody connects", count, most)
		}
	}
	s.reserved(r)
}

func (s *Subject) files(r *Report) {
	const least = 65536
	mend := "LimitNOFILE=1048576 in the unit, or `ulimit -n 1048576` before the start"
	if text, live := s.metric("process_max_fds"); live {
		if n, err := strconv.ParseFloat(text, 64); err == nil && n < least {
			r.add(Warning, mend, "the live node may open %.0f files: about %.0f TCP flows at a time", n, n*7/16)
		} else if open, there := s.metric("process_open_fds"); there {
			r.ok("the live node may open %s files, and has %s", text, open)
		}
		return
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		r.unknown("how many files may be open: %v", err)
	} else if limit.Max < least {
		r.add(Warning, mend, "a process may open %d files here: about %d TCP flows at a time", limit.Max, limit.Max*7/16)
	} else {
		r.ok("a process may open %d files here", limit.Max)
	}
}

func (s *Subject) memory(r *Report) {
	const least = 256 << 20
	for line := range strings.Lines(s.read("/proc/meminfo")) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemAvailable:" {
			continue
		}
		if kb, err := strconv.ParseInt(fields[1], 10, 64); err == nil && kb<<10 < least {
			r.add(Warning, "`ps --sort=-rss -eo rss,cmd | head` shows who has it", "%d MB of memory are available", kb>>10)
		} else {
			r.ok("%d MB of memory are available", kb>>10)
		}
	}
	if most, ok := s.number("/sys/fs/cgroup/memory.max"); ok && most < least {
		r.add(Warning, "MemoryMax=1G in the unit", "the service may have %d MB of memory", most>>20)
	}
}

// reserved looks whether outgoing sockets may be given mapped ports.
func (s *Subject) reserved(r *Report) {
	if len(s.Config.Ports) == 0 {
		return
	}
	var first, last int
	if _, err := fmt.Sscan(s.read("/proc/sys/net/ipv4/ip_local_port_range"), &first, &last); err != nil {
		r.unknown("which ports outgoing sockets get cannot be read")
		return
	}
	var free []string
	spared := parseRanges(s.read("/proc/sys/net/ipv4/ip_local_reserved_ports"))
	for _, p := range s.Config.Ports {
		for port := max(p.First, first); port <= min(p.Last, last); port++ {
			if !spared(port) {
				free = append(free, p.String())
				break
			}
		}
	}
	if len(free) > 0 {
		r.add(Warning, "sysctl -w net.ipv4.ip_local_reserved_ports="+s.Config.Ports.String()+", and a line in /etc/sysctl.d",
			"the kernel gives outgoing sockets of all programs ports of `ports` (%s), which cannot be mapped then", strings.Join(free, ", "))
		return
	}
	r.ok("outgoing sockets get no mapped port")
}

// parseRanges reads a list such as 8080,9000-9010.
func parseRanges(text string) func(port int) bool {
	var all [][2]int
	for part := range strings.SplitSeq(text, ",") {
		a, b, ranged := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.Atoi(a)
		last := first
		if ranged && err == nil {
			last, err = strconv.Atoi(b)
		}
		if err == nil {
			all = append(all, [2]int{first, last})
		}
	}
	return func(port int) bool {
		return slices.ContainsFunc(all, func(r [2]int) bool { return r[0] <= port && port <= r[1] })
	}
}

func checkDisk(ctx context.Context, s *Subject, r *Report) {
	dir := s.Config.Data
	for errors.Is(statError(dir), unix.ENOENT) && dir != "/" && dir != "." {
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		r.add(Critical, "", "look at the disk of %s: %v", dir, err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	switch {
	case free < 256<<20:
		r.add(Critical, "make room on the disk of "+dir, "%d MB are free for %s: etcd stops taking changes when none is", free>>20, s.Config.Data)
	case free < 2<<30:
		r.add(Warning, "make room on the disk of "+dir, "%d MB are free for %s: etcd may have 2 GB, and as much to be compacted", free>>20, s.Config.Data)
	default:
		r.ok("%d MB are free for %s", free>>20, s.Config.Data)
	}
	if st.Files > 0 && st.Ffree < 1000 {
		r.add(Critical, "remove files there: `df -i "+dir+"`", "%d more files can be made on the disk of %s", st.Ffree, dir)
	}
	s.syncs(ctx, dir, r)
}

func statError(path string) error {
	_, err := os.Stat(path)
	return err
}

// syncs measures how long the disk takes to have something for good, as etcd does
// for every change.
func (s *Subject) syncs(ctx context.Context, dir string, r *Report) {
	if len(s.Config.Etcd.Endpoints) > 0 {
		return
	}
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
			r.unknown("how fast the disk is takes a user who may write into %s", dir)
		} else {
			r.add(Critical, "mount it to be written: `mount -o remount,rw ...`", "write into %s: %v", dir, err)
		}
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var worst time.Duration
	for range 10 {
		if ctx.Err() != nil {
			break
		}
		at := time.Now()
		_, err := f.Write(make([]byte, 2300)) // as etcd's own advice has it
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			r.add(Critical, "look into `dmesg`", "write to the disk of %s: %v", dir, err)
			return
		}
		worst = max(worst, time.Since(at))
	}
	if worst > 100*time.Millisecond {
		r.add(Warning, "a disk of its own, an SSD, for "+dir, "the disk took %v for a write: etcd's members lose their leader over that", worst.Round(time.Millisecond))
		return
	}
	r.ok("the disk takes %v for a write at worst", worst.Round(100*time.Microsecond))
}
