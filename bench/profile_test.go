package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"os"
	"strings"
	"testing"
)

const pprofTop = `File: sluice
Type: cpu
Duration: 3s, Total samples = 1.08s (35.99%)
Showing nodes accounting for 1.08s, 100% of 1.08s total
      flat  flat%   sum%        cum   cum%
         0     0%     0%      0.87s 80.56%  crypto/tls.(*Conn).handshakeContext (inline)
     0.20s 18.52% 18.52%      0.20s 18.52%  internal/runtime/syscall/linux.Syscall6
     0.02s  1.85% 20.37%      0.99s 91.67%  github.com/remotegpu/sluice/proxy/http.(*Server).ServeConn
     0.01s  0.93% 21.30%      0.04s  3.70%  github.com/caddyserver/certmagic.(*Config).getCertificate
     0.01s  0.93% 22.22%      0.04s  3.70%  sync.Of[go.shape.interface { Reset(); Sum([]uint8) []uint8 }]
`

func TestParseTop(t *testing.T) {
	shares, err := parseTop([]byte(pprofTop))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]share{
		"crypto/tls.(*Conn).handshakeContext":                           {0, 0.8056},
		"internal/runtime/syscall/linux.Syscall6":                       {0.1852, 0.1852},
		"sync.Of[go.shape.interface { Reset(); Sum([]uint8) []uint8 }]": {0.0093, 0.037},
		"github.com/remotegpu/sluice/proxy/http.(*Server).ServeConn":    {0.0185, 0.9167},
	} {
		if got := shares[name]; !near(got.Self, want.Self) || !near(got.Calls, want.Calls) {
			t.Errorf("%s has %+v, want %+v", name, got, want)
		}
	}
	r := &shakeResult{Seconds: 3, Shares: shares}
	if own := r.own(); !near(own, 0.0185+0.0093) {
		t.Errorf("own = %v", own)
	}
	for _, want := range []string{"| system calls ", "18.5 %", "80.6 %", "2.8 %"} {
		if !strings.Contains(r.section(), want) {
			t.Errorf("section lacks %q:\n%s", want, r.section())
		}
	}
	if b := r.bars()[0]; !b.met {
		t.Errorf("%+v is missed", b)
	}
	shares["github.com/remotegpu/sluice/proxy/http.spin"] = share{0.1, 0.1}
	if b := r.bars()[0]; b.met {
		t.Errorf("%+v is met", b)
	}
	for _, bad := range []string{"no such file", "flat cum%\nwhat is this\n", "cum%\n a b c d e f\n"} {
		if _, err := parseTop([]byte(bad)); err == nil {
			t.Errorf("parseTop(%q): no error", bad)
		}
	}
}

func near(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }

// A profile taken under a load goes through the tool that merges and lists it.
func TestProfileUnderLoad(t *testing.T) {
	e := serveWeb(t, answerOrigin)
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	admin := httptest.NewServer(mux)
	defer admin.Close()
	defer http.DefaultClient.CloseIdleConnections()
	e.admin = admin.Listener.Addr().(*net.TCPAddr).AddrPort()
	load := lanesOf()["h1tls"]
	raw, err := profile(t.Context(), row{name: "h1tls", measure: load.measure}, e, 1)
	if err != nil {
		t.Fatal(err)
	}
	merged, err := pprofTool(t.Context(), t.TempDir(), [][]byte{raw, raw}, "-proto")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{raw, merged} {
		top, err := pprofTool(t.Context(), t.TempDir(), [][]byte{p}, "-top", "-cum", "-nodecount=0", "-nodefraction=0", "-edgefraction=0")
		if err != nil {
			t.Fatal(err)
		}
		shares, err := parseTop(top)
		if err != nil {
			t.Fatal(err)
		}
		if shares["crypto/tls.(*Conn).Write"].Calls <= 0 {
			t.Errorf("no share for what the load does:\n%s", top)
		}
	}
	if _, err := pprofTool(t.Context(), t.TempDir(), [][]byte{[]byte("no profile")}, "-proto"); err == nil {
		t.Error("pprof took what is no profile")
	}
	e.admin = closedPort(t)
	if _, err := profile(t.Context(), row{name: "h1tls", measure: load.measure}, e, 1); err == nil || !strings.Contains(err.Error(), "take a CPU profile") {
		t.Errorf("profile without an admin address: %v", err)
	}
}

// Names of the rows that make the profile and show its gain exist.
func TestPGORows(t *testing.T) {
	o, err := parseOptions([]string{"-pgo", "default.pgo"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.contenders) != 1 || o.contenders[0].name != judged || len(o.rows) != 1+strings.Count(pgoRows, ",") || len(o.studies) != 0 {
		t.Errorf("-pgo measures %v in %d rows", o.contenders, len(o.rows))
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, rows, _ := strings.Cut(string(makefile), "PGOROWS := ")
	rows, _, _ = strings.Cut(rows, "\n")
	if _, err := parseOptions([]string{"-contenders", "baseline,sluice", "-baseline", "old", "-rows", rows}, nil); err != nil {
		t.Error(err)
	}
}
