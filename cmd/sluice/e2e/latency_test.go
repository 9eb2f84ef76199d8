package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The ports of the benchmark lie below those of the tests, of which a node has
// too few for it.
const (
	benchFirstPort = 21000
	benchMappings  = 1000
	benchPuts      = 200
	benchFixed     = benchFirstPort + benchMappings + benchPuts
)

// BenchmarkPutToAccept measures the time from the return of `etcdctl put` to
// the first connection on the new port, with a thousand mappings there. An
// operation is 200 puts. The program is built as it is shipped.
func BenchmarkPutToAccept(b *testing.B) {
	admin, etcd := loopback(benchFixed), loopback(benchFixed+1)
	startBenchNode(b, admin, etcd)
	put := func(port int) {
		if out, err := exec.Command("etcdctl", "--endpoints", etcd, "put", fmt.Sprintf("/sluice/ports/tcp/%d", port), admin).CombinedOutput(); err != nil {
			b.Fatalf("etcdctl put: %v\n%s", err, out)
		}
	}
	fill(b, admin, etcd)

	var took []time.Duration
	for b.Loop() {
		for i := range benchPuts {
			port := benchFirstPort + benchMappings + i
			put(port)
			returned := time.Now()
			for dialRefused(port) == nil {
				if time.Since(returned) > patience {
					b.Fatalf("port %d was never opened", port)
				}
			}
			took = append(took, time.Since(returned))
		}
		b.StopTimer()
		clearPorts(b, etcd)
		b.StartTimer()
	}
	slices.Sort(took)
	percentile := func(p int) float64 { return float64(took[len(took)*p/100].Microseconds()) / 1000 }
	b.ReportMetric(percentile(50), "p50-ms")
	b.ReportMetric(percentile(99), "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}

func startBenchNode(b *testing.B, admin, etcd string) {
	b.Helper()
	dir := b.TempDir()
	program := filepath.Join(dir, "sluice")
	if out, err := exec.Command("go", "build", "-o", program, "..").CombinedOutput(); err != nil {
		b.Fatalf("build the program: %v\n%s", err, out)
	}
	yaml := fmt.Sprintf("node: bench\ndata: ./data\nadmin: %q\netcd: {listen: %q}\nports: [\"%d-%d\"]\nlog: {access: none}\n",
		admin, etcd, benchFirstPort, benchFixed-1)
	if err := os.WriteFile(filepath.Join(dir, "sluice.yaml"), []byte(yaml), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, "run")
	cmd.Dir = dir
	startProcess(b, cmd)
	eventually(b, "the node is ready", func() error {
		status, body, err := httpGet("http://" + admin + "/readyz")
		if err == nil && status != 200 {
			err = fmt.Errorf("readyz says %d %s", status, body)
		}
		return err
	})
}

// fill puts the mappings that are there before the measurement, and waits for
// the last.
func fill(b *testing.B, backend, etcd string) {
	b.Helper()
	const perTransaction = 100 // etcd takes 128
	for first := 0; first < benchMappings; first += perTransaction {
		var puts strings.Builder
		for i := range perTransaction {
			fmt.Fprintf(&puts, "put /sluice/ports/tcp/%d %s\n", benchFirstPort+first+i, backend)
		}
		transact(b, etcd, puts.String())
	}
	for port := benchFirstPort; port < benchFirstPort+benchMappings; port++ {
		eventually(b, "the mappings are in force", func() error {
			c, err := net.Dial("tcp", loopback(port))
			if err == nil {
				c.Close()
			}
			return err
		})
	}
}

// clearPorts deletes what an operation has put, and waits until it is gone.
func clearPorts(b *testing.B, etcd string) {
	b.Helper()
	for first := 0; first < benchPuts; first += 100 {
		var deletes strings.Builder
		for i := range 100 {
			fmt.Fprintf(&deletes, "del /sluice/ports/tcp/%d\n", benchFirstPort+benchMappings+first+i)
		}
		transact(b, etcd, deletes.String())
	}
	for i := range benchPuts {
		eventually(b, "the ports are closed", func() error { return dialRefused(benchFirstPort + benchMappings + i) })
	}
}

// transact has etcdctl do all operations in one transaction, without a
// condition.
func transact(b *testing.B, etcd, operations string) {
	b.Helper()
	cmd := exec.Command("etcdctl", "--endpoints", etcd, "txn")
	cmd.Stdin = strings.NewReader("\n" + operations + "\n\n") // compares, then, else
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("etcdctl txn: %v\n%s", err, out)
	}
}
