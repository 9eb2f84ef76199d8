package http

import (
	"testing"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// TestNegotiate reads Accept-Encoding.
func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]string{
		"":                                     "identity",
		"gzip":                                 "gzip",
		"x-gzip":                               "gzip",
		"GZip , deflate":                       "gzip",
		"gzip, deflate, br, zstd":              "zstd",
		"gzip;q=0.5, zstd;q=0.4":               "gzip",
		"gzip;q=0.5,zstd;q=0.501":              "zstd",
		"gzip; q=0.5 , zstd ;q=0.5":            "zstd",
		"gzip;Q=1, zstd;q=0":                   "gzip",
		"zstd;q=0.000, gzip;q=0.001":           "gzip",
		"*":                                    "zstd",
		"*;q=0":                                "identity",
		"*, zstd;q=0":                          "gzip",
		"*;q=0, gzip":                          "gzip",
		"identity":                             "identity",
		"identity, gzip;q=0.5":                 "identity",
		"identity;q=0.5, gzip":                 "gzip",
		"identity;q=0.5, gzip;q=0.5":           "gzip",
		"identity;q=0":                         "identity", // there is nothing else to give
		"br, deflate":                          "identity",
		"gzip;q=1.001":                         "identity",
		"gzip;q=2":                             "identity",
		"gzip;q=0.1234":                        "identity",
		"gzip;q=":                              "identity",
		"gzip;q":                               "identity",
		"gzip;q=0,5":                           "identity",
		"gzip;q=-1":                            "identity",
		"gzip;q=.5":                            "identity",
		"gzip;level=9":                         "identity",
		"gzip;q=1.":                            "gzip",
		"gzipx, xzstd":                         "identity",
		", ,gzip,,":                            "gzip",
		"gzip;q=0\x00, zstd;q=0.5;q=1":         "identity",
		"deflate;q=bogus, gzip":                "gzip",
		"compress, identity;q=0.9, *;q=0.5":    "identity",
		"compress, identity;q=0.4, *;q=0.5":    "zstd",
		"gzip;q=0.3, *;q=0.2, identity;q=0.25": "gzip",
	} {
		var h field.List
		if accept != "" {
			h.Add("accept-encoding", accept)
		}
		if got := negotiate(&h, []string{"zstd", "gzip"}); got.String() != want {
			t.Errorf("%q: %v, want %s", accept, got, want)
		}
	}
	var h field.List
	h.Add("Accept-Encoding", "br")
	h.Add("accept-encoding", "gzip")
	if got := negotiate(&h, []string{"zstd", "gzip"}); got != codingGzip {
		t.Errorf("in two lines: %v", got)
	}
	if got := negotiate(&h, []string{"zstd"}); got != identity {
		t.Errorf("what is not offered: %v", got)
	}
}
