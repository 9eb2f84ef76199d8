package etcd_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// Verdicts that say nothing but applied@ are bounded, and no others: those set
// last are there, whatever they take the place of.
func TestPlainVerdictsAreBounded(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	key := func(i int) string { return fmt.Sprintf("ports/tcp/%d", i) }
	const most = 100
	v.KeepPlain(most)
	const n = 2*most + 10
	want := map[string]string{}
	set := func(i int, text string) {
		v.Set(key(i), text)
		want[key(i)] = text
	}
	for i := range n {
		if i%50 == 0 {
			set(i, "refused: no")
		} else {
			set(i, "applied@1")
		}
	}
	trim := func(oldest ...int) {
		for _, i := range oldest {
			delete(want, key(i))
		}
	}
	var plain []int
	for i := range n {
		if i%50 != 0 {
			plain = append(plain, i)
		}
	}
	trim(plain[:len(plain)-most]...)
	plain = plain[len(plain)-most:]

	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	await := func(what string) {
		t.Helper()
		awaitKeys(t, op, "/sluice/verdicts/edge-1/", what, func(have map[string]string) bool {
			if len(have) != len(want) {
				return false
			}
			for k, text := range want {
				if have[k] != text {
					return false
				}
			}
			return true
		})
	}
	await("the last plain verdicts and all others")
	set(1, "applied@2") // was left out
	trim(plain[0])
	await("one that was left out, in the place of the oldest")
	set(plain[1], "applied@3") // is the youngest now
	set(2, "applied@3")
	trim(plain[2])
	await("one that stays since it was set anew")
	set(plain[3], "degraded: backend_down: down (applied@1)") // makes room
	set(3, "applied@4")
	await("one that is plain no more")
	set(50*(n/50), "applied@5") // refused until now
	trim(plain[4])
	await("one that is plain from now on")
	v.Delete(key(1))
	v.Delete(key(5)) // left out
	delete(want, key(1))
	set(5, "applied@6")
	await("one in the place of one that is gone")
	if strings.Contains(want[key(150)], "applied") {
		t.Error("a refusal was left out")
	}
}

// Of a row of edits nothing plain is written, and nothing stays that they have
// made wrong. Who follows the verdicts can tell what is left out from what is
// gone.
func TestPlainVerdictsAreLeftOutOfRows(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	v := s.Verdicts()
	v.Set("ports/tcp/1", "applied@1")
	v.Set("ports/tcp/2", "refused: no (nothing is in force)")
	v.Set("ports/tcp/10000", "applied@1")
	v.Set("ports/tcp/3", "applied@1: certificate a.x.test")
	v.Set("ports/tcp/10001", "refused: no (nothing is in force)")
	awaitKeys(t, op, "/sluice/verdicts/", "five verdicts", func(m map[string]string) bool { return len(m) == 5 })
	events := op.Watch(t.Context(), "/sluice/verdicts/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-events

	v.Exhaust()
	for i := range 50_000 {
		v.Set(fmt.Sprintf("ports/tcp/%d", i%10_000), fmt.Sprintf("applied@%d", 2+i))
	}
	v.Set("ports/tcp/3", "applied@5: certificate b.x.test")
	v.Delete("ports/tcp/10000")
	v.Delete("ports/tcp/10001")
	v.Set("ports/tcp/1", "refused: never (last good @9 stays in force)")
	v.Set("ports/tcp/20000", "degraded: backend_down: down (applied@5)")
	awaitExactly(t, op, "/sluice/verdicts/edge-1/ports/tcp/", map[string]string{
		"1": "refused: never (last good @9 stays in force)", "20000": "degraded: backend_down: down (applied@5)",
	})
	got := map[string][]string{}
	for resp := range events {
		for _, e := range resp.Events {
			key := strings.TrimPrefix(string(e.Kv.Key), "/sluice/verdicts/edge-1/ports/tcp/")
			text := string(e.Kv.Value)
			if e.Type == clientv3.EventTypeDelete {
				text = "gone"
			}
			got[key] = append(got[key], text)
		}
		if got["20000"] != nil && len(got["2"]) > 1 {
			break
		}
	}
	if err := t.Context().Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{etcd.LeftOut, "gone"}, got["2"]); diff != "" {
		t.Errorf("what is left out in the row of edits is shown otherwise (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"gone"}, got["10000"]); diff != "" {
		t.Errorf("what is gone is shown otherwise (-want +got):\n%s", diff)
	}
	if n := len(got); n > 7 {
		t.Errorf("%d keys were written of a row of edits, want those that had a verdict", n)
	}
}

// A load of a great many keys writes few of their verdicts, unless something is
// amiss with a key.
func TestPlainVerdictsOfALoad(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	for i := range 10_000 {
		v.Set(fmt.Sprintf("ports/tcp/%d", i), "applied@1")
		v.Set(fmt.Sprintf("routes/%d", i), "applied@1: certificate x.test")
	}
	v.Set("ports/tcp/20000", "refused: no (nothing is in force)")
	stop := goRun(t, s.Run)
	s.SetRecord(record("a", "joining"))
	s.SetProgress(record("a", "ready"))
	awaitExactly(t, op, "/sluice/nodes/", map[string]string{"edge-1": record("a", "ready")})
	have := keysUnder(t, op, "/sluice/verdicts/edge-1/")
	count := map[string]int{}
	for _, text := range have {
		count[text]++
	}
	if n := count["applied@1"]; n > etcd.MaxPlain || n < etcd.MaxPlain/2 {
		t.Errorf("%d verdicts say nothing but applied@1, want %d", n, etcd.MaxPlain)
	}
	if n := count["applied@1: certificate x.test"]; n > etcd.MaxNotes || n < etcd.MaxNotes/2 {
		t.Errorf("%d verdicts add a note, want %d", n, etcd.MaxNotes)
	}
	if have["ports/tcp/20000"] == "" {
		t.Error("the key that is refused has no verdict")
	}
	stop()
}
