package portpool

import (
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestWhoAnswers(t *testing.T) {
	for _, tc := range []struct {
		host, inner, name string
		answers           bool
	}{
		{"${env}.x.com", "", "abc.x.com", true},
		{"${env}.x.com", "", "ABC.x.com", true},
		{"${env}.x.com", "", "a.b.x.com", false},
		{"${inner}--${env}.x.com", "8000-8099", "8000--abc.x.com", true},
		{"${inner}--${env}.x.com", "8000-8099", "9000--abc.x.com", false},
		{"${inner}--${env}.x.com", "8000-8099", "--abc.x.com", false},
		{"${inner}--${env}.x.com", "8000", "8000--8000--abc.x.com", false},
		{"${env}-${inner}.${service}.x.com", "1-9", "abc-1.web.x.com", true},
		{"${env}-${inner}.x.com", "1-9", "a-1-2.x.com", false},
		{"apps.x.com", "", "apps.x.com", true},
	} {
		var inner router.Ports
		if tc.inner != "" {
			var err error
			if inner, err = router.ParsePorts(tc.inner); err != nil {
				t.Fatal(err)
			}
		}
		r := Route{Host: tc.host}
		if got := r.Answers(Values{"env": "abc", "service": "web"}, inner, tc.name); got != tc.answers {
			t.Errorf("%s of abc (%s) answers at %s: %t", tc.host, tc.inner, tc.name, got)
		}
	}
}

func TestPortsExpr(t *testing.T) {
	for _, tc := range []struct{ ports, want string }{
		{"8888", "8888"}, {"8000-8999", "8[0-9][0-9][0-9]"}, {"3000,8000-8010", "3000|800[0-9]|8010"}, {"1-65535", "[1-9]|[1-9][0-9]|[1-9][0-9][0-9]|[1-9][0-9][0-9][0-9]|[1-5][0-9][0-9][0-9][0-9]|6[0-4][0-9][0-9][0-9]|65[0-4][0-9][0-9]|655[0-2][0-9]|6553[0-5]"},
	} {
		ports, err := router.ParsePorts(tc.ports)
		if err != nil {
			t.Fatal(err)
		}
		if got := portsExpr(ports); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.ports, got, tc.want)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		var ports router.Ports
		for at := 1 + rng.IntN(3000); at <= router.MaxPort; at += 1 + rng.IntN(20000) {
			last := min(at+rng.IntN([]int{1, 10, 200, 30000}[rng.IntN(4)]), router.MaxPort)
			ports = append(ports, router.PortRange{First: at, Last: last})
			at = last + 1
		}
		expr := regexp.MustCompile("^(?:" + portsExpr(ports) + ")$")
		for n := range router.MaxPort + 2 {
			if got := expr.MatchString(strconv.Itoa(n)); got != ports.Contains(n) {
				t.Fatalf("%v as %s: of %d it says %t", ports, expr, n, got)
			}
		}
	}
}
