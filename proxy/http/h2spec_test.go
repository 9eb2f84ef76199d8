package http_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// TestH2Spec runs every case of h2spec, the strict ones too, against a page of a
// backend.
func TestH2Spec(t *testing.T) {
	r := newRig(t, map[string]string{"all": `{"host":"*","backend":"` + backend(t, echo) + `"}`})
	at := r.secure.Addr().(*net.TCPAddr)
	cfg := &config.Config{Host: at.IP.String(), Port: at.Port, Path: "/a-page-of-some-length", Timeout: patience,
		MaxHeaderLen: 4000, Strict: true, TLS: true, Insecure: true}
	cases := 0
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		cases += runSpec(t, cfg, group)
	}
	if cases < 145 {
		t.Errorf("h2spec has %d cases, and had more", cases)
	}
}

func runSpec(t *testing.T, cfg *config.Config, group *spec.TestGroup) (cases int) {
	for _, tc := range append(group.Tests[:len(group.Tests):len(group.Tests)], group.StrictTests...) {
		cases++
		t.Run(strings.ReplaceAll(group.ID()+" "+tc.Desc, "/", " "), func(t *testing.T) {
			conn, err := spec.Dial(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			began := time.Now()
			if err := tc.Run(cfg, conn); err != nil {
				t.Errorf("%v, after %v; %s", err, time.Since(began), tc.Requirement)
			}
		})
	}
	for _, g := range group.Groups {
		cases += runSpec(t, cfg, g)
	}
	return cases
}
