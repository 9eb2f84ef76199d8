package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

func TestFailedStudyIsMarkedAndHarmsNoOther(t *testing.T) {
	var out bytes.Buffer
	b := &bench{out: &out, result: exampleResult()}
	fails := study{name: "broken", run: func(context.Context, *bench) error { return errors.New("no room") }}
	if err := b.study(t.Context(), fails); err != nil {
		t.Errorf("study = %v, want that others go on", err)
	}
	if err := b.result.failure(); err == nil || !strings.Contains(err.Error(), "broken: no room") {
		t.Errorf("failure = %v, want the study's", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.study(ctx, fails); !errors.Is(err, context.Canceled) {
		t.Errorf("study of an interrupted run = %v, want that it ends", err)
	}
}

func TestOpenRelays(t *testing.T) {
	e := runOrigin(t)
	held, err := openRelays(t.Context(), e.addrs[serviceEcho], 50)
	if err != nil || len(held) != 50 {
		t.Fatalf("openRelays = %d, %v; want 50", len(held), err)
	}
	if err := stillEcho(held); err != nil {
		t.Error(err)
	}
	held[7].Close()
	if err := stillEcho(held); err == nil || !strings.Contains(err.Error(), "relay 8 of 50") {
		t.Errorf("with one closed: %v, want that it is named", err)
	}
	for _, c := range held {
		closeHard(c)
	}
	if held, err := openRelays(t.Context(), closedPort(t), 3); err == nil || len(held) != 0 {
		t.Errorf("to a closed port: %d, %v; want an error", len(held), err)
	}
}

func TestIdleResult(t *testing.T) {
	at := func(rss int64, fds int) footprint { return footprint{RSS: rss, FDs: fds} }
	r := &idleResult{Wanted: 10000, Relays: 100, Files: 500, Contenders: []string{"nginx", "sluice"}, Rounds: []map[string]idleSample{
		{"nginx": {Before: at(1<<20, 10), After: at(1<<20+330000, 210)}, "sluice": {Before: at(2<<20, 20), After: at(2<<20+100000, 220), CPU: 1.5}},
		{"nginx": {Before: at(1<<20, 10), After: at(1<<20+310000, 210)}, "sluice": {Before: at(2<<20, 20), After: at(2<<20+120000, 220), CPU: 1.5}},
	}}
	for _, want := range []string{"| 100 idle relays |", "3200 B", "(1000 B–1200 B)", "2.00", "1.50 ms/s", "10000 relays were wanted; a process may have 500 files"} {
		if !strings.Contains(r.section(), want) {
			t.Errorf("section lacks %q:\n%s", want, r.section())
		}
	}
	for _, b := range r.bars() {
		if !b.met {
			t.Errorf("%+v is missed", b)
		}
	}
	r.Rounds[0]["sluice"] = idleSample{Before: at(2<<20, 20), After: at(2<<20+500000, 520)}
	for _, b := range r.bars() {
		if b.met {
			t.Errorf("%+v is met", b)
		}
	}
	r.Rounds[1]["nginx"] = idleSample{Error: "refused"}
	if all := r.failures(); len(all) != 1 || !strings.Contains(all[0], "nginx in round 2: refused") {
		t.Errorf("failures = %q", all)
	}
}

func TestSizedResult(t *testing.T) {
	r := &sizedResult{Size: 40000, Mode: "steer", Empty: footprint{RSS: 30 << 20, FDs: 20},
		Starts:   []sizeStart{{Cold: 900, Warm: 700, Loaded: footprint{RSS: 80 << 20, FDs: 24}}, {Cold: 1100, Warm: 600, Loaded: footprint{RSS: 70 << 20, FDs: 24}}},
		Returned: []float64{1, 2, 3, 4}, Sent: []float64{2, 3, 4, 5}, Edits: 2000, EditCPU: 90, EditRate: 800, Rest: 0.4}
	for _, want := range []string{"ports by steer", "1000 ms", "(900 ms–1100 ms)", "650 ms", "45.0 MB", "4 puts", "90.0 µs", "800 edits/s"} {
		if !strings.Contains(r.section(), want) {
			t.Errorf("section lacks %q:\n%s", want, r.section())
		}
	}
	for _, b := range r.bars() {
		if !b.met {
			t.Errorf("%+v is missed", b)
		}
	}
	r.Starts = []sizeStart{{Cold: 2001, Loaded: footprint{RSS: 91 << 20}}}
	r.Returned, r.EditCPU = []float64{1, 5.1}, 100.1
	for _, b := range r.bars() {
		if b.met {
			t.Errorf("%+v is met", b)
		}
	}
}

// Edits come in threes that leave nothing behind, never at a mapping that is
// loaded, and sessions are spread over different ones of those.
func TestEditsOfASizedNode(t *testing.T) {
	n := &sizedNode{
		sluiceNode: &sluiceNode{ports: sluicePorts{Low: 20000}},
		bench:      &bench{options: &options{puts: 5}, origin: addressBook{serviceEcho: loopback(7), serviceBlast: loopback(8)}},
		size:       100,
	}
	there := make(map[string]string)
	for i := range 3 * 2 * spareMappings {
		kv := n.change(i)
		_, known := there[kv.key]
		if known == (i%3 == 0) {
			t.Fatalf("edit %d of %s: there %v", i, kv.key, known)
		}
		if there[kv.key] = kv.value; kv.value == "" {
			delete(there, kv.key)
			continue
		}
		key, err := router.ParseKey(strings.TrimPrefix(kv.key, "/sluice/"))
		if err != nil {
			t.Fatal(err)
		}
		if key.Port < 20105 || key.Port >= 20105+spareMappings {
			t.Fatalf("edit %d is of port %d", i, key.Port)
		}
		if _, err := router.ParseMapping(key.Proto, key.Port, []byte(kv.value)); err != nil {
			t.Fatalf("edit %d: %v", i, err)
		}
	}
	if len(there) != 0 {
		t.Errorf("%d mappings are left over", len(there))
	}
	seen := make(map[int]bool)
	for i := range 30 {
		at := n.sessionMapping(i, 30)
		if seen[at] || at < 0 || at >= n.size {
			t.Errorf("session %d has mapping %d", i, at)
		}
		seen[at] = true
	}
	if _, err := router.ParseMapping(router.TCP, 20003, []byte(n.relimit(3, 9).value)); err != nil {
		t.Error(err)
	}
}

// serveOnce accepts one connection, has serve do what it will and returns where.
func serveOnce(t *testing.T, serve func(net.Conn)) *session {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return &session{addr: ln.Addr().(*net.TCPAddr).AddrPort()}
}

func TestSessionLivesUntilToldToEnd(t *testing.T) {
	s := serveOnce(t, serveEcho)
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan error, 1)
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, 1, up) }()
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil || s.bytes < sessionBlock {
		t.Errorf("run = %v after %d bytes, want a good end", err, s.bytes)
	}
}

