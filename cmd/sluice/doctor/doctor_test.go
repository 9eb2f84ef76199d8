package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// subject returns a node's file with these lines besides.
func subject(t *testing.T, yaml string) *Subject {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	if err := os.WriteFile(path, []byte("node: test\n"+yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return &Subject{Path: path, Config: c}
}

// found runs one check.
func found(t *testing.T, s *Subject, run func(context.Context, *Subject, *Report)) []Finding {
	t.Helper()
	return Run(t.Context(), s, []Check{{"it", run}}, 20*time.Second)
}

// wants wants a finding of a severity that says text and, to mend it, mend.
func wants(t *testing.T, all []Finding, severity Severity, text, mend string) {
	t.Helper()
	for _, f := range all {
		if f.Severity == severity && strings.Contains(f.Text, text) && strings.Contains(f.Mend, mend) {
			return
		}
	}
	t.Errorf("no finding is %s and says %q and %q:\n%s", severity, text, mend, list(all))
}

// wantsNone wants nothing worse than a severity that says text.
func wantsNone(t *testing.T, all []Finding, severity Severity, text string) {
	t.Helper()
	for _, f := range all {
		if f.Severity.Worse(severity) && strings.Contains(f.Text, text) {
			t.Errorf("%s: %s", f.Severity, f.Text)
		}
	}
}

func list(all []Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s: %s: %s [%s]\n", f.Severity, f.Check, f.Text, f.Mend)
	}
	return b.String()
}

func TestChecksThatHangAreBounded(t *testing.T) {
	release := make(chan struct{})
	ended := make(chan struct{})
	all := Run(t.Context(), nil, []Check{
		{"hangs", func(context.Context, *Subject, *Report) { defer close(ended); <-release }},
		{"heeds", func(ctx context.Context, _ *Subject, r *Report) { <-ctx.Done(); r.ok("heard") }},
		{"works", func(_ context.Context, _ *Subject, r *Report) { r.add(Note, "mend", "seen") }},
	}, 100*time.Millisecond)
	close(release)
	<-ended
	if len(all) != 3 || all[0].Check != "hangs" || all[0].Severity != Warning || all[1].Severity != Note || all[2].Text != "heard" || Worst(all) != Warning {
		t.Errorf("found\n%s", list(all))
	}
}

func TestSystemFiles(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"proc/sys/net/core/somaxconn": "128\n", "proc/sys/net/core/rmem_max": "212992", "proc/sys/net/core/wmem_max": "8000000",
		"proc/sys/net/ipv4/ip_local_port_range": "32768\t60999", "proc/sys/net/ipv4/ip_local_reserved_ports": "50000-50499",
		"proc/sys/net/ipv4/tcp_congestion_control": "cubic", "proc/sys/net/ipv4/tcp_available_congestion_control": "reno cubic",
		"proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable:  1000 kB\n", "sys/fs/cgroup/pids.max": "64", "sys/fs/cgroup/memory.max": "67108864",
		"proc/sys/net/netfilter/nf_conntrack_count": "900", "proc/sys/net/netfilter/nf_conntrack_max": "1000",
		"proc/sys/kernel/seccomp/actions_avail": "kill log", "etc/resolv.conf": "# nothing\n",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := subject(t, "ports: [\"50000-50999\"]\nsandbox: require\n")
	s.Root = root
	all := found(t, s, checkLimits)
	wants(t, all, Note, "net.core.somaxconn is 128", "sysctl -w net.core.somaxconn=4096")
	wants(t, all, Note, "net.core.rmem_max is 212992", "sysctl -w net.core.rmem_max=7500000")
	wants(t, all, OK, "net.core.wmem_max is 8000000", "")
	wants(t, all, Unknown, "net.ipv4.tcp_max_syn_backlog cannot be read", "")
	wants(t, all, Warning, "ports of `ports` (50000-50999)", "sysctl -w net.ipv4.ip_local_reserved_ports=50000-50999")
	wants(t, all, Warning, "0 MB of memory are available", "ps --sort")
	wants(t, all, Warning, "may have 64 MB of memory", "MemoryMax=")
	wants(t, all, Warning, "at most 64 threads", "TasksMax=")
	wants(t, all, Warning, "900 of 1000 connections", "nf_conntrack_max=4000")
	wants(t, found(t, s, checkKernel), Note, "TCP uses cubic", "modprobe tcp_bbr")
	wants(t, found(t, s, checkSandbox), Critical, "no seccomp filters", "CONFIG_SECCOMP_FILTER")
	wants(t, found(t, s, checkResolvers), Warning, "names no name server", "nameserver ADDRESS")

	if err := os.WriteFile(filepath.Join(root, "proc/sys/net/ipv4/ip_local_reserved_ports"), []byte("50000-50999,8080"), 0o644); err != nil {
		t.Fatal(err)
	}
	wants(t, found(t, s, checkLimits), OK, "outgoing sockets get no mapped port", "")
}

// TestSysctlOfANamespace has the kernel itself say what is too small.
func TestSysctlOfANamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("making a network namespace takes root: run the tests as root")
	}
	s := subject(t, "ports: [\"40000-40999\"]\n")
	var all []Finding
	err := onThreadOfItsOwn(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		// /proc/sys/net is that of the thread which opens it.
		if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte("16"), 0); err != nil {
			return err
		}
		r := &Report{check: "limits"}
		checkLimits(t.Context(), s, r)
		all = r.findings()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, all, Note, "net.core.somaxconn is 16", "sysctl -w net.core.somaxconn=4096")
	wants(t, all, Warning, "ports of `ports` (40000-40999)", "ip_local_reserved_ports=40000-40999")
}

