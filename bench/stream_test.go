package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestStreamClient(t *testing.T) {
	e := runOrigin(t)
	w := newStreamClient(e, "HTTP/1.1", serviceHTTP)
	defer w.tr.CloseIdleConnections()
	for _, counts := range []bool{false, true, true} {
		if err := w.once(t.Context(), counts); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.First) != 2 || len(w.Later) != 2*(streamEvents-1) || w.First[0] <= 0 {
		t.Errorf("%d first and %d later events", len(w.First), len(w.Later))
	}
	for want, answer := range map[string]http.HandlerFunc{
		"502":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) },
		"without a time":  func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("data: now\n\n")) },
		"after 1 of 3 ev": func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("data: 1\n\n")) },
	} {
		w := newStreamClient(serveWeb(t, answer), "HTTP/2.0", serviceHTTPS)
		if err := w.once(t.Context(), true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("once = %v, want %q", err, want)
		}
		w.tr.CloseIdleConnections()
	}
}

func TestStreamResult(t *testing.T) {
	r := &streamResult{Streams: 2, Ways: []*streamWay{
		{Proto: "HTTP/1.1", First: []float64{100, 200}, Later: []float64{10, 20}},
		{Contender: "sluice", Proto: "HTTP/1.1", First: []float64{1100, 1200}, Later: []float64{300, 400}},
		{Contender: "nginx", Proto: "HTTP/2.0", First: []float64{50, 60}, Later: []float64{1, 2}},
		{Contender: "haproxy", Proto: "HTTP/2.0", Error: "refused"},
	}}
	for _, want := range []string{"| direct ", "1.15 ms | ", "1.00 ms", "-95 µs", "400 µs"} {
		if !strings.Contains(r.section(), want) {
			t.Errorf("section lacks %q:\n%s", want, r.section())
		}
	}
	if all := r.bars(); len(all) != 1 || !all[0].met {
		t.Errorf("bars = %+v, want one that is met", all)
	}
	r.Ways[1].First[0] += 5
	if all := r.bars(); all[0].met {
		t.Errorf("bars = %+v, want one that is missed", all)
	}
	if all := r.failures(); len(all) != 1 || !strings.Contains(all[0], "haproxy over HTTP/2.0: refused") {
		t.Errorf("failures = %q", all)
	}
}

func TestIdleWebResult(t *testing.T) {
	at := func(before, after int64) idleSample {
		return idleSample{Before: footprint{RSS: before << 20}, After: footprint{RSS: after << 20}}
	}
	r := &idleWebResult{Connections: 1024, Contenders: []string{"nginx", "sluice"}, Rounds: []map[string]idleSample{
		{"nginx": at(10, 100), "sluice": at(20, 140)}, {"nginx": at(10, 100), "sluice": at(20, 160)},
	}}
	for _, want := range []string{"| 1024 idle HTTPS connections |", "150 MB", "1.50×", "130 KB"} {
		if !strings.Contains(r.section(), want) {
			t.Errorf("section lacks %q:\n%s", want, r.section())
		}
	}
	if all := r.bars(); len(all) != 1 || !all[0].met {
		t.Errorf("bars = %+v, want one that is met", all)
	}
	r.Rounds[1]["sluice"] = idleSample{Error: "refused"}
	r.Rounds[0]["sluice"] = at(20, 151)
	if all := r.bars(); len(all) != 1 || all[0].met {
		t.Errorf("bars = %+v, want one that is missed", all)
	}
	if all := r.failures(); len(all) != 1 || !strings.Contains(all[0], "sluice in round 2: refused") {
		t.Errorf("failures = %q", all)
	}
}

// Idle connections are opened and asked again, each by itself.
func TestEachOf(t *testing.T) {
	e := serveWeb(t, answerOrigin)
	held := make([]asker, 40)
	if err := eachOf(held, func(a *asker) (err error) {
		*a, err = dialAskH1TLS(t.Context(), e, 1)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	held[7].close()
	err := eachOf(held, func(a *asker) error { return askOnce(*a) })
	if err == nil || !strings.Contains(err.Error(), "connection 8 of 40") {
		t.Errorf("with one closed: %v, want that it is named", err)
	}
	for _, a := range held {
		a.close()
	}
}
