package h3_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/quic-go/qpack"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h3"
)

func TestVarint(t *testing.T) {
	for _, v := range []uint64{0, 1, 63, 64, 16383, 16384, 1<<30 - 1, 1 << 30, 1<<62 - 1} {
		b := h3.AppendVarint(nil, v)
		if got, n := h3.Varint(append(b, 0xff)); got != v || n != len(b) {
			t.Errorf("%d: %d in %d bytes of %d", v, got, n, len(b))
		}
		for cut := range b {
			if _, n := h3.Varint(b[:cut]); n != 0 {
				t.Errorf("%d: %d of %d bytes are taken for the whole", v, cut, len(b))
			}
		}
	}
}

// section returns a section of fields as qpack's encoder writes it, which uses
// Huffman coding and the static table.
func section(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	e := qpack.NewEncoder(&b)
	for _, line := range lines {
		name, value, _ := strings.Cut(line[1:], ": ")
		if err := e.WriteField(qpack.HeaderField{Name: line[:1] + name, Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestParseRequest(t *testing.T) {
	var r h3.Request
	long := strings.Repeat("long~", 1000)
	for range 3 { // a Request is used again
		err := r.Parse(section(t, ":method: PATCH", ":scheme: https", ":authority: a.example.com", ":path: /p?q", "user-agent: x",
			"x-long: "+long, "content-length: 12", "cookie: a=1", "accept: */*", "cookie: b=2", "te: trailers", "x-empty: "), 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(r.Method, " ", r.Authority, " ", r.Path, " ", r.Length)
		for _, l := range r.Fields.Lines() {
			got += "|" + l.Name + ": " + l.Value
			if l.ID != field.Identify(l.Name) {
				t.Errorf("%s has the ID %d", l.Name, l.ID)
			}
		}
		want := "PATCH a.example.com /p?q 12|user-agent: x|x-long: " + long + "|content-length: 12|accept: */*|te: trailers|x-empty: |cookie: a=1; b=2"
		if got != want {
			t.Fatalf("%s\nwant %s", got, want)
		}
	}
}

// TestSizeOfSections has the limit count as RFC 9114 section 4.2.2 says.
func TestSizeOfSections(t *testing.T) {
	head := section(t, ":method: GET", ":scheme: https", ":authority: a", ":path: /", "x: y")
	size := 5*32 + len(":methodGET:schemehttps:authoritya:path/xy")
	var r h3.Request
	if err := r.Parse(head, size); err != nil {
		t.Error(err)
	}
	if err := r.Parse(head, size-1); err != h3.ErrTooLarge {
		t.Errorf("%v, want that it is too large", err)
	}
}

func TestAppendHead(t *testing.T) {
	var fields field.List
	for _, l := range [][2]string{{"Content-Type", "text/plain"}, {"Content-Type", "text/x-other"}, {"Content-Length", "0"}, {"X-Own", "v"},
		{"Set-Cookie", "a=1"}, {"set-cookie", "b=2"}, {"Vary", "origin"}, {"Date", strings.Repeat("d", 500)}, {"Age", ""}} {
		fields.Add(l[0], l[1])
	}
	for _, status := range []int{100, 103, 200, 204, 206, 299, 302, 304, 400, 403, 404, 421, 425, 431, 500, 503, 999} {
		kind, length, n := h3.FrameHeader(h3.AppendHead(nil, status, &fields))
		content := h3.AppendHead(nil, status, &fields)[n:]
		if kind != h3.FrameHeaders || length != uint64(len(content)) {
			t.Fatalf("a frame %d of %d bytes, has %d", kind, length, len(content))
		}
		got := ""
		for next := qpack.NewDecoder().Decode(content); ; {
			f, err := next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got += f.Name + ": " + f.Value + "|"
		}
		want := fmt.Sprintf(":status: %d|", status)
		for _, l := range fields.Lines() {
			want += strings.ToLower(l.Name) + ": " + l.Value + "|"
		}
		if got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// TestParseAllocatesNothing holds for heads with Huffman coding, too.
func TestParseAllocatesNothing(t *testing.T) {
	head := section(t, ":method: GET", ":scheme: https", ":authority: app.example.com", ":path: /some/where", "user-agent: something/1.0", "x-own: value")
	var r h3.Request
	if n := testing.AllocsPerRun(1000, func() {
		if err := r.Parse(head, math.MaxInt32); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSection compares what is read from any bytes with qpack's opinion: where
// that reads fields, so do we, unless they make no request.
func FuzzSection(f *testing.F) {
	f.Add(section(f, ":method: GET", ":scheme: https", ":authority: a", ":path: /"))
	f.Add([]byte{0, 0, 0xd1, 0x51, 0x81, 0xff, 0x27, 0x00, 'a'})
	f.Add([]byte{0, 0x80, 0x10, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var theirs []qpack.HeaderField
		var theirErr error
		for next := qpack.NewDecoder().Decode(b); ; {
			line, err := next()
			if err != nil {
				theirErr = err
				break
			}
			theirs = append(theirs, line)
		}
		var trailer h3.Trailer
		err := trailer.Parse(b, math.MaxInt32)
		if wrong, ok := err.(*h3.Error); err != nil && !ok {
			t.Fatalf("an error of type %T", err)
		} else if ok && wrong.Code != h3.DecompressionFailed {
			return // read, but no trailer section
		}
		// qpack passes over the sign of the base, and reads integers that are larger
		// than any length.
		if negative := len(b) > 1 && b[1]&0x80 != 0; theirErr == io.EOF && err != nil && !negative && !bytes.Contains(b, []byte{0x80, 0x80}) {
			t.Errorf("%v, and qpack reads %v", err, theirs)
		}
		if err == nil && theirErr == io.EOF {
			if len(theirs) != trailer.Fields.Len() {
				t.Fatalf("%d lines, and qpack reads %v", trailer.Fields.Len(), theirs)
			}
			for i, l := range trailer.Fields.Lines() {
				if l.Name != theirs[i].Name || l.Value != theirs[i].Value {
					t.Errorf("%q: %q, and qpack reads %v", l.Name, l.Value, theirs[i])
				}
			}
		}
		new(h3.Request).Parse(b, math.MaxInt32) // does not panic
	})
}

func BenchmarkParseRequest(b *testing.B) {
	head := section(b, ":method: GET", ":scheme: https", ":authority: app.example.com", ":path: /some/where", "user-agent: something/1.0", "x-own: value")
	var r h3.Request
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Parse(head, math.MaxInt32); err != nil {
			b.Fatal(err)
		}
	}
}
