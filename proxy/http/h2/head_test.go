package h2_test

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// decoded returns what a section of "name: value" lines decodes to.
func decoded(t *testing.T, kind h2.Kind, lines ...string) (h *h2.Head, wrong string) {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "= ")
		enc.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	h = new(h2.Head)
	h.Reset(kind, 64<<10)
	if err := new(h2.Decoder).Decode(block.Bytes(), h); err != nil {
		t.Fatal(err)
	}
	return h, h.Check()
}

var plainRequest = []string{":method= GET", ":scheme= https", ":path= /", ":authority= x.test"}

func TestWellFormedRequests(t *testing.T) {
	h, wrong := decoded(t, h2.KindRequest, append(plainRequest[:4:4], "cookie= a=1", "x-a= 1", "cookie= b=2", "cookie= c=3",
		"te= trailers", "content-length= 17", "host= X.test")...)
	if wrong != "" || h.Method != "GET" || h.Path != "/" || h.Authority != "x.test" || h.Length != 17 {
		t.Errorf("%q %+v", wrong, h)
	}
	var got []string
	for _, l := range h.Fields.Lines() {
		got = append(got, l.Name+"= "+l.Value)
	}
	if want := "cookie= a=1; b=2; c=3 | x-a= 1 | te= trailers | content-length= 17"; strings.Join(got, " | ") != want {
		t.Errorf("%q", got)
	}
	if h, wrong = decoded(t, h2.KindRequest, ":method= OPTIONS", ":scheme= https", ":path= *", "host= y.test"); wrong != "" || h.Authority != "y.test" {
		t.Errorf("%q %+v", wrong, h)
	}
	if h, wrong = decoded(t, h2.KindRequest, ":method= CONNECT", ":authority= y.test:1"); wrong != "" || h.Length != -1 {
		t.Errorf("%q %+v", wrong, h)
	}
	h, wrong = decoded(t, h2.KindRequest, ":method= CONNECT", ":protocol= websocket", ":scheme= https", ":path= /", ":authority= y.test")
	if wrong != "" || h.Protocol != "websocket" {
		t.Errorf("%q %+v", wrong, h)
	}
	if h, wrong = decoded(t, h2.KindResponse, ":status= 103", "link= x"); wrong != "" || h.Status != 103 {
		t.Errorf("%q %+v", wrong, h)
	}
}

func TestMalformedSections(t *testing.T) {
	with := func(lines ...string) []string { return append(plainRequest[:4:4], lines...) }
	for name, lines := range map[string][]string{
		"no method":             {":scheme= https", ":path= /", ":authority= x"},
		"no scheme":             {":method= GET", ":path= /", ":authority= x"},
		"no path":               {":method= GET", ":scheme= https", ":authority= x"},
		"empty path":            {":method= GET", ":scheme= https", ":path= ", ":authority= x"},
		"absolute path":         {":method= GET", ":scheme= https", ":path= https://y/", ":authority= x"},
		"star":                  {":method= GET", ":scheme= https", ":path= *", ":authority= x"},
		"method twice":          with(":method= GET"),
		"path twice":            {":method= GET", ":scheme= https", ":path= /", ":path= /", ":authority= x"},
		"pseudo behind":         with("a= 1", ":protocol= x"),
		"pseudo behind host":    {":method= GET", ":scheme= https", ":path= /", "host= x", ":authority= x"},
		"status":                with(":status= 200"),
		"unknown pseudo":        with(":what= x"),
		"protocol without":      with(":protocol= websocket"),
		"CONNECT with path":     {":method= CONNECT", ":path= /", ":authority= x"},
		"CONNECT without":       {":method= CONNECT"},
		"capitals":              with("X-a= 1"),
		"no name":               with("= 1"),
		"space in name":         with("a b= 1"),
		"colon in name":         with("a:b= 1"),
		"line feed":             with("a= 1\n2"),
		"carriage return":       with("a= 1\r2"),
		"nul":                   with("a= 1\x002"),
		"space in front":        with("a=  1"),
		"tab behind":            with("a= 1\t"),
		"connection":            with("connection= close"),
		"keep-alive":            with("keep-alive= 5"),
		"proxy-connection":      with("proxy-connection= close"),
		"transfer-encoding":     with("transfer-encoding= chunked"),
		"upgrade":               with("upgrade= websocket"),
		"te":                    with("te= gzip"),
		"length":                with("content-length= x"),
		"signed length":         with("content-length= +1"),
		"negative length":       with("content-length= -1"),
		"no length":             with("content-length= "),
		"two lengths":           with("content-length= 1", "content-length= 1"),
		"another host":          with("host= y.test"),
		"two hosts":             with("host= x.test", "host= x.test"),
		"user":                  {":method= GET", ":scheme= https", ":path= /", ":authority= u@x"},
		"space in authority":    {":method= GET", ":scheme= https", ":path= /", ":authority= a b"},
		"line feed in path":     {":method= GET", ":scheme= https", ":path= /\r\nx: y", ":authority= x"},
		"line feed in method":   {":method= GET / HTTP/1.1\r\n", ":scheme= https", ":path= /", ":authority= x"},
		"host with another eye": {":method= GET", ":scheme= https", ":path= /", "host= a@b"},
	} {
		if _, wrong := decoded(t, h2.KindRequest, lines...); wrong == "" {
			t.Errorf("%s: %q passes", name, lines)
		}
	}
	for name, lines := range map[string][]string{
		"no status": {"a= 1"}, "two": {":status= 200", ":status= 200"}, "letters": {":status= 2x0"}, "short": {":status= 20"},
		"zero": {":status= 000"}, "path": {":status= 200", ":path= /"}, "te": {":status= 200", "te= trailers"},
		"connection": {":status= 200", "connection= close"},
	} {
		if _, wrong := decoded(t, h2.KindResponse, lines...); wrong == "" {
			t.Errorf("response, %s: %q passes", name, lines)
		}
	}
	if _, wrong := decoded(t, h2.KindTrailer, ":path= /"); wrong == "" {
		t.Error("a trailer section may hold :path")
	}
}

func TestLargeHeads(t *testing.T) {
	if h, _ := decoded(t, h2.KindRequest, append(plainRequest[:4:4], "a= "+strings.Repeat("x", 70_000))...); !h.TooLarge {
		t.Error("70,000 bytes fit")
	}
	many := plainRequest[:4:4]
	for range 1001 {
		many = append(many, "a= 1")
	}
	if h, _ := decoded(t, h2.KindRequest, many...); !h.TooLarge {
		t.Error("1001 fields fit")
	}
}
