package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestDNSResult(t *testing.T) {
	good := &dnsResult{Nodes: 3, TTL: 5, Seconds: 3, Views: 60,
		Faults: []dnsFault{{Kind: "kill", From: 0, To: 1, Out: 5, Back: 4}, {Kind: "freeze", From: 1, To: 3, Out: 10, Back: 10}},
		Kept:   connections{Made: 100, Failed: 1, Share: []float64{0, 0.02, 0}}, Plain: connections{Made: 100, Failed: 9, Share: []float64{0, 0.3, 1}}}
	for _, b := range good.bars() {
		if !b.met {
			t.Errorf("%+v is missed", b)
		}
	}
	if s := good.section(); !strings.Contains(s, "1 of 100, 1.00 %") || !strings.Contains(s, "60; 0; none") || len(good.failures()) != 0 {
		t.Errorf("failures %q, section:\n%s", good.failures(), s)
	}
	suffix, svg := good.picture()
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is no XML: %v", err)
		}
	}
	for _, part := range []string{"plain round robin: 9.00 % in all", "kept by sluice: 1.00 % in all", "freeze of node 0"} {
		if !strings.Contains(string(svg), part) || suffix != "-dns" {
			t.Errorf("the chart%s does not say %q", suffix, part)
		}
	}
	bad := &dnsResult{Faults: []dnsFault{{Kind: "kill", Out: 10.1, Back: 10.1}}, Empty: 1, Wrong: []string{"[192.0.2.9]"}, Touched: []string{"- mail"},
		Kept: connections{Made: 10, Failed: 5}, Plain: connections{Made: 10, Failed: 5}}
	for _, b := range bad.bars() {
		if b.met {
			t.Errorf("%+v is met", b)
		}
	}
	if len((&dnsResult{}).failures()) != 1 {
		t.Error("a run without a failed connection is one")
	}
}

func TestDifferencesAreOfBothSides(t *testing.T) {
	if got := strings.Join(differences([]string{"a\tA 1", "b A 2"}, []string{"b A 2", "c A 3"}), "; "); got != "- a A 1; + c A 3" {
		t.Errorf("differences %q", got)
	}
}

func TestTalliesAreBySecond(t *testing.T) {
	tally := &tallies{began: time.Unix(100, 0)}
	for i, err := range []error{nil, errors.New("refused"), nil, nil} {
		tally.note(time.Unix(100, 0).Add(time.Duration(i)*700*time.Millisecond), err)
	}
	got := tally.result(3.5)
	if got.Made != 4 || got.Failed != 1 || len(got.Share) != 4 || got.Share[0] != 0.5 || got.Share[1] != 0 {
		t.Errorf("tallies are %+v", got)
	}
}