func TestSessionNoticesEveryHarm(t *testing.T) {
	for name, harm := range map[string]func(net.Conn){
		"altered": func(c net.Conn) {
			b := make([]byte, sessionBlock)
			io.ReadFull(c, b)
			b[sessionBlock/2] ^= 1
			c.Write(b)
		},
		"cut": func(c net.Conn) {
			io.ReadFull(c, make([]byte, sessionBlock))
			closeHard(c)
		},
		"lost": func(c net.Conn) {
			b := make([]byte, sessionBlock)
			io.ReadFull(c, b)
			c.Write(b[1:])
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveOnce(t, harm)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.run(ctx, 1, make(chan error, 1))
			if err == nil || errors.Is(err, errWrongBytes) != (name == "altered") {
				t.Errorf("run = %v", err)
			}
		})
	}
	// A byte too many shows at the end.
	s := serveOnce(t, func(c net.Conn) { serveEcho(c); c.Write([]byte{1}) })
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan error, 1), make(chan error, 1)
	go func() { done <- s.run(ctx, 1, up) }()
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, errWrongBytes) {
		t.Errorf("with a byte too many: %v, want %v", err, errWrongBytes)
	}
}

func TestEditsResult(t *testing.T) {
	live := &sessions{stop: func() {}, all: []session{{bytes: 700}, {bytes: 800, err: io.ErrUnexpectedEOF}, {err: errWrongBytes}}}
	r := &editsResult{Edits: 10, Sessions: 3, Seconds: 2, Loaded: footprint{RSS: 100 << 20}, Before: footprint{RSS: 105 << 20}, After: footprint{RSS: 111 << 20}}
	live.end(r)
	if len(r.Cut) != 1 || len(r.Wrong) != 1 || r.Bytes != 1500 {
		t.Errorf("result %+v, want one session cut, one wrong, 1500 bytes", r)
	}
	for _, b := range r.bars() {
		if b.met {
			t.Errorf("%+v is met", b)
		}
	}
	if len(r.failures()) != 2 || !strings.Contains(r.section(), "1 sessions cut, 1 with a wrong byte") {
		t.Errorf("failures %q, section:\n%s", r.failures(), r.section())
	}
	for _, b := range (&editsResult{Loaded: footprint{RSS: 100}, After: footprint{RSS: 110}}).bars() {
		if !b.met {
			t.Errorf("%+v is missed", b)
		}
	}
}

