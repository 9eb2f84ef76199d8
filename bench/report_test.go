package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func exampleResult() *result {
	return &result{
		Time:       time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		Machine:    machine{CPU: "A & B <CPU>", Cores: 2, Revision: "abc1234"},
		Contenders: []string{"nginx", "sluice"},
		Versions:   map[string]string{"nginx": "nginx/1.22.1"},
		Rest:       map[string]float64{"sluice": 1.5},
		Rows: []rowResult{{
			Name: "h1", Title: "HTTP/1.1 clear", Cost: "µs/req", Rate: "req/s",
			Rounds: []map[string]sample{
				{"nginx": {Cost: 10, Rate: 1000, P50: 500, P99: 2500}, "sluice": {Cost: 12, Rate: 900, P50: 600, P99: 3000}},
				{"nginx": {Cost: 20, Rate: 3000, P50: 700, P99: 2700}, "sluice": {Cost: 10, Rate: 800, P50: 600, P99: 3000}},
				{"nginx": {Cost: 12, Rate: 2000, P50: 600, P99: 2600}, "sluice": {Cost: 12, Rate: 700, P50: 600, P99: 3000}},
			},
		}, {
			Name: "bulk", Title: "TCP bulk", Cost: "ms/Gbit", Rate: "Gbit/s",
			Rounds: []map[string]sample{{"nginx": {Cost: 71, Rate: 9.5}, "sluice": {Cost: 17.75, Rate: 20}}},
		}},
	}
}

func TestTable(t *testing.T) {
	want := `
| work           | contender |          CPU | ratio to nginx | (least–greatest) |        rate |    p50 |     p99 | p99 ratio |
| -------------- | --------- | -----------: | -------------: | ---------------: | ----------: | -----: | ------: | --------: |
| HTTP/1.1 clear | nginx     |  12.0 µs/req |          1.00× |    (1.00×–1.00×) |  2000 req/s | 600 µs | 2.60 ms |     1.00× |
|                | sluice    |  12.0 µs/req |          1.00× |    (0.50×–1.20×) |   800 req/s | 600 µs | 3.00 ms |     1.15× |
| TCP bulk       | nginx     | 71.0 ms/Gbit |          1.00× |    (1.00×–1.00×) | 9.50 Gbit/s |      – |       – |         – |
|                | sluice    | 17.8 ms/Gbit |          0.25× |    (0.25×–0.25×) | 20.0 Gbit/s |      – |       – |         – |
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), exampleResult().table()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestFailuresAreShownAndReturned(t *testing.T) {
	r := exampleResult()
	if err := r.failure(); err != nil {
		t.Errorf("failure = %v, want none", err)
	}
	r.Rows[0].Rounds[1]["sluice"] = sample{Error: "3 requests failed"}
	r.Rows[1].Rounds[0]["nginx"] = sample{Cost: 1, TLS: "TLSv1.2 A"}
	r.Rows[1].Rounds[0]["sluice"] = sample{Cost: 1, TLS: "TLSv1.3 B"}
	err := r.failure()
	for _, want := range []string{"h1: sluice in round 2: 3 requests failed", "bulk: contenders did not use the same cryptography"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("failure = %v, want %q", err, want)
		}
		if !strings.Contains(r.summary(), want) {
			t.Errorf("summary lacks %q:\n%s", want, r.summary())
		}
	}
	if n := strings.Count(r.table(), "**FAILED**"); n != 2 {
		t.Errorf("%d rows are marked, want 2:\n%s", n, r.table())
	}
	// The failed sample is in no figure.
	lines := r.Rows[0].lines(r.Contenders, reference)
	if got := lines[1]; got.rounds != 2 || got.cost != 12 || got.ratio != (spread{1.1, 1, 1.2}) {
		t.Errorf("sluice's line = %+v, want two rounds", got)
	}
}

func TestRowWhereAllFailIsStillThere(t *testing.T) {
	r := exampleResult()
	r.Rows[1].Rounds[0] = map[string]sample{"nginx": {Error: "refused"}, "sluice": {Error: "refused"}}
	if got := r.table(); !strings.Contains(got, "TCP bulk **FAILED**") {
		t.Errorf("table hides the row:\n%s", got)
	}
	chart(r) // has nothing to divide by
}

func TestRatiosWithoutNginx(t *testing.T) {
	r := exampleResult()
	r.Contenders = []string{"sluice"}
	if got := r.table(); !strings.Contains(got, "ratio to sluice") || strings.Contains(got, "| nginx") {
		t.Errorf("table:\n%s", got)
	}
}

func TestChartIsReadableXML(t *testing.T) {
	r := exampleResult()
	r.Rows[0].Title = "<HTTP> & more"
	svg := chart(r)
	d := xml.NewDecoder(bytes.NewReader(svg))
	bars := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("chart is not XML: %v\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if want := 4 + 2; bars != want { // bars and the legend's
		t.Errorf("%d rectangles, want %d", bars, want)
	}
	for _, want := range []string{"&lt;HTTP&gt; &amp; more", "1.00× (0.50–1.20)", "0.25×", "lower is better"} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("chart lacks %q:\n%s", want, svg)
		}
	}
}

// Text needs a contrast of 4.5 and graphics one of 3 (WCAG 2.1, 1.4.3 and
// 1.4.11), here both to white and to black.
func TestChartColoursWorkOnWhiteAndBlack(t *testing.T) {
	check := func(colour string, least float64) {
		l := luminance(t, colour)
		if white, black := 1.05/(l+0.05), (l+0.05)/0.05; white < least || black < least {
			t.Errorf("%s has contrast %.2f to white and %.2f to black, want %.1f", colour, white, black, least)
		}
	}
	check(inkColour, 4.5)
	for _, c := range barColours() {
		check(c, 3)
	}
	check(colourOf("another"), 3)
}

func luminance(t *testing.T, colour string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(colour, "#"), 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	linear := func(b uint64) float64 {
		c := float64(b&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(n>>16) + 0.7152*linear(n>>8) + 0.0722*linear(n)
}

func TestPublish(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	r := exampleResult()
	r.Live = &liveResult{Mappings: 1000, Waited: []float64{0.5, 3, 1}, AtOnce: 1, Etcdctl: []float64{12, 13, 14}}
	var out bytes.Buffer
	if err := publish(r, dir, &out); err != nil {
		t.Fatal(err)
	}
	md, err := os.ReadFile(filepath.Join(dir, "2026-03-04-abc1234.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| HTTP/1.1 clear |", "(2026-03-04-abc1234.svg)", "A & B <CPU>", "nginx: nginx/1.22.1", "sluice at rest spends 1.5 ms",
		"3 puts with 1000 mappings present: p50 1.00 ms, p99 3.00 ms, longest 3.00 ms; 1 ports were open at the first attempt; etcdctl itself took 13 ms.",
		"| live: p99 from etcdctl put to an open port |",
	} {
		if !strings.Contains(string(md), want) {
			t.Errorf("report lacks %q:\n%s", want, md)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "2026-03-04-abc1234.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back result
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Rows, back.Rows); diff != "" {
		t.Errorf("raw rows (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "| HTTP/1.1 clear |") {
		t.Errorf("the table is not printed:\n%s", out.String())
	}
	if err := publish(r, "", &out); err != nil {
		t.Errorf("publish without a directory: %v", err)
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 53827: "53827", math.NaN(): "–"} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %q, want %q", v, got, want)
		}
	}
}
