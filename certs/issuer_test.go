package certs_test

import (
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// second gives w another authority, tried after the first has failed twice.
func (w *world) second(t *testing.T, opt certstest.ACMEOptions) *certstest.ACME {
	t.Helper()
	other := certstest.NewACME(t, w.dns.Addr, opt)
	w.cfg.Issuers[0].Name = "first"
	w.cfg.Issuers = append(w.cfg.Issuers, certs.Issuer{Name: "second", Directory: other.DirectoryURL, CAFile: other.RootsFile})
	w.cfg.FallBackAfter = 2
	return other
}

// While the first authority is out of order the second one has its turn; what it
// has issued is kept when the first is back.
func TestFallBackFromAnAuthorityThatIsDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	other := w.second(t, certstest.ACMEOptions{})
	w.acme.Down(true)
	m, stop := w.start(t, certs.Domain{Name: "a.x.test"})
	status(t, m, "a.x.test", certs.StateObtained)
	first := mustGet(t, m, "a.x.test", other.Roots)

	// Another name finds the first failing and loses no time with it.
	m.SetDomains([]certs.Domain{{Name: "a.x.test"}, {Name: "b.x.test"}})
	s := status(t, m, "b.x.test", certs.StateObtained)
	mustGet(t, m, "b.x.test", other.Roots)
	if s.Err != nil {
		t.Errorf("b.x.test: %v, want no failure before", s.Err)
	}
	stop()

	// The list is another one now, and the authority that issued is gone from it.
	w.acme.Down(false)
	w.cfg.Issuers = w.cfg.Issuers[:1]
	m, _ = w.start(t, certs.Domain{Name: "a.x.test"}, certs.Domain{Name: "c.x.test"})
	status(t, m, "c.x.test", certs.StateObtained)
	mustGet(t, m, "c.x.test", w.acme.Roots)
	status(t, m, "a.x.test", certs.StateObtained)
	if again := mustGet(t, m, "a.x.test", other.Roots); !again.Leaf.Equal(first.Leaf) {
		t.Error("a certificate that holds was ordered anew because the list of issuers changed")
	}
}

// An authority that takes no more orders is not asked again before it said, for
// what it said; the next one is asked at once.
func TestFallBackFromARateLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	other := w.second(t, certstest.ACMEOptions{})
	reg := prometheus.NewRegistry()
	w.cfg.Registerer = reg
	w.acme.Refuse(&certstest.Refusal{Status: http.StatusTooManyRequests, RetryAfter: "7200", Problem: "rateLimited",
		Detail: "too many new orders (300) from this account in the last 3h0m0s"})
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"})
	status(t, m, "a.x.test", certs.StateObtained)
	mustGet(t, m, "a.x.test", other.Roots)
	if got := w.acme.Orders(); got != 1 {
		t.Fatalf("%d orders at the first authority, want 1", got)
	}
	m.SetDomains([]certs.Domain{{Name: "a.x.test"}, {Name: "b.x.test"}, {Name: "c.x.test", Issuer: "first"}, {Name: "d.x.test", Issuer: "third"}})
	status(t, m, "b.x.test", certs.StateObtained)
	mustGet(t, m, "b.x.test", other.Roots)
	s := status(t, m, "c.x.test", certs.StateFailed)
	for _, want := range []string{"failed: issuer first takes no order for it before 20", "it says: too many new orders (300)", "; next attempt at "} {
		if !strings.Contains(s.String(), want) {
			t.Errorf("status = %v\nwant it to say %q", s, want)
		}
	}
	if d := time.Until(s.Retry); d < 119*time.Minute || d > 133*time.Minute {
		t.Errorf("the next attempt begins in %v, want two hours or a little more", d)
	}
	if s := status(t, m, "d.x.test", certs.StateFailed); !strings.Contains(s.String(), `issuer "third" is not configured: use one of first, second`) {
		t.Errorf("status = %v, want the issuers there are", s)
	}
	if got := w.acme.Orders(); got != 1 {
		t.Errorf("%d orders at the first authority, want no more than the one that it refused", got)
	}
	if got := metric(t, reg, "sluice_certs_issuer_resumes_timestamp_seconds", "first"); time.Until(time.Unix(int64(got), 0)) < 119*time.Minute {
		t.Errorf("sluice_certs_issuer_resumes_timestamp_seconds = %v, want two hours from now", got)
	}
}

// A limit that is about one domain leaves the others alone, and one that came
// as a web page counts too.
func TestScopeOfRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.acme.Refuse(&certstest.Refusal{Status: http.StatusTooManyRequests, RetryAfter: "3600", Problem: "rateLimited",
		Detail: `too many certificates (5) already issued for "a.x.test"`})
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"})
	status(t, m, "a.x.test", certs.StateFailed)
	w.acme.Refuse(nil)
	m.SetDomains([]certs.Domain{{Name: "*.a.x.test"}, {Name: "b.x.test"}})
	status(t, m, "b.x.test", certs.StateObtained)
	status(t, m, "*.a.x.test", certs.StateFailed)
	w.acme.Refuse(&certstest.Refusal{Status: http.StatusServiceUnavailable, RetryAfter: "600", Detail: "<html>busy</html>"})
	m.SetDomains([]certs.Domain{{Name: "c.x.test"}})
	if d := time.Until(status(t, m, "c.x.test", certs.StateFailed).Retry); d < 9*time.Minute || d > 12*time.Minute {
		t.Errorf("the next attempt begins in %v, want ten minutes", d)
	}
}

