package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, false, &out); err != nil {
		t.Fatalf("run -help: %v", err)
	}
	for _, want := range []string{"-contenders", "-rounds", "h2-16x16", "idle", "-quick"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("usage does not mention %s:\n%s", want, out.String())
		}
	}
}

func TestParseOptions(t *testing.T) {
	o, err := parseOptions([]string{"-contenders", "haproxy,sluice", "-rows", "bulk,live,h1", "-time", "1s"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.contenders) != 2 || o.contenders[0].name != "haproxy" || o.contenders[1].name != "sluice" {
		t.Errorf("contenders = %v, want haproxy and sluice", o.contenders)
	}
	if len(o.rows) != 2 || o.rows[0].name != "bulk" || o.rows[1].name != "h1" || len(o.studies) != 1 || o.studies[0].name != "live" {
		t.Errorf("rows = %v, studies = %v, want bulk, h1 and live", o.rows, o.studies)
	}
	if o.phases.main != time.Second {
		t.Errorf("time = %v, want 1s", o.phases.main)
	}
	all, err := parseOptions([]string{"-contenders", "nginx"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(all.rows) != len(allRows()) || slices.ContainsFunc(all.studies, func(s study) bool { return s.needs == judged }) {
		t.Errorf("without sluice: %d rows, studies %v; want all %d and no study of sluice", len(all.rows), all.studies, len(allRows()))
	}
}

// What is given counts, whatever -quick stands for.
func TestQuick(t *testing.T) {
	o, err := parseOptions([]string{"-quick", "-rounds", "3"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	usual, err := parseOptions(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 3 || o.size >= usual.size || o.edits >= usual.edits || o.phases.main >= usual.phases.main {
		t.Errorf("-quick -rounds 3: rounds %d, size %d, edits %d, time %v", o.rounds, o.size, o.edits, o.phases.main)
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"-contenders apache":           `"apache" is not known; there are nginx, haproxy, caddy, nginx-h3, baseline, sluice`,
		"-contenders nginx,nginx":      "named twice",
		"-rows h9":                     `"h9" is not known`,
		"-rows live -contenders nginx": "not among -contenders",
		"-baseline bin/old":            "need each other",
		"-contenders baseline,sluice":  "need each other",
		"-rounds 0":                    "at least 1",
		"-time 1ms":                    "at least 100ms",
		"-puts 20000":                  "at most 10000",
		"-size 60000":                  "from 1 to 50000",
		"-sessions 50 -size 40":        "a mapping of its own",
		"-envs 10001":                  "from 1 to 10000",
		"-relays 0":                    "at least 1",
		"-nonsense":                    "not defined",
		"sluice":                       "give flags only",
	} {
		_, err := parseOptions(strings.Fields(args), nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseOptions(%q) = %v, want an error with %q", args, err, want)
		}
	}
}

// Names are for people to type and go into results: once each, and complete.
func TestRowsAreWhole(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range allStudies() {
		if seen[s.name] || s.run == nil {
			t.Errorf("study %q is there twice, or does nothing", s.name)
		}
		seen[s.name] = true
	}
	for _, r := range allRows() {
		if seen[r.name] {
			t.Errorf("row %q is there twice", r.name)
		}
		seen[r.name] = true
		if r.title == "" || r.cost == "" || r.rate == "" || r.service == "" || (r.measure == nil) == (r.half == nil) {
			t.Errorf("row %q lacks something: %+v", r.name, r)
		}
	}
}
