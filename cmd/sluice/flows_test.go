package main

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/api"
)

func TestShortForms(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0B", 999: "999B", 1000: "1.0KB", 1050: "1.1KB", 9949: "9.9KB", 9999: "10KB", 99999: "100KB", 999499: "999KB",
		999500: "1.0MB", 12345678: "12MB", 5e9: "5.0GB", 1e18: "1.0EB", 9e18: "9.0EB",
	} {
		if got := shortBytes(n); got != want {
			t.Errorf("%v bytes are written %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 3599 * time.Second: "59m59s", time.Hour: "1h00m",
		24*time.Hour - time.Second: "23h59m", 49 * time.Hour: "2d01h",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}

func reading(id uint64, env string, age float64, up, down int64) api.Flow {
	return api.Flow{
		ID: id, Proto: "tcp", Listener: "tcp/20022", Client: netip.MustParseAddrPort("203.0.113.7:1000"), Env: env,
		Since: time.Unix(int64(100-age), 0), Age: age, Up: up, Down: down,
	}
}

func TestRatesComeFromTwoReadings(t *testing.T) {
	before := []api.Flow{reading(1, "a", 10, 1000, 0), reading(2, "b", 5, 0, 500), reading(3, "a", 1, 1, 1)}
	now := []api.Flow{reading(2, "b", 7, 0, 600), reading(1, "a", 12, 1800, 20), reading(4, "b", .5, 100, 100)}
	flows := measure(before, now, true)
	rates := map[uint64][2]float64{}
	for _, f := range flows {
		rates[f.ID] = [2]float64{f.UpRate, f.DownRate}
	}
	if diff := cmp.Diff(map[uint64][2]float64{1: {400, 10}, 2: {0, 50}, 4: {200, 200}}, rates); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
	for order, want := range map[string][]uint64{"rate": {1, 4, 2}, "bytes": {1, 2, 4}, "age": {1, 2, 4}} {
		slices.SortStableFunc(flows, flowOrders[order])
		var got []uint64
		for _, f := range flows {
			got = append(got, f.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %s: %v, want %v", order, got, want)
		}
	}
	want := []group{
		{By: "env", Name: "b", Flows: 2, UpRate: 200, DownRate: 250},
		{By: "env", Name: "a", Flows: 1, UpRate: 400, DownRate: 10},
	}
	if diff := cmp.Diff(want, groupBy("env", flows)); diff != "" {
		t.Errorf("environments (-want +got):\n%s", diff)
	}
	for _, f := range measure(before, now, false) {
		if f.rate() != 0 {
			t.Errorf("flow %d has a rate of one reading", f.ID)
		}
	}
}

// TestTablesHoldNoControls lists what a node of another version may let through.
func TestTablesHoldNoControls(t *testing.T) {
	f := reading(1, "a\x1b[2J\t\u202e\xffé", 1, 0, 0)
	f.Service = "x\ny"
	var flows, mappings strings.Builder
	writeFlows(&flows, []measuredFlow{{Flow: f}}, false)
	writeMappings(&mappings, []measuredMapping{{Mapping: api.Mapping{Proto: "tcp", Port: 1, Env: f.Env, Service: f.Service}}}, false)
	for _, table := range []string{flows.String(), mappings.String()} {
		if want := `\x1b[2J\t\u202e\xffé/x\ny`; !strings.Contains(table, want) || strings.Count(table, "\n") != 2 {
			t.Errorf("there is no %s in its row of\n%q", want, table)
		}
	}
}

func TestMappingsAreReadable(t *testing.T) {
	all := []measuredMapping{{Mapping: api.Mapping{
		Proto: "tcp", Port: 20022, Backend: "a:22", HTTP: "a:80", Verdict: "applied@412",
		Targets:     []api.Target{{Address: "a:22", Health: "up"}, {Address: "b:22", Health: "down"}, {Address: "c:22", Health: "up"}},
		HTTPTargets: []api.Target{{Address: "a:80"}},
	}}, {Mapping: api.Mapping{Proto: "udp", Port: 53, Backend: "d:53", Verdict: "degraded: port_busy: :53 is in use by x: y (applied@1)", Env: "e"}}}
	var out strings.Builder
	o := listOptions{}
	if err := o.write(&out, len(all), nil, func(w io.Writer, n int) { writeMappings(w, all[:n], false) }); err != nil {
		t.Fatal(err)
	}
	want := `MAPPING    STATE                 BACKEND            ENV/SERVICE  FLOWS  STARTED  REFUSED  UNREACHABLE  UP  DOWN
tcp/20022  applied, 1 of 3 down  a:22 +2 http:a:80  -            0      0        0        0            0B  0B
udp/53     degraded: port_busy   d:53               e/           0      0        0        0            0B  0B
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for verdict, want := range map[string]string{
		"":                       "-",
		"applied@9: all is well": "applied",
		"degraded: expired: put a later time (applied@1)":                                                   "expired",
		"degraded: backend_unresolved: backend: web does not resolve: no such host; correct it (applied@1)": "degraded: backend_unresolved",
		"degraded: backend_loop: backend.targets[0].address: web:22 is this very port (applied@1)":          "degraded: backend_loop",
		`refused: idle_timeout: "10" is not a duration (last good @398 stays in force)`:                     "edit refused",
	} {
		if got := shortVerdict(verdict); got != want {
			t.Errorf("%q is %q in short, want %q", verdict, got, want)
		}
	}
}

func TestTopIsReadable(t *testing.T) {
	flows := measure([]api.Flow{reading(1, "a", 10, 1000, 0)}, []api.Flow{reading(1, "a", 12, 5000, 0), reading(2, "", 1, 0, 10)}, true)
	var out strings.Builder
	if err := writeTop(&out, flows, []string{"flow", "env"}, listOptions{limit: 1}); err != nil {
		t.Fatal(err)
	}
	want := `ID  PROTO  LISTENER   CLIENT            BACKEND  ENV/SERVICE  AGE  UP     DOWN  UP/S   DOWN/S
1   tcp    tcp/20022  203.0.113.7:1000  -        a/           12s  5.0KB  0B    2.0KB  0B

ENV  FLOWS  UP/S   DOWN/S
a    1      2.0KB  0B
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