// The cluster's own budget holds, and what is over it is said in words.
func TestOwnBudget(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.Issuers[0].Orders = certs.Budget{Count: 2, Window: 24 * time.Hour}
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"}, certs.Domain{Name: "b.x.test"}, certs.Domain{Name: "c.x.test"})
	var said string
	eventually(t, "two certificates and a refusal", func() bool {
		obtained := 0
		for _, s := range m.Statuses() {
			if s.State == certs.StateObtained {
				obtained++
			} else if s.State == certs.StateFailed {
				said = s.String()
			}
		}
		return obtained == 2 && said != ""
	})
	if !strings.Contains(said, "the cluster's own limit of 2 orders in 24h0m0s is used up") {
		t.Errorf("status = %s, want the limit", said)
	}
}

// An account is bound to another one where the authority wants that; orders ask
// for a profile; of the chains that are offered the preferred one is served, if
// it leads where it should.
func TestBindingProfileAndChain(t *testing.T) {
	t.Parallel()
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	opt := certstest.ACMEOptions{
		EAB: map[string]string{"kid-1": key}, Alternates: 2,
		Profiles: map[string]time.Duration{"classic": 90 * 24 * time.Hour, "shortlived": 6 * 24 * time.Hour},
	}
	w := newWorld(t, opt)
	alternate := w.acme.Alternate(t, 1)
	issuer := &w.cfg.Issuers[0]
	issuer.Profile, issuer.Roots, issuer.PreferredChains = "shortlived", alternate.File, []string{"nobody", alternate.Name}
	m, stop := w.start(t, certs.Domain{Name: "a.x.test"})
	s := status(t, m, "a.x.test", certs.StateFailed)
	if !strings.Contains(s.String(), "externalAccountBinding") {
		t.Errorf("status without a binding = %v, want the authority's words", s)
	}
	stop()
	issuer.EABKeyID, issuer.EABKey = "kid-1", dns.Secret(key)
	m, stop = w.start(t, certs.Domain{Name: "a.x.test"})
	s = status(t, m, "a.x.test", certs.StateObtained)
	if d := time.Until(s.NotAfter); d > 6*24*time.Hour {
		t.Errorf("the certificate holds for %v, want the six days of the profile", d)
	}
	if got := w.acme.LastOrder().Profile; got != "shortlived" {
		t.Errorf("the order asked for profile %q", got)
	}
	mustGet(t, m, "a.x.test", alternate.Roots)
	stop()

	// Another chain's root: the certificate would not be believed, and is not used.
	issuer.PreferredChains = nil
	m, stop = w.start(t, certs.Domain{Name: "b.x.test"})
	s = status(t, m, "b.x.test", certs.StateFailed)
	if !strings.Contains(s.String(), "has issued is not used: x509: certificate signed by unknown authority") {
		t.Errorf("status = %v, want that nobody would believe it", s)
	}
	stop()
	issuer.Profile, issuer.Roots = "longlived", ""
	m, _ = w.start(t, certs.Domain{Name: "b.x.test"})
	eventually(t, "words about the profile that there is not", func() bool {
		s, _ := m.Status("b.x.test")
		return s.State == certs.StateFailed && strings.Contains(s.String(), "'longlived'")
	})
}

// The authority says when to renew, and is told what is replaced; an account
// that it has lost is made anew.
func TestRenewalInformation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{RenewalPoll: time.Second})
	w.cfg.CheckEvery = time.Second
	m, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	status(t, m, "*.x.test", certs.StateObtained)
	first := mustGet(t, m, "a.x.test", w.acme.Roots)
	if got := w.acme.LastOrder().Replaces; got != "" {
		t.Errorf("the first order replaces %q", got)
	}
	w.acme.Renew(t, first.Leaf, time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
	eventually(t, "another certificate", func() bool {
		return !mustGet(t, m, "a.x.test", w.acme.Roots).Leaf.Equal(first.Leaf)
	})
	if got := w.acme.LastOrder().Replaces; got == "" {
		t.Error("the order for a renewal does not say what it replaces")
	}
}

// An authority that was set up anew knows neither the account nor the
// certificate that is to be replaced.
func TestAuthoritySetUpAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{Validity: 15 * time.Second})
	w.cfg.CheckEvery = time.Second
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"})
	status(t, m, "a.x.test", certs.StateObtained)
	first := mustGet(t, m, "a.x.test", w.acme.Roots)
	roots := w.acme.Reset(t)
	eventually(t, "a certificate of the new authority", func() bool {
		cert, err := m.GetCertificate(hello("a.x.test"))
		return err == nil && !cert.Leaf.Equal(first.Leaf) && verify(cert, "a.x.test", roots) == nil
	})
}

// No account is stored without its key.
func TestAccountIsOneFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.Issuers[0].Email = "ops@x.test"
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"}, certs.Domain{Name: "b.x.test"})
	status(t, m, "a.x.test", certs.StateObtained)
	status(t, m, "b.x.test", certs.StateObtained)
	files, err := w.store.List(t.Context(), "users", true)
	files = slices.DeleteFunc(files, func(key string) bool { return !strings.HasSuffix(key, ".json") && !strings.HasSuffix(key, ".key") })
	if err != nil || len(files) != 1 || path.Base(files[0]) != "ops@x.test.json" {
		t.Fatalf("accounts: %q, %v, want one", files, err)
	}
}