// onThreadOfItsOwn runs f on a thread that ends with it.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if unix.Gettid() == unix.Getpid() {
			done <- onThreadOfItsOwn(f) // on any but the first, which has to stay as it is
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

func TestFewFiles(t *testing.T) {
	if limit := os.Getenv("DOCTOR_TEST_LIMITED"); limit != "" {
		s := subject(t, "")
		fmt.Print(list(found(t, s, checkLimits)))
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", fmt.Sprintf("ulimit -n 512 && exec %s -test.run '^TestFewFiles$'", self))
	cmd.Env = append(os.Environ(), "DOCTOR_TEST_LIMITED=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "warning: it: a process may open 512 files here: about 224 TCP flows at a time [LimitNOFILE=1048576") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAddressesInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := subject(t, fmt.Sprintf("admin: 127.0.0.1:%s\n", port))
	all := found(t, s, checkPorts)
	wants(t, all, Critical, "admin: listen on tcp 127.0.0.1:"+port+": already in use by this process", "ss -lntp 'sport = :"+port+"'")
	s = subject(t, fmt.Sprintf("ports: [%q]\netcd: {endpoints: [\"http://127.0.0.1:1\"]}\nadmin: 192.0.2.1:9180\n", port))
	all = found(t, s, checkPorts)
	wants(t, all, Warning, "ports for mappings are in use: tcp/"+port+" by this process", "take theirs out of `ports`")
	wants(t, all, Critical, "admin: ", "")
}

func TestDataDirectories(t *testing.T) {
	dir := t.TempDir()
	s := subject(t, "data: "+dir+"/data\n")
	wants(t, found(t, s, checkData), Note, "is made at the first start", "")
	if err := os.Mkdir(dir+"/data", 0o755); err != nil {
		t.Fatal(err)
	}
	wants(t, found(t, s, checkData), Warning, "(mode 0755)", "chmod 700 "+dir+"/data")
	wants(t, found(t, s, checkDisk), OK, "MB are free", "")
	if err := os.Chmod(dir+"/data", 0o700); err != nil {
		t.Fatal(err)
	}
	wants(t, found(t, s, checkData), OK, "the node's own", "")
	s.Config.User = "nobody"
	if info, err := os.Stat(dir + "/data"); err == nil && info.Sys().(*syscall.Stat_t).Uid != 65534 {
		wants(t, found(t, s, checkData), Critical, "and the node runs as nobody", "chown -R nobody: ")
	}
	s.Config.User = "nosuchuser"
	wants(t, found(t, s, checkData), Critical, "user: there is no user \"nosuchuser\"", "")
	s.Config.Data = s.Path
	s.Config.User = ""
	wants(t, found(t, s, checkData), Critical, "is no directory", "mv ")
}

func TestDiskThatCannotBeWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("mounting takes root: run the tests as root")
	}
	dir := t.TempDir()
	s := subject(t, "data: "+dir+"\n")
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	wants(t, found(t, s, checkDisk), Critical, "1 MB are free", "make room")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wants(t, found(t, s, checkDisk), Critical, "read-only file system", "remount,rw")
}

func TestKeysAndCertificates(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir+"/old.pem", 90*24*time.Hour, -time.Hour)
	certificate(t, dir+"/soon.pem", 80*24*time.Hour, 10*24*time.Hour)
	certificate(t, dir+"/good.pem", time.Hour, 100*24*time.Hour)
	certificate(t, dir+"/short.pem", time.Hour, 6*24*time.Hour)
	certificate(t, dir+"/late.pem", 5*24*time.Hour, 24*time.Hour+time.Minute)
	if err := os.WriteFile(dir+"/key.pem", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := subject(t, fmt.Sprintf(`upstream_tls:
  a: {ca: %[1]s/old.pem}
  b: {ca: %[1]s/soon.pem}
  c: {ca: %[1]s/good.pem}
  d: {ca: %[1]s/key.pem}
  e: {cert: %[1]s/good.pem, key: %[1]s/key.pem}
  f: {ca: %[1]s/gone.pem}
  g: {ca: %[1]s/short.pem}
  h: {ca: %[1]s/late.pem}
cookie_key: 0123456789abcdef
`, dir))
	if err := os.Chmod(s.Path, 0o644); err != nil {
		t.Fatal(err)
	}
	all := found(t, s, checkCertificates)
	wants(t, all, Critical, "upstream_tls.a.ca (old.pem) has expired", "put a new one into")
	wants(t, all, Warning, "upstream_tls.b.ca (soon.pem) expires in 9 days", "")
	wants(t, all, OK, "upstream_tls.c.ca (good.pem) holds for 99 days", "")
	wants(t, all, OK, "upstream_tls.g.ca (short.pem) holds for 5 days", "")
	wants(t, all, Warning, "upstream_tls.h.ca (late.pem) expires in 24 hours", "")
	wants(t, all, Critical, "upstream_tls.d.ca: "+dir+"/key.pem holds no certificate", "")
	all = found(t, s, checkConfig)
	wants(t, all, Critical, "upstream_tls.e.key: everybody on the machine can use", "")
	wants(t, all, Critical, "upstream_tls.f.ca: stat "+dir+"/gone.pem: no such file", "")
	wants(t, all, Warning, "which holds secrets (cookie_key)", "chmod o= "+s.Path)
	s.Live = "sluice_certs_expiry_timestamp_seconds{domain=\"a.example.com\"} 1.5e+09\n"
	wants(t, found(t, s, checkCertificates), Critical, "a.example.com has expired at 2017-07-14", "sluice certs show 'a.example.com'")
	// Of what it obtains itself the node knows when it is late.
	s.Live = fmt.Sprintf("sluice_certs_expiry_timestamp_seconds{domain=\"b.example.com\"} %d\nsluice_certs_domains{state=\"expiring\"} 0\n",
		time.Now().Add(6*24*time.Hour-time.Minute).Unix())
	all = found(t, s, checkCertificates)
	wants(t, all, OK, "b.example.com holds for 5 days", "")
	wantsNone(t, all, OK, "not been renewed")
	s.Live = strings.Replace(s.Live, "} 0\n", "} 2\n", 1)
	wants(t, found(t, s, checkCertificates), Warning, "or less: 2", "sluice certs ls")
}

// TestResolversOfTheNode asks acme.resolvers, where there are any, and tells what
// DNS says is not there from what it says nothing of.
func TestResolversOfTheNode(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		switch name, kind := q.Question[0].Name, q.Question[0].Qtype; {
		case name == "gone.test.":
			a.Rcode = dns.RcodeNameError
		case name == "broken.test.":
			a.Rcode = dns.RcodeServerFailure
		case kind == dns.TypeNS:
			a.Answer = append(a.Answer, &dns.NS{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET}, Ns: "ns.test."})
		case kind == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET}, A: net.IPv4(203, 0, 113, 7)})
		}
		w.WriteMsg(a)
	})}
	served := make(chan error, 1)
	go func() { served <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		pc.Close()
		<-served
	})
	s := subject(t, fmt.Sprintf("acme: {resolvers: [%q]}\n", pc.LocalAddr()))
	all := found(t, s, func(ctx context.Context, s *Subject, r *Report) {
		for _, name := range []string{"gone.test", "broken.test", "there.test"} {
			s.leadsTo(ctx, r, name, nil)
			s.delegated(ctx, r, "k", name)
		}
	})
	wants(t, all, Warning, "DNS knows no address of gone.test", "add A and AAAA")
	wants(t, all, Critical, "DNS knows no name servers of the zone gone.test", "dig +trace")
	wants(t, all, Unknown, "where broken.test leads", "")
	wants(t, all, Unknown, "the name servers of the zone broken.test", "")
	wants(t, all, Note, "there.test leads to [203.0.113.7]", "")
	wants(t, all, OK, "the zone there.test is served by 1 servers", "")
}

