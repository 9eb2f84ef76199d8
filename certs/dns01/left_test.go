package dns01_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

// A node dies with its record in place. The next attempt for the same
// certificate deletes it, that for another certificate with the same challenge
// name does not: it may be under way.
func TestRecordOfADeadNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	wildcard, apex := dns01.WithCertificate(t.Context(), "*.x.test"), dns01.WithCertificate(t.Context(), "x.test")
	dead := w.solver(t).For("knot")
	left := challenge("x.test", "left")
	if err := dead.Present(wildcard, left); err != nil {
		t.Fatal(err)
	}
	w.cfg.Registerer = nil
	next := w.solver(t).For("knot")
	other, again := challenge("x.test", "other"), challenge("x.test", "again")
	if err := next.Present(apex, other); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", left.DNS01KeyAuthorization(), other.DNS01KeyAuthorization())
	if err := next.Present(wildcard, again); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", again.DNS01KeyAuthorization(), other.DNS01KeyAuthorization())
	// Both at once, as a second order does before the first is cleaned up.
	if err := next.Present(wildcard, challenge("x.test", "third")); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", again.DNS01KeyAuthorization(), other.DNS01KeyAuthorization(),
		challenge("x.test", "third").DNS01KeyAuthorization())
	for _, ch := range []string{"other", "again", "third"} {
		if err := next.CleanUp(t.Context(), challenge("x.test", ch)); err != nil {
			t.Fatal(err)
		}
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
}

// Nobody asks for the certificate again: Run deletes the record once it is old.
func TestOldRecordIsSwept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.cfg.Stale = time.Nanosecond
	dead := w.solver(t)
	if err := dead.For("knot").Present(t.Context(), challenge("x.test", "left")); err != nil {
		t.Fatal(err)
	}
	dead.Sweep(t.Context()) // its own, in use
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", challenge("x.test", "left").DNS01KeyAuthorization())
	w.cfg.Registerer = nil
	w.solver(t).Sweep(t.Context())
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
	w.log.has(t, "deleted a challenge record that was left behind")
	if notes, err := w.cfg.Memory.List(t.Context(), "challenges/_acme-challenge.x.test", false); err == nil && len(notes) > 0 {
		t.Errorf("notes are left: %q", notes)
	}
}

// The clock of the node that died was ahead: its record goes once another node has
// known of it for as long.
func TestRecordByAClockAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	const key = "challenges/_acme-challenge.x.test/ahead"
	const text = `{"record":"_acme-challenge.x.test.","zone":"x.test.","value":"v1","provider":"knot","since":"2100-01-01T00:00:00Z"}`
	if err := w.cfg.Memory.Store(t.Context(), key, []byte(text)); err != nil {
		t.Fatal(err)
	}
	w.solver(t).Sweep(t.Context())
	if _, err := w.cfg.Memory.Load(t.Context(), key); err != nil {
		t.Errorf("it is gone at once, and may be of a node at work: %v", err)
	}
	w.cfg.Registerer, w.cfg.Stale = nil, time.Nanosecond
	s := w.solver(t)
	s.Sweep(t.Context())
	s.Sweep(t.Context())
	if _, err := w.cfg.Memory.Load(t.Context(), key); err == nil {
		t.Error("the note stays")
	}
	w.log.has(t, "deleted a challenge record that was left behind")
}

// A record whose deletion fails stays noted, and goes when that works again.
func TestDeletionFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.cfg.Stale = time.Nanosecond
	s := w.solver(t)
	c := s.For("knot")
	ch := challenge("x.test", "tok")
	meet(t, c, ch)
	w.servers[0].RefuseUpdates(func(string) bool { return true })
	err := c.CleanUp(t.Context(), ch)
	if err == nil || !strings.Contains(err.Error(), "delete TXT record _acme-challenge from zone x.test.") {
		t.Errorf("error = %v, want the provider's", err)
	}
	s.Sweep(t.Context())
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", ch.DNS01KeyAuthorization())
	w.servers[0].RefuseUpdates(nil)
	s.Sweep(t.Context())
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
	if n := w.metric(t, "sluice_certs_challenges_left_total"); n != 1 {
		t.Errorf("sluice_certs_challenges_left_total = %v, want 1", n)
	}
	if n := w.metric(t, "sluice_certs_challenges_swept_total"); n != 1 {
		t.Errorf("sluice_certs_challenges_swept_total = %v, want 1", n)
	}
}

