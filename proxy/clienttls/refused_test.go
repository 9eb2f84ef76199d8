package clienttls_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/router"
)

// TestRefusalsAreCountedAndLoggedInBounds has more clients refused than are
// logged: all are counted, and the log says how many it left out.
func TestRefusalsAreCountedAndLoggedInBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		registry := prometheus.NewRegistry()
		terms := clienttls.New(clienttls.Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Registerer: registry})
		refuse := func(mode string, err error) {
			terms.Refused(clienttls.Refusal{
				Asked: terms.Auth(&router.ClientAuth{CA: "staff", Mode: mode}), ServerName: "a.x.test", Listener: "https/443", Err: err,
			})
		}
		lines := func() []string { return strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n") }
		none := errors.New("tls: client didn't provide a certificate")
		foreign := &tls.CertificateVerificationError{Err: errors.New("x")}
		for range 60 {
			refuse("require", fmt.Errorf("%w%.0w", none, tls.AlertError(116))) // as over QUIC
		}
		for range 40 {
			refuse("require", foreign)
		}
		if got := lines(); len(got) != 20 || !strings.Contains(got[0], `server_name=a.x.test`) || !strings.Contains(got[0], "reason=none not_logged=0") {
			t.Errorf("%d lines, the first of which is %s", len(got), got[0])
		}
		time.Sleep(2500 * time.Millisecond)
		for range 5 {
			refuse("require", foreign)
		}
		if got := lines(); len(got) != 22 || !strings.Contains(got[20], `reason="failed: the certificate cannot be verified" not_logged=80`) || !strings.Contains(got[21], "not_logged=0") {
			t.Errorf("%d lines, and then %s", len(got)-20, got[20:])
		}
		// What is not about certificates, or quotes the client, is no refusal.
		refuse("require", errors.New("EOF"))
		refuse("require", fmt.Errorf("CRYPTO_ERROR 0x174 (remote): %s", none))
		refuse("verify_if_given", foreign)
		refuse("off", foreign)
		if got, want := certificatesCounted(t, registry), (map[string]float64{"failed": 45, "none": 60, "verified": 0}); !maps.Equal(got, want) {
			t.Errorf("counted %v, want %v", got, want)
		}
	})
}

// certificatesCounted returns what a registry has of clients' certificates, by
// outcome.
func certificatesCounted(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "sluice_tls_client_certificates_total" {
			for _, m := range f.GetMetric() {
				all[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return all
}