// certificate writes one that began age ago, and has life before it.
func certificate(t *testing.T, path string, age, life time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-age), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestClock has a time server of its own, which is right or not.
func TestClock(t *testing.T) {
	for _, tc := range []struct {
		ahead    time.Duration
		severity Severity
		text     string
	}{{0, OK, "the clock goes with that of the time server"}, {-5 * time.Second, Warning, "from that of the time server"}, {time.Hour, Critical, "leases seem over"}} {
		s := subject(t, "etcd: {endpoints: [\"http://127.0.0.1:1\"]}\n")
		s.NTP = []string{timeServer(t, tc.ahead)}
		wants(t, found(t, s, checkClock), tc.severity, tc.text, "")
	}
	s := subject(t, "")
	s.NTP = []string{"127.0.0.1:1"}
	wants(t, found(t, s, checkClock), Unknown, "this machine is offline", "")
}

// timeServer answers with a clock that is ahead.
func timeServer(t *testing.T, ahead time.Duration) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for buf := make([]byte, 256); ; {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			answer := make([]byte, 48)
			answer[0], answer[1] = 4<<3|4, 1
			copy(answer[24:], buf[40:n])
			at := time.Now().Add(ahead)
			for _, field := range [][]byte{answer[32:], answer[40:]} {
				binary.BigEndian.PutUint32(field, uint32(at.Unix()+2208988800))
				binary.BigEndian.PutUint32(field[4:], uint32(int64(at.Nanosecond())<<32/1e9))
			}
			pc.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		<-ended
	})
	return pc.LocalAddr().String()
}

