package etcd_test

import (
	"fmt"
	"strings"
	"testing"
)

// Verdicts that say nothing but applied@ are bounded, and no others: those set
// last are there, whatever they take the place of.
func TestPlainVerdictsAreBounded(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	key := func(i int) string { return fmt.Sprintf("ports/tcp/%d", i) }
	const most = 300
	v.KeepPlain(most)
	const n = 2*most + 10
	want := map[string]string{}
	set := func(i int, text string) {
		v.Set(key(i), text)
		want[key(i)] = text
	}
	for i := range n {
		if i%100 == 0 {
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
		if i%100 != 0 {
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
	set(100*(n/100), "applied@5") // refused until now
	trim(plain[4])
	await("one that is plain from now on")
	v.Delete(key(1))
	v.Delete(key(5)) // left out
	delete(want, key(1))
	set(5, "applied@6")
	await("one in the place of one that is gone")
	if strings.Contains(want[key(200)], "applied") {
		t.Error("a refusal was left out")
	}
}
