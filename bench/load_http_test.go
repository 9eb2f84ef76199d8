package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const h2loadTLSOutput = `starting benchmark...
spawning thread #0: 16 total client(s). Timing-based test with 0s of warm-up time and 1.5s of main duration for measurements.
progress: 100% of clients started
TLS Protocol: TLSv1.3
Cipher: TLS_AES_128_GCM_SHA256
Server Temp Key: X25519 253 bits
Application protocol: h2
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 1.50s, 176513.33 req/s, 12.12MB/s
requests: 2000 total, 2256 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2001 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 18.18MB (19064224) total, 12.12MB (12708960) headers (space savings 51.02%), 1.95MB (2049024) data
                     min         max         mean         sd        +/- sd
time for request:       20us      4.52ms      1.39ms       191us    97.29%
`

func TestParseH2load(t *testing.T) {
	got, err := parseH2load([]byte(h2loadTLSOutput))
	if err != nil {
		t.Fatal(err)
	}
	want := h2loadSummary{alpn: "h2", tls: "TLSv1.3 TLS_AES_128_GCM_SHA256", succeeded: 2000, data: 2049024}
	if got != want {
		t.Errorf("parseH2load = %+v, want %+v", got, want)
	}
	if err := got.check("h2", bodySize); err != nil {
		t.Errorf("check: %v", err)
	}
	if _, err := parseH2load([]byte("h2load: option requires an argument")); err == nil {
		t.Error("parseH2load of no summary: no error")
	}
}

func TestCheckRefusesRunsWithFailures(t *testing.T) {
	for change, want := range map[[2]string]string{
		{"protocol: h2\n", "protocol: http/1.1\n"}:       `spoke "http/1.1"`,
		{"0 failed, 0 errored", "3 failed, 4 errored"}:   "7 requests failed",
		{"0 errored, 0 timeout", "0 errored, 1 timeout"}: "1 requests failed",
		{"0 4xx", "12 4xx"}:                              "12 of 2000 responses",
		{"0 5xx", "9 5xx"}:                               "9 of 2000 responses",
		{"0 3xx", "1 3xx"}:                               "1 of 2000 responses",
		{"(2049024) data", "(2047999) data"}:             "too short",
	} {
		out := strings.Replace(h2loadTLSOutput, change[0], change[1], 1)
		if out == h2loadTLSOutput {
			t.Fatalf("%q is not in the output", change[0])
		}
		sum, err := parseH2load([]byte(out))
		if err != nil {
			t.Errorf("%q: %v", change[1], err)
			continue
		}
		if err := sum.check("h2", bodySize); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: check = %v, want %q", change[1], err, want)
		}
	}
}

func TestReadH2loadLogCountsWhatEndsInTheWindow(t *testing.T) {
	log := "1000\t200\t500\n" + // ends before
		"1000\t200\t1000\n" + // ends with the window's first instant
		"2500\t204\t300\n" +
		"2900\t200\t99\n" +
		"2900\t200\t100\n" // ends with the first instant after
	got, err := readH2loadLog(strings.NewReader(log), time.UnixMicro(2000), time.UnixMicro(3000))
	want := []time.Duration{1000 * time.Microsecond, 300 * time.Microsecond, 99 * time.Microsecond}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("readH2loadLog = %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"1000\t-1\t500\n", "1000\t502\t500\n", "1000\t200\n", "what\t200\t5\n"} {
		if got, err := readH2loadLog(strings.NewReader(bad), time.UnixMicro(0), time.UnixMicro(9000)); err == nil {
			t.Errorf("readH2loadLog(%q) = %v, want an error", bad, got)
		}
	}
}

func TestH2loadArgs(t *testing.T) {
	e := &edge{addrs: addressBook{serviceHTTP: loopback(8080)}}
	l := h2load{scheme: "http", service: serviceHTTP, alpn: "http/1.1", clients: 64, streams: 1}
	got := strings.Join(l.args(e, phases{warm: time.Second, main: 2 * time.Second}, "log"), " ")
	for _, want := range []string{"--h1", "--duration 3200ms", "--clients 64", "--connect-to 127.0.0.1:8080", "http://bench.localhost:8080/bench"} {
		if !strings.Contains(got, want) {
			t.Errorf("args = %s, want %s", got, want)
		}
	}
}
