package sniff_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/sniff"
)

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		p    string
		want sniff.Kind
		at   int // bytes that decide
	}{
		{"GET / HTTP/1.1\r\n", sniff.HTTP, 5},
		{"get /x", sniff.HTTP, 5},
		{"M-SEARCH * HTTP/1.1\r\n", sniff.HTTP, 16},
		{"VERSION-CONTROL /a", sniff.HTTP, 17},
		{"UPDATEREDIRECTREF /a", sniff.HTTP, 19},
		{"ABCDEFGHIJKLMNOPQRST /", sniff.HTTP, 22},
		{"ABCDEFGHIJKLMNOPQRSTU /", sniff.Other, 21},
		{"OPTIONS * HTTP/1.1\r\n", sniff.HTTP, 15},
		{"OPTIONS *x", sniff.Other, 10},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", sniff.HTTP, 11},
		{"GET http://demo.example.com/ HTTP/1.1", sniff.HTTP, 11},
		{"GET HTTPS://demo.example.com/ HTTP/1.1", sniff.HTTP, 12},
		{"GET httpx://demo.example.com/", sniff.Other, 9},
		{"CONNECT demo.example.com:443 HTTP/1.1", sniff.HTTP, 9},
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2", sniff.Other, 4},
		{"SSH-1.99-x /", sniff.Other, 4},
		{"\x03\x00\x00\x13\x0e\xe0", sniff.Other, 1}, // RDP: TPKT
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", sniff.Other, 1},
		{"\r\nGET / HTTP/1.1", sniff.Other, 1},
		{"\r\n\r\n\x00\r\nQUIT\n", sniff.Other, 1}, // PROXY v2
		{"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", sniff.Other, 7},
		{"PING\r\n", sniff.Other, 5},
		{"SET key value\r\n", sniff.Other, 5},
		{"EHLO x.test\r\n", sniff.Other, 6},
		{"get key\r\n", sniff.Other, 5},
		{"GET  /", sniff.Other, 5},
		{" GET /", sniff.Other, 1},
		{"*1\r\n$4\r\nPING\r\n", sniff.Other, 3},
		{"\x16\x03\x01\x02\x00\x01\x00", sniff.TLS, 6},
		{"\x16\x03\x01\x00\x01\x01", sniff.TLS, 6},
		{"\x16\x03\x01\x02\x00\x02", sniff.Other, 6},
		{"\x16\x05", sniff.Other, 2},
		{"\x16\x03\x01\x00\x00", sniff.Other, 5},
		{"\x16\x03\x01\x40\x01", sniff.Other, 5},
		{"\x16 /", sniff.Other, 2},
	} {
		for n := range len(tc.p) + 1 {
			want := sniff.NeedMore
			if n >= tc.at {
				want = tc.want
			}
			if got := sniff.Classify([]byte(tc.p[:n])); got != want {
				t.Errorf("%q: got %v, want %v", tc.p[:n], got, want)
				break
			}
		}
	}
}

func TestClassifyTLSClient(t *testing.T) {
	if got := sniff.Classify(clientHello(t, &tls.Config{ServerName: "x.test"})); got != sniff.TLS {
		t.Errorf("a crypto/tls client: got %v, want tls", got)
	}
}

func TestClassifyAllocations(t *testing.T) {
	p := []byte("VERSION-CONTROL https://x.test/")
	if got := testing.AllocsPerRun(100, func() { sniff.Classify(p) }); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

func TestKindString(t *testing.T) {
	for k, want := range map[sniff.Kind]string{sniff.NeedMore: "unknown", sniff.TLS: "tls", sniff.HTTP: "http", sniff.Other: "other"} {
		if got := k.String(); got != want {
			t.Errorf("kind %d: got %q, want %q", k, got, want)
		}
	}
}

// FuzzClassify checks what must hold for any bytes: an answer, once given,
// stays, it comes within MaxClassify bytes, and it agrees with ClientHello.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{"", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "SSH-2.0-x", "\x16\x03\x01\x02\x00\x01", "GET https://", strings.Repeat("A", 40)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var answer sniff.Kind
		for n := range min(len(p), sniff.MaxClassify+8) + 1 {
			got := sniff.Classify(p[:n])
			if answer != sniff.NeedMore && got != answer {
				t.Fatalf("%q: %v, and %v one byte earlier", p[:n], got, answer)
			}
			if got == sniff.NeedMore && n >= sniff.MaxClassify {
				t.Fatalf("%q: no answer", p[:n])
			}
			answer = got
		}
		_, _, err := sniff.ClientHello(p)
		if answer == sniff.TLS && err == sniff.ErrNotTLS || err == nil && answer != sniff.TLS && answer != sniff.NeedMore {
			t.Fatalf("%q: classified as %v, and ClientHello says %v", p, answer, err)
		}
	})
}
