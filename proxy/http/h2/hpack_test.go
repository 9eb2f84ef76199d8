package h2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// words are names and values that repeat, as those of messages do.
func words(r *rand.Rand) (name, value string) {
	names := []string{"accept", "x-one", "x-two", "server", "content-type", "cookie", "vary", "x-" + strings.Repeat("n", 90)}
	values := []string{"", "1", "text/html; charset=utf-8", strings.Repeat("v", r.IntN(400)), fmt.Sprint(r.IntN(9999)), "é\t\xff!"}
	return names[r.IntN(len(names))], values[r.IntN(len(values))]
}

// TestDecoderAgainstReference has x/net's encoder write blocks, with tables of
// changing size, and compares.
func TestDecoderAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	var dec h2.Decoder
	var head h2.Head
	for range 3000 {
		block.Reset()
		if r.IntN(20) == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(h2.TableSize)))
		}
		var want []string
		for range r.IntN(12) {
			name, value := words(r)
			if name == "cookie" {
				name = "x-cookie"
			}
			enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: r.IntN(8) == 0})
			want = append(want, name+": "+value)
		}
		head.Reset(h2.KindTrailer, 1<<20)
		if err := dec.Decode(block.Bytes(), &head); err != nil {
			t.Fatal(err)
		}
		if wrong := head.Check(); wrong != "" {
			t.Fatal(wrong)
		}
		var got []string
		for _, l := range head.Fields.Lines() {
			got = append(got, l.Name+": "+l.Value)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// TestEncoderAgainstReference has x/net's decoder read what Encoder writes.
func TestEncoderAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var got []string
	dec := hpack.NewDecoder(h2.TableSize, func(f hpack.HeaderField) { got = append(got, f.Name+": "+f.Value) })
	var enc h2.Encoder
	indexed := 0
	for range 3000 {
		if r.IntN(30) == 0 {
			limit := uint32(r.IntN(2 * h2.TableSize))
			enc.SetLimit(limit)
			if r.IntN(2) == 0 {
				enc.SetLimit(h2.TableSize)
			}
			dec.SetAllowedMaxDynamicTableSize(h2.TableSize)
		}
		got = nil
		var fields field.List
		status := []int{200, 204, 206, 304, 400, 404, 500, 101, 302, 599}[r.IntN(10)]
		want := []string{fmt.Sprint(":status: ", status)}
		for range r.IntN(12) {
			name, value := words(r)
			fields.Add(strings.ToUpper(name[:1])+name[1:], value)
			want = append(want, name+": "+value)
		}
		fields.Add("Connection", "close")
		fields.Add("Content-Length", "7")
		want = append(want, "content-length: 7")
		b := enc.Fields(enc.Status(enc.Begin(nil), status), &fields)
		indexed += bytes.Count(b, []byte{0x80 | 62})
		if _, err := dec.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := dec.Close(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	if indexed < 100 {
		t.Errorf("the table was used %d times", indexed)
	}
}

// TestEncodedRequest checks pseudo-header fields of requests.
func TestEncodedRequest(t *testing.T) {
	var enc h2.Encoder
	var dec h2.Decoder
	var head h2.Head
	for i, path := range []string{"/", "/index.html", "/a?b=c", "/a?b=c"} {
		b := enc.Pseudo(enc.Begin(nil), h2.Method, []string{"GET", "POST", "PUT", "PUT"}[i])
		b = enc.Pseudo(b, h2.Scheme, "https")
		b = enc.Pseudo(b, h2.Path, path)
		b = enc.Pseudo(b, h2.Authority, "x.test:8443")
		head.Reset(h2.KindRequest, 1<<10)
		if err := dec.Decode(b, &head); err != nil {
			t.Fatal(err)
		}
		if wrong := head.Check(); wrong != "" || head.Path != path || head.Scheme != "https" || head.Authority != "x.test:8443" {
			t.Errorf("%q: %+v", wrong, head)
		}
	}
}

// TestSecretsAreNotIndexed looks at the representation of fields that others
// could guess at.
func TestSecretsAreNotIndexed(t *testing.T) {
	var enc h2.Encoder
	for range 3 {
		for _, name := range []string{"Cookie", "Set-Cookie", "Authorization", "Proxy-Authorization"} {
			if b := enc.Line(nil, &field.Line{Name: name, Value: "secret", ID: field.Identify(name)}); b[0]&0xf0 != 0x10 {
				t.Errorf("%s begins with %#x", name, b[0])
			}
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	for name, block := range map[string]string{
		"index 0":              "\x80",
		"index beyond":         "\xbe",
		"huge index":           "\xff\xff\xff\xff\xff\x0f",
		"unfinished integer":   "\xff\x80",
		"table too large":      "\x3f\xe2\x1f",
		"update behind":        "\x82\x20",
		"string beyond":        "\x40\x05ab",
		"no string":            "\x40",
		"EOS":                  "\x40\x84\xff\xff\xff\xff\x01x",
		"padding too long":     "\x40\x82\x1f\xff\x01x",
		"padding not of ones":  "\x40\x81\x18\x01x",
		"name beyond the end":  "\x7f\x80\x80\x80\x80\x00",
		"literal of no name":   "\x0f\xff\x01x",
		"string of no length":  "\x40\x01x",
		"huge string":          "\x40\x7f\xff\xff\xff\x7f",
		"huge integer in text": "\x40\x7f\xff\xff\xff\xff\x7f",
	} {
		var dec h2.Decoder
		var head h2.Head
		head.Reset(h2.KindRequest, 1<<10)
		err, ok := dec.Decode([]byte(block), &head).(*h2.ConnError)
		if !ok || err.Code != h2.CompressionError {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBombIsBounded has two octets stand for four kilobytes many times over.
func TestBombIsBounded(t *testing.T) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("v", 4000)})
	bomb := append(block.Bytes(), bytes.Repeat([]byte{0x80 | 62}, 60_000)...)
	var dec h2.Decoder
	var head h2.Head
	head.Reset(h2.KindRequest, 64<<10)
	if err := dec.Decode(bomb, &head); err != nil {
		t.Fatal(err)
	}
	if !head.TooLarge || head.Fields.Len() > 16 {
		t.Errorf("too large %v, %d fields", head.TooLarge, head.Fields.Len())
	}
}

// TestNoAllocations pins what a message costs whose fields repeat.
func TestNoAllocations(t *testing.T) {
	var enc h2.Encoder
	var dec h2.Decoder
	var head h2.Head
	var fields field.List
	for _, f := range [][2]string{{"Server", "x"}, {"Content-Type", "text/plain"}, {"X-Own", "value"}, {"Content-Length", "12"}} {
		fields.Add(f[0], f[1])
	}
	b := make([]byte, 0, 512)
	once := func() {
		b = enc.Fields(enc.Status(enc.Begin(b[:0]), 200), &fields)
		head.Reset(h2.KindResponse, 1<<10)
		if err := dec.Decode(b, &head); err != nil || head.Check() != "" || head.Length != 12 {
			t.Fatal(err, head.Check())
		}
	}
	once()
	once()
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecoder wants the same from Decoder as from x/net's, whatever comes.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"), []byte("\xbe"))
	f.Add([]byte("\x20\x3f\xe1\x1f\x40\x01a\x01b"), []byte("\x7e\x01c"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var got, want []string
		ref := hpack.NewDecoder(h2.TableSize, func(f hpack.HeaderField) { want = append(want, f.Name+"\x00"+f.Value) })
		var dec h2.Decoder
		var head h2.Head
		for _, block := range [][]byte{one, two} {
			got, want = nil, nil
			head.Reset(h2.KindTrailer, 1<<24)
			_, refErr := ref.Write(block)
			if closeErr := ref.Close(); refErr == nil {
				refErr = closeErr
			}
			err := dec.Decode(block, &head)
			if (err != nil) != (refErr != nil) {
				if err != nil && (strings.Contains(err.Error(), "integer is too large") || strings.Contains(err.Error(), "come first")) {
					return // x/net takes integers that nothing can need, and late updates of an empty table
				}
				t.Fatalf("%v, x/net says %v", err, refErr)
			}
			if err != nil {
				return
			}
			if head.Check() != "" || head.TooLarge {
				return
			}
			for _, l := range head.Fields.Lines() {
				got = append(got, l.Name+"\x00"+l.Value)
			}
			for _, w := range want {
				if strings.HasPrefix(w, "cookie\x00") {
					return // crumbs are joined
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}