func TestEnvsResult(t *testing.T) {
	taken := &takenPorts{by: map[int]string{}}
	for _, port := range []int{8000, 8001} {
		taken.take(port, "a/ssh")
	}
	good := &envsResult{Envs: 10, Clients: 8, Nodes: 3, Seconds: 2, Took: []float64{1, 50}, Paced: []float64{1}, Opened: []float64{2, 100}, Applied: []float64{9}, Twice: taken.twice}
	for _, b := range good.bars() {
		if !b.met {
			t.Errorf("%+v is missed", b)
		}
	}
	if s := good.section(); !strings.Contains(s, "5.00 a second") || !strings.Contains(s, "0; none") || len(good.failures()) != 0 {
		t.Errorf("failures %q, section:\n%s", good.failures(), s)
	}
	taken.take(8001, "b/code")
	bad := &envsResult{Seconds: 1, Took: []float64{50.1}, Paced: []float64{1}, Opened: []float64{100.1}, Applied: []float64{9}, Closed: 1, Twice: taken.twice, Audit: "held by an environment that is gone"}
	for _, b := range bad.bars() {
		if b.met {
			t.Errorf("%+v is met", b)
		}
	}
	if all := bad.failures(); len(all) != 1 || !strings.Contains(all[0], "that is gone") || !strings.Contains(taken.twice[0], "8001: a/ssh and b/code") {
		t.Errorf("failures %q, twice %q", all, taken.twice)
	}
}

func TestNodeNetTakesANamespaceOfItsOwn(t *testing.T) {
	if _, err := newNodeNet(t.Context(), &options{}, 1); err == nil || !strings.Contains(err.Error(), "takes root") {
		t.Errorf("without a namespace: %v, want to be told how", err)
	}
}

func TestPlacesAreEachTakenOnce(t *testing.T) {
	type where struct {
		table int
		proto router.Proto
		port  int
	}
	seen := make(map[where]bool)
	for i := range 5 * tablePorts {
		table, proto, port := place(i)
		at := where{table, proto, port}
		if seen[at] || table > 2 || port < 1 || port > router.MaxPort || proto != router.TCP && proto != router.UDP {
			t.Fatalf("mapping %d is at %+v", i, at)
		}
		seen[at] = true
	}
}

func TestMillion(t *testing.T) {
	b := &bench{options: &options{million: 5000}, result: exampleResult()}
	if err := runMillion(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	r := b.result.Million
	if r.Tables != 1 || r.Bytes < 100 || r.P50 <= 0 || r.P99 < r.P50 || r.Garbage <= 0 || r.Lookup <= 0 || r.Edits < 500 {
		t.Errorf("result = %+v, want figures", r)
	}
	if !strings.Contains(b.result.summary(), "simulation of the table alone") {
		t.Errorf("the report does not say what it is:\n%s", b.result.summary())
	}
}

func TestRoom(t *testing.T) {
	b := &bench{options: &options{}, ports: &portPicker{lowest: 10000, end: 32768}}
	p, undo, err := b.room(10000)
	if err != nil || p != b.ports {
		t.Errorf("room for 10000 = %v, %v; want what there is", p, err)
	}
	undo()
	if _, _, err := b.room(40000); err == nil || !strings.Contains(err.Error(), "run as root") {
		t.Errorf("room for 40000 = %v, want to be told how", err)
	}
}
