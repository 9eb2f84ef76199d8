package certs_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// A provider that can no longer be used shows in the status of the names that
// use it while their certificates still hold, and not in that of others.
func TestProviderTroubleIsToldBeforeAnOrderFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	m, stop := w.start(t, certs.Domain{Name: "*.x.test"})
	if s := status(t, m, "*.x.test", certs.StateObtained); s.Unusable != nil {
		t.Errorf("trouble = %v, want none", s.Unusable)
	}
	stop()
	// Its key is changed; a restart meets that at once.
	wrong := knot(w.dns)
	wrong.Settings["key"] = "d3Jvbmc="
	w.cfg.Providers = providers(t, map[string]dns.Config{"knot": wrong})
	orders := w.acme.Orders()
	again, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	eventually(t, "the trouble to be told", func() bool {
		s, _ := again.Status("*.x.test")
		return s.Unusable != nil && w.news.of("*.x.test") > 2
	})
	s := status(t, again, "*.x.test", certs.StateObtained)
	for _, want := range []string{
		"obtained until ", "; no attempt will succeed as things are: dns provider knot (rfc2136): look for TXT record _acme-challenge in zone x.test.: dns: bad authentication",
		"does not accept TSIG key edge-key.",
	} {
		if !strings.Contains(s.String(), want) {
			t.Errorf("status = %v\nwant it to say %q", s, want)
		}
	}
	if got := w.acme.Orders(); got != orders {
		t.Errorf("%d orders were made, want none", got-orders)
	}
	mustGet(t, again, "a.x.test", w.acme.Roots)
}
