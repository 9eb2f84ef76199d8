package upstream

import (
	"errors"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

// TestCheckRiseAndFall writes the results of checks as P (passed), F (failed) and
// L (this node could not), and what is thought of the target after each as u or d.
func TestCheckRiseAndFall(t *testing.T) {
	for _, tc := range []struct {
		rise, fall    int
		results, want string
	}{
		{2, 3, "PFFPFFFPFPP", "uuuuuudddd" + "u"},
		{2, 3, "FPPFFF", "dduuud"}, // never passed: down at once
		{2, 3, "LLFLPLP", "uuddddu"},
		{2, 3, "PFLFLF", "uuuuud"},
		{1, 1, "PFPFPF", "ududud"},
		{1, 1, "FFPPFF", "dduudd"},
		{3, 1, "PFPPFPPP", "uddddddu"},
	} {
		d := NewDialer(Config{})
		b := &router.Backend{Targets: make([]router.Target, 1), Health: &router.Health{Interval: time.Hour, Timeout: time.Second, Rise: tc.rise, Fall: tc.fall}}
		if err := b.Targets[0].Address.UnmarshalText([]byte("10.0.0.1:22")); err != nil {
			t.Fatal(err)
		}
		d.SetChecked([]*router.Backend{b}, nil)
		c := d.checks.byEP[Endpoint{Host: "10.0.0.1", Port: 22}][0]
		got := ""
		for _, r := range tc.results {
			switch r {
			case 'P':
				d.checks.note(c, nil, false)
			case 'F':
				d.checks.note(c, errors.New("refused"), true)
			case 'L':
				d.checks.note(c, errors.New("too many open files"), false)
			}
			if c.down.Load() {
				got += "d"
			} else {
				got += "u"
			}
			if n := d.checks.downs.Load(); n != map[bool]int64{true: 1}[c.down.Load()] {
				t.Errorf("%d targets counted as down", n)
			}
		}
		if got != tc.want {
			t.Errorf("rise %d, fall %d: %s made it %s, want %s", tc.rise, tc.fall, tc.results, got, tc.want)
		}
		d.Close()
	}
}
