package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ocsp"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

// stapleNode is a node of a cluster that shares store, and stops with the test.
func stapleNode(t *testing.T, store *certstest.Store, name string, nodes ...string) (m *certs.Manager, reg *prometheus.Registry, stop func()) {
	t.Helper()
	reg = prometheus.NewPedanticRegistry()
	m, err := certs.New(certs.Config{
		Store: store, Node: name, Nodes: func(context.Context) ([]string, error) { return nodes, nil }, Registerer: reg,
		RetryMin: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, TurnEvery: 10 * time.Second,
		Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	// The name is wanted, so that it has a status.
	m.SetDomains([]certs.Domain{{Name: "a.x.test"}})
	return m, reg, run(t, m)
}

// bring stores a certificate of o, as an import does.
func bring(t *testing.T, store *certstest.Store, o *certstest.OCSP, must bool, names ...string) {
	t.Helper()
	chain, key := o.Issue(must, names...)
	s, err := certs.Import(names[0], chain, key, o.Roots)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.PutStored(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// stapled returns the response that handshakes for name get, verified; nil: none.
func stapled(t *testing.T, m *certs.Manager, o *certstest.OCSP, name string) *ocsp.Response {
	t.Helper()
	cert, err := m.GetCertificate(hello(name))
	if err != nil || cert.OCSPStaple == nil {
		return nil
	}
	r, err := ocsp.ParseResponseForCert(cert.OCSPStaple, cert.Leaf, o.Root)
	if err != nil {
		t.Fatalf("the stapled response of %s: %v", name, err)
	}
	return r
}

func TestStapleForThoseThatAskForIt(t *testing.T) {
	o, store := certstest.NewOCSP(t), certstest.NewStore()
	a, reg, stopA := stapleNode(t, store, "a", "a", "b")
	b, _, stopB := stapleNode(t, store, "b", "a", "b")
	bring(t, store, o, false, "plain.x.test")
	bring(t, store, o, true, "a.x.test", "other.x.test")
	for _, m := range []*certs.Manager{a, b} {
		for _, name := range []string{"a.x.test", "other.x.test"} {
			eventually(t, "a stapled response", func() bool { return stapled(t, m, o, name) != nil })
		}
		s, _ := m.Status("a.x.test")
		if s.Staple != nil {
			t.Errorf("status: %v", s)
		}
	}
	if n := o.Asked(); n != 1 {
		t.Errorf("the responder was asked %d times, want once for both nodes", n)
	}
	cert, err := a.GetCertificate(hello("plain.x.test"))
	if err != nil || cert.OCSPStaple != nil {
		t.Errorf("a certificate that does not ask for it: %v, stapled %x", err, cert.OCSPStaple)
	}
	if n := metric(t, reg, "sluice_certs_staples", "stapled"); n != 1 {
		t.Errorf("sluice_certs_staples{state=stapled} = %v, want 1", n)
	}

	// A client has it, by TLS.
	if got := clientStaple(t, a, "a.x.test", o.Roots); string(got) != string(stapled(t, a, o, "a.x.test").Raw) {
		t.Errorf("a client got %x", got)
	}

	// A node that starts has it at once, whoever is away.
	stopA()
	stopB()
	h := hello("a.x.test")
	if n := testing.AllocsPerRun(100, func() { a.GetCertificate(h) }); n != 0 {
		t.Errorf("%v allocations for a lookup, want 0", n)
	}
	o.Play(func(r *certstest.OCSPAnswer) { r.HTTPStatus = http.StatusServiceUnavailable })
	store.Fail(errors.New("etcd is away"))
	again, err := certs.New(certs.Config{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	if stapled(t, again, o, "a.x.test") == nil {
		t.Error("a node that starts serves without a response")
	}
}

// clientStaple returns what a TLS client gets stapled.
func clientStaple(t *testing.T, m *certs.Manager, name string, roots *x509.CertPool) []byte {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: m.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			err = c.(*tls.Conn).Handshake()
			c.Close()
		}
		served <- err
	}()
	c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return c.OCSPResponse()
}

// Whatever a responder answers that is not good for this certificate now is
// refused in words, and the node goes on asking.
func TestOCSPResponsesThatAreRefused(t *testing.T) {
	t.Parallel()
	o, store := certstest.NewOCSP(t), certstest.NewStore()
	stranger, strangerKey := certstest.NewOCSP(t).Responder(true)
	named, namedKey := o.Responder(true)
	other, otherKey := o.Responder(false)
	if asked := o.Asked(); asked != 0 {
		t.Fatalf("asked %d times before there is a certificate", asked)
	}
	m, reg, _ := stapleNode(t, store, "a", "a")
	o.Play(func(r *certstest.OCSPAnswer) { r.HTTPStatus = http.StatusInternalServerError })
	bring(t, store, o, true, "a.x.test")
	for _, tt := range []struct {
		what string
		play func(*certstest.OCSPAnswer)
		want string
	}{
		{"out of order", func(r *certstest.OCSPAnswer) { r.HTTPStatus = http.StatusBadGateway }, "the OCSP responder answers 502"},
		{"try later", func(r *certstest.OCSPAnswer) { r.Spoil = func([]byte) []byte { return ocsp.TryLaterErrorResponse } }, "the OCSP responder answers try later"},
		{"HTML", func(r *certstest.OCSPAnswer) { r.Spoil = func([]byte) []byte { return []byte("<html>") } }, "the OCSP response is not usable"},
		{"cut short", func(r *certstest.OCSPAnswer) { r.Spoil = func(b []byte) []byte { return b[:len(b)/2] } }, "the OCSP response is not usable"},
		{"altered", func(r *certstest.OCSPAnswer) { r.Spoil = func(b []byte) []byte { b[len(b)-5] ^= 1; return b } }, "the OCSP response is not usable"},
		{"endless", func(r *certstest.OCSPAnswer) { r.Spoil = func([]byte) []byte { return make([]byte, 1<<20) } }, "has more than 65536 bytes"},
		{"another certificate", func(r *certstest.OCSPAnswer) { r.SerialNumber = named.SerialNumber }, "no response matching"},
		{"unknown", func(r *certstest.OCSPAnswer) { r.Response.Status = ocsp.Unknown }, "does not know the certificate"},
		{"expired", func(r *certstest.OCSPAnswer) { r.NextUpdate = time.Now().Add(-time.Second) }, "has expired at"},
		{"without an end", func(r *certstest.OCSPAnswer) { r.NextUpdate = time.Time{} }, "does not say until when"},
		{"of the future", func(r *certstest.OCSPAnswer) { r.ThisUpdate = time.Now().Add(30 * time.Minute) }, "in the future"},
		{"by a responder of another authority", func(r *certstest.OCSPAnswer) { r.By, r.Key = stranger, strangerKey }, "bad OCSP signature"},
		{"by one that is not named", func(r *certstest.OCSPAnswer) { r.By, r.Key = other, otherKey }, "has not named for that"},
	} {
		o.Play(tt.play)
		eventually(t, tt.what+" to be refused", func() bool {
			s, _ := m.Status("a.x.test")
			return s.Staple != nil && strings.Contains(s.String(), tt.want) && s.Trouble()
		})
		if r := stapled(t, m, o, "a.x.test"); r != nil {
			t.Fatalf("%s: a response is stapled", tt.what)
		}
	}
	if n := metric(t, reg, "sluice_certs_staples", "missing"); n != 1 {
		t.Errorf("sluice_certs_staples{state=missing} = %v, want 1", n)
	}
	o.Play(func(r *certstest.OCSPAnswer) { r.By, r.Key = named, namedKey })
	eventually(t, "the response of a responder that the authority has named", func() bool { return stapled(t, m, o, "a.x.test") != nil })
	if s, _ := m.Status("a.x.test"); s.Staple != nil {
		t.Errorf("status: %v", s)
	}
	if n := metric(t, reg, "sluice_certs_staple_fetches_total", "failed"); n < 1 {
		t.Errorf("sluice_certs_staple_fetches_total{result=failed} = %v", n)
	}
}

// A response is fetched anew at half its life, stays while the responder is away,
// and goes when it has expired; then a good one is served again.
func TestStapleThroughItsLife(t *testing.T) {
	t.Parallel()
	o, store := certstest.NewOCSP(t), certstest.NewStore()
	m, _, _ := stapleNode(t, store, "a", "a")
	short := func(r *certstest.OCSPAnswer) {
		r.ThisUpdate = time.Now().Truncate(time.Second)
		r.NextUpdate = r.ThisUpdate.Add(6 * time.Second)
	}
	o.Play(short)
	bring(t, store, o, true, "a.x.test")
	var first *ocsp.Response
	eventually(t, "a response", func() bool { first = stapled(t, m, o, "a.x.test"); return first != nil })
	eventually(t, "a newer one while the first still holds", func() bool {
		now := stapled(t, m, o, "a.x.test")
		return now != nil && now.ThisUpdate.After(first.ThisUpdate)
	})
	o.Play(func(r *certstest.OCSPAnswer) { r.HTTPStatus = http.StatusServiceUnavailable })
	eventually(t, "the last good one to stay, and trouble to be told", func() bool {
		s, _ := m.Status("a.x.test")
		return s.Staple != nil && strings.Contains(s.Staple.Error(), "which is stapled until") && stapled(t, m, o, "a.x.test") != nil
	})
	eventually(t, "it to go when it has expired", func() bool { return stapled(t, m, o, "a.x.test") == nil })
	eventually(t, "that to be told", func() bool {
		s, _ := m.Status("a.x.test")
		return strings.Contains(s.String(), "it requires a stapled OCSP response and there is none")
	})
	o.Play(nil)
	eventually(t, "a good one again", func() bool { return stapled(t, m, o, "a.x.test") != nil })
}

func TestStapleOfARevokedCertificate(t *testing.T) {
	t.Parallel()
	o, store := certstest.NewOCSP(t), certstest.NewStore()
	m, reg, _ := stapleNode(t, store, "a", "a")
	b, _, _ := stapleNode(t, store, "b", "a") // it is not among those that live: its turn is later
	o.Play(func(r *certstest.OCSPAnswer) {
		r.ThisUpdate, r.NextUpdate = time.Now().Add(-31*time.Minute), time.Now().Add(30*time.Minute)
	})
	bring(t, store, o, true, "a.x.test")
	eventually(t, "a response", func() bool { return stapled(t, m, o, "a.x.test") != nil })
	o.Play(func(r *certstest.OCSPAnswer) {
		r.Response.Status, r.RevokedAt, r.RevocationReason = ocsp.Revoked, time.Now(), ocsp.KeyCompromise
	})
	// It is past half of its life, but is not asked for again at once; by a node
	// that starts it is.
	c, _, _ := stapleNode(t, store, "a", "a")
	for _, n := range []*certs.Manager{c, m, b} {
		eventually(t, "all nodes to say that it is revoked", func() bool {
			s, _ := n.Status("a.x.test")
			return strings.Contains(s.String(), "its authority has revoked it at") && s.Trouble()
		})
		if r := stapled(t, n, o, "a.x.test"); r == nil || r.Status != ocsp.Good {
			t.Errorf("stapled: %v, want the last good response", r)
		}
	}
	if n := metric(t, reg, "sluice_certs_staples", "revoked"); n != 1 {
		t.Errorf("sluice_certs_staples{state=revoked} = %v, want 1", n)
	}
	// Its successor has a response of its own, and what was shared goes with the last.
	o.Play(nil)
	bring(t, store, o, true, "a.x.test")
	eventually(t, "the successor with its response", func() bool {
		s, _ := b.Status("a.x.test")
		return s.Staple == nil && stapled(t, b, o, "a.x.test") != nil
	})
	bring(t, store, o, false, "a.x.test")
	eventually(t, "the shared response to be deleted", func() bool {
		_, there := store.Peek("shared/ocsp/imported/a.x.test")
		return !there && stapled(t, m, o, "a.x.test") == nil
	})
}

// A certificate that needs a response is served once it has it, while another one
// still is there.
func TestStapleBeforeASuccessorIsServed(t *testing.T) {
	t.Parallel()
	o, store := certstest.NewOCSP(t), certstest.NewStore()
	m, _, _ := stapleNode(t, store, "a", "a")
	bring(t, store, o, true, "a.x.test")
	eventually(t, "a response", func() bool { return stapled(t, m, o, "a.x.test") != nil })
	before, err := m.GetCertificate(hello("a.x.test"))
	if err != nil {
		t.Fatal(err)
	}
	o.Play(func(r *certstest.OCSPAnswer) { r.HTTPStatus = http.StatusServiceUnavailable })
	bring(t, store, o, true, "a.x.test")
	eventually(t, "the successor's first failure", func() bool { s, _ := m.Status("a.x.test"); return s.Staple != nil })
	if now, err := m.GetCertificate(hello("a.x.test")); err != nil || now != before {
		t.Errorf("the successor is served without a response: %v", err)
	}
	o.Play(nil)
	eventually(t, "the successor, stapled", func() bool {
		now, err := m.GetCertificate(hello("a.x.test"))
		if err != nil || now.OCSPStaple == nil {
			t.Fatalf("served without a response in between: %v", err)
		}
		return !now.Leaf.Equal(before.Leaf)
	})
}