func TestDeadEtcdAndNode(t *testing.T) {
	s := subject(t, "etcd: {endpoints: [\"http://127.0.0.1:1\"]}\nadmin: 127.0.0.1:1\n")
	wants(t, found(t, s, checkEtcd), Critical, "etcd at http://127.0.0.1:1 does not answer", "endpoint health")
	wants(t, found(t, s, checkNode), Note, "no node answers at 127.0.0.1:1", "")
	if Metrics(t.Context(), s.Config.Admin) != "" {
		t.Error("there are metrics")
	}
	s.Live = "sluice_control_refused_keys 3\nsluice_sandbox_in_force{part=\"files\"} 0\nsluice_sandbox_in_force{part=\"user\"} 0\nprocess_max_fds 1024\n"
	wants(t, found(t, s, checkNode), Warning, "3 keys are refused", "sluice status")
	wants(t, found(t, s, checkSandbox), Warning, "the live node is not kept from files", "SystemCallFilter=")
	wants(t, found(t, s, checkSandbox), Note, "the live node is root", "useradd")
	wants(t, found(t, s, checkLimits), Warning, "the live node may open 1024 files", "LimitNOFILE=")
}

func TestSilentServersDoNotHangIt(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // which accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s := subject(t, fmt.Sprintf("etcd: {endpoints: [\"http://%[1]s\"]}\nadmin: %[1]s\nacme: {resolvers: [%[2]q]}\ndns: {k: {provider: rfc2136, server: %[2]q, key_name: k, key: AAAA, zones: [x-gpu.com]}}\n", ln.Addr(), pc.LocalAddr()))
	s.NTP = []string{pc.LocalAddr().String()}
	all := Run(t.Context(), s, All(), 2*time.Second)
	wants(t, all, Critical, "does not answer", "endpoint health")
	wants(t, all, Unknown, "no time server answers", "")
	wants(t, all, Warning, "the name server "+pc.LocalAddr().String()+" does not answer", "dig @")
	wants(t, all, Critical, "dns.k, zone x-gpu.com", "CONFIGURATION.md")
	wantsNone(t, all, OK, "did not end within")
}
