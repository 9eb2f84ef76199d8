package control

import "testing"

// What a node writes is read as what it meant.
func TestVerdictsAreReadAsWritten(t *testing.T) {
	for _, tc := range []struct {
		e     entry
		state string
		rev   int64
	}{
		{entry{goodRev: 7}, Applied, 7},
		{entry{goodRev: 7, states: states{own: state{text: "certificate valid until 2026-12-31: fine"}}}, Applied, 7},
		{entry{goodRev: 7, states: states{own: state{"port_busy: :22 is held by sshd@3", true}}}, Degraded, 7},
		{entry{refused: "x@5 is wrong", goodRev: 0}, Refused, 0},
		{entry{refused: "x is wrong", goodRev: 12}, Refused, 12},
	} {
		text := tc.e.verdict()
		if v := ParseVerdict(text); v.State != tc.state || v.Rev != tc.rev || v.Text != text {
			t.Errorf("%q is read as %+v", text, v)
		}
	}
	for _, text := range []string{"", "applied@", "applied@x", "refused"} {
		if v := ParseVerdict(text); v.State != "" || v.Rev != 0 {
			t.Errorf("%q is read as %+v", text, v)
		}
	}
}
