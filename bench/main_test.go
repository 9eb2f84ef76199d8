package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, &out); err != nil {
		t.Fatalf("run -help: %v", err)
	}
	for _, want := range []string{"-contenders", "-rounds", "h2-16x16", liveRow} {
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
	if len(o.rows) != 2 || o.rows[0].name != "bulk" || o.rows[1].name != "h1" || !o.live {
		t.Errorf("rows = %v, live = %v, want bulk, h1 and live", o.rows, o.live)
	}
	if o.phases.main != time.Second {
		t.Errorf("time = %v, want 1s", o.phases.main)
	}
	all, err := parseOptions([]string{"-contenders", "nginx"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(all.rows) != len(allRows()) || all.live {
		t.Errorf("without sluice: %d rows, live %v; want all %d and no live", len(all.rows), all.live, len(allRows()))
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"-contenders apache":           `"apache" is not known; there are nginx, haproxy, sluice`,
		"-contenders nginx,nginx":      "named twice",
		"-rows h9":                     `"h9" is not known`,
		"-rows live -contenders nginx": "not among -contenders",
		"-rounds 0":                    "at least 1",
		"-time 1ms":                    "at least 100ms",
		"-puts 20000":                  "at most 10000",
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
	seen := map[string]bool{liveRow: true}
	for _, r := range allRows() {
		if seen[r.name] {
			t.Errorf("row %q is there twice", r.name)
		}
		seen[r.name] = true
		if r.title == "" || r.cost == "" || r.rate == "" || r.service == "" || r.measure == nil {
			t.Errorf("row %q lacks something: %+v", r.name, r)
		}
	}
}
