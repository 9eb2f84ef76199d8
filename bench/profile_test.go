package main

import (
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
