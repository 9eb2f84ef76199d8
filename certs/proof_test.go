package certs_test

import (
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// countLog counts lines that have part in them.
type countLog struct {
	io.Writer
	part string
	n    atomic.Int32
}

func (l *countLog) Write(p []byte) (int, error) {
	if strings.Contains(string(p), l.part) {
		l.n.Add(1)
	}
	return l.Writer.Write(p)
}

// The authority asks the secondary of a real zone, which lags behind its
// primary: wildcard and apex are issued at the first attempt all the same.
func TestIssuanceWaitsForEveryServer(t *testing.T) {
	t.Parallel()
	primary := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test"})
	secondary := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test", Primary: primary.Addr})
	w := newWorld(t, certstest.ACMEOptions{})
	w.acme = certstest.NewACME(t, secondary.Addr, certstest.ACMEOptions{})
	reg := prometheus.NewRegistry()
	log := &countLog{Writer: testLog{t}, part: "challenge record not published yet"}
	w.cfg.Issuers = []certs.Issuer{{Directory: w.acme.DirectoryURL, CAFile: w.acme.RootsFile}}
	w.cfg.Resolvers = []string{secondary.Addr}
	w.cfg.PropagationTimeout = time.Minute
	w.cfg.Registerer = reg
	w.cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.cfg.Providers = providers(t, map[string]dns.Config{"knot": {
		Provider: "rfc2136", Zones: []string{"x.test"}, Nameservers: []string{primary.Addr, secondary.Addr},
		Settings: dns.Settings{"server": dns.Secret(primary.Addr), "key_name": certstest.KeyName, "key": certstest.Key},
	}})
	m, _ := w.start(t, certs.Domain{Name: "*.x.test"}, certs.Domain{Name: "x.test"})
	eventually(t, "both records at the primary", func() bool { return len(primary.TXT(t, challengeName)) == 2 })
	eventually(t, "looks in vain", func() bool { return log.n.Load() >= 4 })
	secondary.Refresh(t, "x.test")
	for _, name := range []string{"*.x.test", "x.test"} {
		status(t, m, name, certs.StateObtained)
	}
	if failed := metric(t, reg, "sluice_certs_attempts_total", "failed"); failed > 0 {
		t.Errorf("%v attempts failed, want none", failed)
	}
	eventually(t, "the records to go", func() bool { return len(primary.TXT(t, challengeName)) == 0 })
}