// Notes that are no notes, or of a provider that is gone, are told of.
func TestStrangeNotes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	const dir = "challenges/_acme-challenge.x.test/"
	for key, text := range map[string]string{
		dir + "torn": `{"record":`,
		dir + "gone": `{"record":"_acme-challenge.x.test.","zone":"x.test.","value":"v1","provider":"sold","since":"2026-01-01T00:00:00Z"}`,
	} {
		if err := w.cfg.Memory.Store(t.Context(), key, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	w.solver(t).Sweep(t.Context())
	w.log.has(t, "a note about a challenge record cannot be read", "delete it by hand", "value=v1")
	if _, err := w.cfg.Memory.Load(t.Context(), dir+"gone"); err == nil {
		t.Error("the note about a provider that is gone stays")
	}
}

// told remembers what checks came to.
type told struct {
	mu  sync.Mutex
	all map[string]error
}

func (c *told) checked(provider, zone string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[provider+" "+zone] = err
}

func (c *told) of(key string) (error, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err, ok := c.all[key]
	return err, ok
}

// Providers are checked with the zones of the names that use them and those that
// they list, before any order, and change nothing.
func TestProvidersAreChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.servers[0].AddZone("y.test.")
	w.servers[0].RefuseUpdates(func(name string) bool { return strings.HasSuffix(name, ".y.test.") })
	wrong := entry(w.servers[0])
	wrong.Settings["key"] = "d3Jvbmc="
	w.cfg.Providers = providers(t, map[string]dns.Config{
		"knot": entry(w.servers[0]), "wrong": wrong, "idle": entry(w.servers[0]), "listed": entry(w.servers[0], "y.test"),
	})
	c := &told{all: map[string]error{}}
	w.cfg.Checked = c.checked
	s := w.solver(t)
	s.SetNames(map[string]string{"*.x.test": "knot", "a.x.test": "knot", "b.x.test": "wrong", "unknown.example": "knot"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for key, want := range map[string]string{
		"knot x.test.":   "",
		"wrong x.test.":  "dns provider wrong (rfc2136): look for TXT record _acme-challenge.b in zone x.test.: dns: bad authentication",
		"listed y.test.": "does not let key edge-key. update zone y.test.",
	} {
		eventually(t, "the check of "+key, func() bool { _, ok := c.of(key); return ok })
		if err, _ := c.of(key); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error = %v, want %q", key, err, want)
		}
	}
	if _, ok := c.of("idle x.test."); ok {
		t.Error("a provider that nobody uses was checked")
	}
	eventually(t, "the metric", func() bool { return w.metric(t, "sluice_dns_provider_usable") == 1 })
	w.log.has(t, "a DNS provider cannot be used", "a DNS provider may be used")
	// A name that joins is checked at once.
	s.SetNames(map[string]string{"c.x.test": "idle"})
	eventually(t, "the check of the next name", func() bool { _, ok := c.of("idle x.test."); return ok })
	// By the time of a further check the round of that one is over.
	w.servers[0].AddZone("z.test.")
	s.SetNames(map[string]string{"c.x.test": "idle", "z.test": "knot"})
	eventually(t, "the check of the next zone", func() bool { _, ok := c.of("knot z.test."); return ok })
	updates := 0
	for _, q := range w.servers[0].Log() {
		if q.Op == "UPDATE" && q.Name == "y.test." {
			updates++
		}
	}
	if updates != 1 {
		t.Errorf("y.test. was checked %d times, want once: names that join elsewhere are no reason", updates)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
}
