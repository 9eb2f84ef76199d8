package upstream

import (
	"fmt"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestSourcePorts(t *testing.T) {
	for _, test := range []struct{ mapped, kernel, within, outside string }{
		{"20000-29999", "32768-60999", "", ""},                                                           // nothing in the way
		{"50000-60999", "32768-60999", "32768-49999", "10000-49999,61000-65535"},                         // one run is enough
		{"40000-49000", "32768-60999", "", "10000-39999,49001-65535"},                                    // two, each too small
		{"40000-41000", "32768-60999", "41001-60999", "10000-39999,41001-65535"},                         // the larger of two
		{"20000-60999", "32768-60999", "", "10000-19999,61000-65535"},                                    // none
		{"10000-65535", "32768-60999", "", ""},                                                           // nothing at all
		{"1-1023,5000-6000", "1024-65535", "6001-65535", "10000-65535,1024-4999,6001-65535"},             // a kernel told otherwise
		{"32768-32768,60999-60999", "32768-60999", "32769-60998", "10000-32767,32769-60998,61000-65535"}, // at its ends
	} {
		mapped, err := router.ParsePorts(test.mapped)
		if err != nil {
			t.Fatal(err)
		}
		kernel, err := router.ParsePorts(test.kernel)
		if err != nil {
			t.Fatal(err)
		}
		s := newSourcePorts(mapped, kernel[0])
		within, outside := "", ""
		if s.within != (router.PortRange{}) {
			within = s.within.String()
		}
		for _, r := range s.outside {
			outside += fmt.Sprintf(",%v", r)
		}
		if outside != "" {
			outside = outside[1:]
		}
		if within != test.within || outside != test.outside {
			t.Errorf("mapped %s, the kernel's %s: within %q outside %q, want %q and %q",
				test.mapped, test.kernel, within, outside, test.within, test.outside)
		}
		for range 100 {
			if len(s.outside) > 0 && mapped.Contains(s.pick()) {
				t.Errorf("mapped %s: one of them is picked", test.mapped)
			}
		}
	}
}

func TestKernelPorts(t *testing.T) {
	if r := kernelPorts(); r.First < 1 || r.Last > router.MaxPort || r.Size() < 1 {
		t.Errorf("the kernel chooses from %v", r)
	}
}
