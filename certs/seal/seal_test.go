package seal_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs/seal"
)

func ring(t testing.TB, keys ...seal.Key) *seal.Ring {
	t.Helper()
	r, err := seal.Parse(seal.FormatFile(keys))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustSeal(t testing.TB, r *seal.Ring, path string, plain []byte, now time.Time) []byte {
	t.Helper()
	sealed, err := r.Seal(path, plain, now)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealAndOpen(t *testing.T) {
	r := ring(t, seal.NewKey())
	now := time.Date(2026, 11, 21, 18, 0, 0, 123456789, time.UTC)
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("private "), 10000)} {
		sealed := mustSeal(t, r, "acme/a", plain, now)
		if len(plain) > 1 && bytes.Contains(sealed, plain[:8]) {
			t.Error("the plaintext can be read in what was sealed")
		}
		got, err := r.Open("acme/a", sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("Open = %d bytes, %v; want %d", len(got), err, len(plain))
		}
		out, err := seal.Look(sealed)
		if err != nil || out.KeyID != r.Active() || !out.Time.Equal(now) || out.Size != len(plain) {
			t.Errorf("Look = %+v, %v", out, err)
		}
		if again := mustSeal(t, r, "acme/a", plain, now); bytes.Equal(again, sealed) {
			t.Error("sealing the same twice gives the same: the nonce is not random")
		}
	}
}

// TestEveryBitCounts flips each bit of a sealed value in turn, cuts it at each
// length, and moves it: nothing of that opens.
func TestEveryBitCounts(t *testing.T) {
	r := ring(t, seal.NewKey())
	sealed := mustSeal(t, r, "acme/a", []byte("secret"), time.Now())
	for i := range len(sealed) * 8 {
		bent := bytes.Clone(sealed)
		bent[i/8] ^= 1 << (i % 8)
		if _, err := r.Open("acme/a", bent); err == nil {
			t.Errorf("opens with bit %d of byte %d flipped", i%8, i/8)
		}
	}
	for n := range sealed {
		if _, err := r.Open("acme/a", sealed[:n]); err == nil {
			t.Errorf("opens when cut to %d bytes", n)
		}
	}
	if _, err := r.Open("acme/a", append(bytes.Clone(sealed), 0)); err == nil {
		t.Error("opens with a byte appended")
	}
	if _, err := r.Open("acme/b", sealed); err == nil || !strings.Contains(err.Error(), "seal does not match") {
		t.Errorf("opens under another path: %v", err)
	}
}

func TestRotation(t *testing.T) {
	before, after := seal.NewKey(), seal.NewKey()
	now := time.Now()
	old := mustSeal(t, ring(t, before), "p", []byte("v"), now)
	both := ring(t, after, before)
	if got, err := both.Open("p", old); err != nil || string(got) != "v" {
		t.Errorf("the second key does not open: %q, %v", got, err)
	}
	fresh := mustSeal(t, both, "p", []byte("v"), now)
	if out, _ := seal.Look(fresh); out.KeyID != after.ID() {
		t.Errorf("sealed with %s, want the first key, %s", out.KeyID, after.ID())
	}
	var missing *seal.MissingKeyError
	_, err := ring(t, before).Open("p", fresh)
	if !errors.As(err, &missing) || missing.ID != after.ID() || !strings.Contains(err.Error(), "this node has "+before.ID()) {
		t.Errorf("without the key: %v", err)
	}
	if !both.Has(before.ID()) || !both.Has(after.ID()) || both.Has(seal.NewKey().ID()) || both.Has("") || both.Active() != after.ID() {
		t.Errorf("the ring has %v, active %s", both.IDs(), both.Active())
	}
}

func TestNoRing(t *testing.T) {
	var none *seal.Ring
	if _, err := none.Seal("p", nil, time.Now()); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("Seal without a key: %v", err)
	}
	sealed := mustSeal(t, ring(t, seal.NewKey()), "p", nil, time.Now())
	if _, err := none.Open("p", sealed); err == nil || !strings.Contains(err.Error(), "there is none on this node") {
		t.Errorf("Open without a key: %v", err)
	}
	if none.Active() != "" || none.IDs() != nil || none.Has("00") || none.Keys() != nil || none.String() != "no cluster key" {
		t.Error("a ring without keys claims to have one")
	}
}

