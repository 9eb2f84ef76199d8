package certstest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Knot is Debian's Knot DNS, a server that people use, in a process of its own.
type Knot struct {
	Addr string // host:port, on UDP and TCP

	conf string
	log  *lockedBuffer
	// in runs what makes sockets and processes.
	in func(func() error) error
}

// KnotZone is a zone that Knot serves.
type KnotZone struct {
	Name string // x.test
	// Records are lines of a zone file besides SOA and NS.
	Records []string
	// Primary is the server that the zone is transferred from, host:port. It is
	// asked once at start, and then when Refresh is called. Empty: Knot is the
	// primary, and lets Key update TXT, A and AAAA records.
	Primary string
}

// NewKnot starts a server that ends with the test. Its loopback port is one that
// was free a moment before.
func NewKnot(t testing.TB, zones ...KnotZone) *Knot {
	t.Helper()
	return NewKnotIn(t, func(f func() error) error { return f() }, zones...)
}

// NewKnotIn is NewKnot where in runs each function that makes sockets and
// processes, such as in another network namespace.
func NewKnotIn(t testing.TB, in func(func() error) error, zones ...KnotZone) *Knot {
	t.Helper()
	for range 10 {
		k, err := startKnot(t, in, zones)
		if err == nil {
			return k
		}
		t.Logf("start Knot: %v; trying another port", err)
	}
	t.Fatal("Knot does not start")
	return nil
}

func startKnot(t testing.TB, in func(func() error) error, zones []KnotZone) (*Knot, error) {
	t.Helper()
	// Knot's control socket has a path of at most 107 characters.
	dir, err := os.MkdirTemp("", "knot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k := &Knot{conf: filepath.Join(dir, "knot.conf"), log: &lockedBuffer{}, in: in}
	err = in(func() error {
		free, err := listenBoth("127.0.0.1:0")
		if err != nil {
			return err
		}
		k.Addr = free.tcp.Addr().String()
		return errors.Join(free.tcp.Close(), free.udp.Close())
	})
	if err != nil {
		return nil, err
	}
	k.configure(t, dir, zones)
	cmd := exec.Command(debianTool("knotd"), "-c", k.conf)
	cmd.Stdout, cmd.Stderr = k.log, k.log
	if err := in(cmd.Start); err != nil {
		t.Fatalf("start Knot: %v (apt-get install knot)", err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		<-exited
		if t.Failed() {
			t.Logf("Knot at %s said:\n%s", k.Addr, k.log)
		}
	})
	return k, k.ready(zones, exited)
}

// ready waits until every zone is there.
func (k *Knot) ready(zones []KnotZone, exited <-chan struct{}) error {
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, z := range zones {
		for {
			m, err := k.Ask(z.Name, dns.TypeSOA)
			if err == nil && len(m.Answer) > 0 {
				break
			}
			select {
			case <-exited:
				return fmt.Errorf("it ended: %s", k.log)
			case <-deadline:
				return fmt.Errorf("no answer for %s in a minute: %v", z.Name, err)
			case <-tick.C:
			}
		}
	}
	return nil
}

func (k *Knot) configure(t testing.TB, dir string, zones []KnotZone) {
	t.Helper()
	host, port, _ := net.SplitHostPort(k.Addr) // from a listener: always both
	var conf strings.Builder
	fmt.Fprintf(&conf, `server:
    rundir: %[1]q
    listen: %[2]s@%[3]s
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: %[1]q
log:
  - target: stderr
    any: info
key:
  - id: %[4]s
    algorithm: %[5]s
    secret: %[6]s
acl:
  - id: edge
    key: %[4]s
    action: update
    update-type: [TXT, A, AAAA]
  - id: anybody
    address: 127.0.0.1
    action: transfer
`, dir, host, port, KeyName, KeyAlgorithm, Key)
	for i, z := range zones {
		if z.Primary == "" {
			continue
		}
		h, p, _ := net.SplitHostPort(z.Primary)
		if i == 0 || !strings.Contains(conf.String(), "remote:") {
			fmt.Fprint(&conf, "remote:\n")
		}
		fmt.Fprintf(&conf, "  - id: primary%d\n    address: %s@%s\n", i, h, p)
	}
	fmt.Fprint(&conf, "zone:\n")
	for i, z := range zones {
		fmt.Fprintf(&conf, "  - domain: %s\n    storage: %q\n    file: zone%d\n    acl: [edge, anybody]\n", z.Name, dir, i)
		if z.Primary != "" {
			fmt.Fprintf(&conf, "    master: primary%d\n", i)
			continue
		}
		text := fmt.Sprintf("$ORIGIN %s.\n$TTL 60\n@ SOA ns hostmaster 1 3600 3600 7200 60\n@ NS ns\nns A 127.0.0.1\n%s\n", z.Name, strings.Join(z.Records, "\n"))
		write(t, filepath.Join(dir, fmt.Sprintf("zone%d", i)), text)
	}
	write(t, k.conf, conf.String())
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Refresh has a zone transferred from its primary, and returns once it is asked for.
func (k *Knot) Refresh(t testing.TB, zone string) {
	t.Helper()
	if out, err := exec.Command(debianTool("knotc"), "-c", k.conf, "zone-refresh", zone).CombinedOutput(); err != nil {
		t.Fatalf("knotc zone-refresh %s: %v: %s", zone, err, out)
	}
}

// Ask asks the server over TCP.
func (k *Knot) Ask(name string, kind uint16) (*dns.Msg, error) {
	var m *dns.Msg
	err := k.in(func() (err error) {
		m, _, err = (&dns.Client{Net: "tcp"}).Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), k.Addr)
		return err
	})
	return m, err
}

// TXT returns the texts of the TXT records at name.
func (k *Knot) TXT(t testing.TB, name string) []string {
	t.Helper()
	m, err := k.Ask(name, dns.TypeTXT)
	if err != nil {
		t.Fatalf("ask Knot for TXT %s: %v", name, err)
	}
	var texts []string
	for _, rr := range m.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	return texts
}

// debianTool returns the path of a program that Debian has out of an ordinary
// user's path.
func debianTool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", name)
}

// lockedBuffer is what a process has said so far.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
