package sniff_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/sniff"
)

// stricter are the things that ClientHello refuses and crypto/tls lets pass.
var stricter = []string{
	"session id", "cipher suites", "no compression", "more than", "server name holds", "server name of", "major version",
}

// FuzzClientHello compares with crypto/tls and checks what must hold for any
// bytes: no panic, a sensible need, the same answer for a copy that ends where
// the hello ends.
func FuzzClientHello(f *testing.F) {
	big := clientHello(f, &tls.Config{ServerName: "big.example.com", NextProtos: manyProtocols(85)})
	small := clientHello(f, &tls.Config{ServerName: "Demo.example.com", NextProtos: []string{"h2", "http/1.1"}, CurvePreferences: []tls.CurveID{tls.X25519}})
	f.Add(big)
	f.Add(small)
	f.Add(split(small, 1, 2, 3, 50))
	f.Add(append(bytes.Clone(small), "\x14\x03\x03\x00\x01\x01"...))
	f.Add(hello{suites: "\x13\x01", compression: "\x00", extensions: ext(0x0a0a, "") + sni("x.test") + ext(16, vec16(vec8("h2")))}.bytes())
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		got, need, err := sniff.ClientHello(p)
		switch {
		case err != nil && need != 0:
			t.Fatalf("need %d with the error %v", need, err)
		case need != 0 && (need <= len(p) || need > sniff.MaxPeek):
			t.Fatalf("need %d of %d bytes", need, len(p))
		case err != nil && !errors.Is(err, sniff.ErrNotTLS) && !errors.Is(err, sniff.ErrMalformed):
			t.Fatalf("unknown error %v", err)
		}
		theirs, ok := reference(p)
		switch {
		case ok && need != 0:
			t.Fatalf("asks for %d, but crypto/tls reads %+v", need, theirs)
		case ok && err == nil && !sameHello(got, theirs):
			t.Fatalf("got %+v, crypto/tls reads %+v", got, theirs)
		case ok && err != nil && !knownStrictness(p, err):
			t.Fatalf("refused (%v), but crypto/tls reads %+v", err, theirs)
		}
	})
}

// knownStrictness reports whether err is one of the refusals that go further
// than crypto/tls. Warning alerts and old record versions ahead of the hello
// are what ErrNotTLS may refuse and crypto/tls skips.
func knownStrictness(p []byte, err error) bool {
	if errors.Is(err, sniff.ErrNotTLS) {
		return p[0] == 21 || p[1] != 3
	}
	for _, s := range stricter {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	// A warning alert between two records of the hello.
	return strings.Contains(err.Error(), "a later record has type 21")
}