// TestNothingIsPrinted prints keys in every way that a mistake could.
func TestNothingIsPrinted(t *testing.T) {
	k := seal.NewKey()
	secret := strings.Fields(k.Line())[1]
	raw, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	r := ring(t, k)
	for _, v := range []any{k, &k, r, *r, []seal.Key{k}, struct{ K seal.Key }{k}, struct{ k seal.Key }{k}, struct{ r *seal.Ring }{r}} {
		log.Info("look", "v", v)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			fmt.Fprintf(&out, verb, v)
		}
	}
	for _, leak := range []string{secret, string(raw), fmt.Sprintf("%x", raw[:4]), strings.Trim(fmt.Sprint(raw[:4]), "[]")} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the key was printed as %q in %s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), k.ID()) {
		t.Error("the ID was not printed")
	}
}

func TestParse(t *testing.T) {
	k, other := seal.NewKey(), seal.NewKey()
	secret := strings.Fields(k.Line())[1]
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "no key in it"},
		{"comments only", "# nothing\n\n", "no key in it"},
		{"one", k.Line(), ""},
		{"two, with comments and blanks", "# x\n\n  " + k.Line() + "  \r\n" + other.Line() + "\n", ""},
		{"twice", k.Line() + "\n" + k.Line(), "line 2: key " + k.ID() + " is there twice"},
		{"one word", secret, "line 1: want two words"},
		{"three words", k.Line() + " x", "line 1: want two words"},
		{"swapped", secret + " " + k.ID(), "line 1: the key has 12 bytes, want 32"},
		{"another's ID", other.ID() + " " + secret, "line 1: the ID is " + other.ID() + ", and the key's is " + k.ID()},
		{"the secret twice", secret + " " + secret, "the ID is not one of 16 hexadecimal digits"},
		{"not base64", k.ID() + " !!", "line 1: the second word is not base64"},
		{"short", k.ID() + " " + base64.StdEncoding.EncodeToString(make([]byte, 31)), "line 1: the key has 31 bytes, want 32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := seal.Parse([]byte(tt.text))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Parse: %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells the key: %v", err)
			}
		})
	}
	var many []seal.Key
	for range 65 {
		many = append(many, seal.NewKey())
	}
	if _, err := seal.Parse(seal.FormatFile(many)); err == nil || !strings.Contains(err.Error(), "more than 64 keys") {
		t.Errorf("65 keys: %v", err)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.key")
	if _, err := seal.ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	k, other := seal.NewKey(), seal.NewKey()
	if err := seal.WriteFile(path, []seal.Key{k}, false); err != nil {
		t.Fatal(err)
	}
	if err := seal.WriteFile(path, []seal.Key{other}, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was replaced: %v", err)
	}
	if r, err := seal.ReadFile(path); err != nil || r.Active() != k.ID() {
		t.Errorf("ReadFile = %v, %v", r, err)
	}
	if err := seal.WriteFile(path, []seal.Key{other, k}, true); err != nil {
		t.Fatal(err)
	}
	if r, err := seal.ReadFile(path); err != nil || r.Active() != other.ID() || len(r.Keys()) != 2 {
		t.Errorf("ReadFile = %v, %v", r, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the directory has %v, %v", left, err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.ReadFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %#o: %v", mode, err)
		}
	}
	if _, err := seal.ReadFile(dir); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a directory: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 65<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.ReadFile(big); err == nil || !strings.Contains(err.Error(), "no file of keys") {
		t.Errorf("a large file: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	k := seal.NewKey()
	r, err := seal.Parse(seal.FormatFile([]seal.Key{k}))
	if err != nil {
		f.Fatal(err)
	}
	good, err := r.Seal("p", []byte("v"), time.Unix(1, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "p")
	f.Add([]byte(nil), "")
	f.Add([]byte{1}, "p")
	f.Add(good[:seal.Overhead-1], "p")
	f.Fuzz(func(t *testing.T, envelope []byte, path string) {
		out, lookErr := seal.Look(envelope)
		if lookErr == nil && (out.Size != len(envelope)-seal.Overhead || len(out.KeyID) != 16) {
			t.Errorf("Look = %+v of %d bytes", out, len(envelope))
		}
		plain, err := r.Open(path, envelope)
		if err == nil && (path != "p" || !bytes.Equal(envelope, good) || string(plain) != "v") {
			t.Errorf("something opens that was never sealed: %x under %q", envelope, path)
		}
		if lookErr != nil && err == nil {
			t.Error("it opens, and has no outside")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(seal.NewKey().Line()))
	f.Add([]byte("# x\n\n0 AA==\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := seal.Parse(text)
		if err != nil {
			return
		}
		again, err := seal.Parse(seal.FormatFile(r.Keys()))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Errorf("%v came back as %v, %v", r, again, err)
		}
	})
}
