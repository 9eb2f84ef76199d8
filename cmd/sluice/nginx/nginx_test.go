package nginx

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWordsAreReadAsNginxReadsThem(t *testing.T) {
	for _, tc := range []struct {
		text string
		want []string
	}{
		{`a;`, []string{"a"}},
		{"a b\t c\n d ;", []string{"a", "b", "c", "d"}},
		{`a "b c" 'd "e"';`, []string{"a", "b c", `d "e"`}},
		{`a '';`, []string{"a", ""}},
		{`a ~^x\.y$;`, []string{"a", `~^x\.y$`}},
		{`a "~^x\.y{2}$";`, []string{"a", `~^x\.y{2}$`}},
		{`a "b\"c" d\;e;`, []string{"a", `b"c`, `d\;e`}},
		{`a "b\tc\n";`, []string{"a", "b\tc\n"}},
		{`a ${b}c $d;`, []string{"a", "${b}c", "$d"}},
		{`a b#c; # d`, []string{"a", "b#c"}},
		{`a http://b:80/;`, []string{"a", "http://b:80/"}},
	} {
		all, err := Parse("f", []byte(tc.text))
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %d directives, %v", tc.text, len(all), err)
			continue
		}
		if diff := cmp.Diff(tc.want, append([]string{all[0].Name}, all[0].Args...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.text, diff)
		}
	}
}

func TestWhatIsNotNginxIsRefusedWithItsLine(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"a\nb", "f:1: the file ends within the directive \"a\"; a ; is missing"},
		{"a {\nb c;\n", "f:3: the file ends within the block \"a\" that begins on line 1; a } is missing"},
		{"a;\n}", "f:2: a } that no { goes before"},
		{"a {\n b }", "f:2: a } within the directive \"b\" of line 2; a ; is missing before it"},
		{"\n;", "f:2: a ; without a directive before it"},
		{"a \"b", "f:1: the quotes that open here do not close"},
		{"a \"b\"c;", "f:1: 'c' right behind the end of a word in quotes; write a space or a ; there"},
		{"a_by_lua_block {\n x = {} ", "f:1: the block of Lua that begins here does not end"},
		{strings.Repeat("a {", 40), "f:1: blocks lie more than 32 deep in each other"},
	} {
		_, err := Parse("f", []byte(tc.text))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%q: %v, want %s", tc.text, err, tc.want)
		}
	}
}

func TestIncludesAreReadInTheirPlace(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "nginx.conf", "stream { include /etc/nginx/stream.d/*.conf; include more.conf; } http { include /etc/nginx/mime.types; }")
	write(t, dir, "stream.d/b.conf", "server { listen 2; proxy_pass b:2; }")
	write(t, dir, "stream.d/a.conf", "server { listen 1; proxy_pass a:1; }")
	write(t, dir, "more.conf", "server { listen 3; proxy_pass c:3; }")
	all, err := Load(dir, "/etc/nginx")
	if err != nil {
		t.Fatal(err)
	}
	if got := keysOf(Convert(all)); got != "ports/tcp/1 ports/tcp/2 ports/tcp/3" {
		t.Errorf("the keys are %s", got)
	}

	write(t, dir, "more.conf", "include more.conf;")
	if _, err := Load(dir, "/etc/nginx"); err == nil || !strings.Contains(err.Error(), "more.conf:1: files include each other more than 32 deep") {
		t.Errorf("a file that includes itself: %v", err)
	}
	write(t, dir, "more.conf", "include gone.conf;")
	if _, err := Load(dir, "/etc/nginx"); err == nil || !strings.Contains(err.Error(), "more.conf:1: include \"gone.conf\": there is no") {
		t.Errorf("a file that includes what is not there: %v", err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func keysOf(r *Result) string {
	names := make([]string, len(r.Keys))
	for i, k := range r.Keys {
		names[i] = k.Key
	}
	return strings.Join(names, " ")
}

// convert turns a text into a Result, whose directives must all be accounted for.
func convert(t *testing.T, text string) *Result {
	t.Helper()
	all, err := Parse("nginx.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	all, err = (&loader{}).included(all, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := Convert(all)
	accounted(t, all)
	return r
}

// accounted wants every directive in a key or a note.
func accounted(t *testing.T, all []*Directive) {
	t.Helper()
	for _, d := range all {
		if !d.done {
			t.Errorf("%s:%d: nothing became of %q, and nobody says so", d.File, d.Line, d)
		}
		if d.Name != "types" && d.Name != "events" {
			accounted(t, d.Block)
		}
	}
}

// TestWhatBecomesOf goes through what servers say. The keys are compared as JSON,
// of the notes that are not about what is unneeded each must hold its text.
func TestWhatBecomesOf(t *testing.T) {
	for _, tc := range becomes {
		t.Run(tc.name, func(t *testing.T) {
			r := convert(t, tc.text)
			got := map[string]string{}
			for _, k := range r.Keys {
				got[k.Key] = string(k.Value)
			}
			if diff := cmp.Diff(tc.keys, got); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
			var notes []string
			for _, n := range r.Notes {
				if n.Kind != Unneeded {
					notes = append(notes, fmt.Sprintf("%d %s: %s: %s; %s", n.Line, n.Kind, n.Directive, n.Why, n.Todo))
				}
			}
			if len(notes) != len(tc.notes) {
				t.Fatalf("the notes are\n%s", strings.Join(notes, "\n"))
			}
			for i, want := range tc.notes {
				for part := range strings.SplitSeq(want, "...") {
					if !strings.Contains(notes[i], part) {
						t.Errorf("note %d is\n%s\nand does not say %q", i, notes[i], part)
					}
				}
			}
		})
	}
}

func TestTheNodesFileHasWhatKeysNeed(t *testing.T) {
	r := convert(t, `stream { server { listen 20000-20002; proxy_pass a:1; } server { listen 20005 proxy_protocol; set_real_ip_from 10.0.0.0/8; proxy_pass b:1; } }
http { server { listen 443 ssl; listen 80; server_name a.example.com; auth_basic x; auth_basic_user_file /etc/nginx/users;
  ssl_verify_client on; ssl_client_certificate /etc/nginx/ca.pem; location / { proxy_pass http://a:80; } } }`)
	want := `listeners:
  https:
    - {address: ":443", trusted_proxies: []}
  http:
    - {address: ":80", trusted_proxies: []}
ports: ["20000-20002", "20005"] # make ranges of them, so that mappings can come
password_files:
  passwords: "/etc/nginx/users"
client_auth:
  clients: {ca: "/etc/nginx/ca.pem"}
trusted_proxies: [10.0.0.0/8]
`
	if diff := cmp.Diff(want, r.Node.YAML()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlatform(t *testing.T) {
	all, err := Load("testdata/platform", "/etc/nginx")
	if err != nil {
		t.Fatal(err)
	}
	r := Convert(all)
	accounted(t, all)
	if len(r.Keys) != 15 {
		t.Errorf("%d keys: %s", len(r.Keys), keysOf(r))
	}
	again, err := Load("testdata/platform", "/etc/nginx")
	if err != nil {
		t.Fatal(err)
	}
	first, second := string(encode(r)), string(encode(Convert(again)))
	if first != second {
		t.Errorf("the same files come to\n%s\nand to\n%s", first, second)
	}
	for _, n := range r.Notes {
		if n.Kind == Lost && !strings.Contains(n.Directive, "backup") {
			t.Errorf("lost: %s", n)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range becomes {
		f.Add(tc.text)
	}
	f.Add("a \"b\\\"c\" ${d} '' { e; # f\n }")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Parse("f", []byte(text))
		if err != nil {
			if !errors.As(err, new(*ParseError)) {
				t.Fatalf("%v is not a *ParseError", err)
			}
			return
		}
		// What is written anew is read as the same.
		var b strings.Builder
		render(&b, all)
		again, err := Parse("f", []byte(b.String()))
		if err != nil {
			t.Fatalf("%q is read, and %q is not: %v", text, b.String(), err)
		}
		var c strings.Builder
		render(&c, again)
		if b.String() != c.String() {
			t.Fatalf("%q became\n%s\nand then\n%s", text, b.String(), c.String())
		}
	})
}

func FuzzConvert(f *testing.F) {
	for _, tc := range becomes {
		f.Add(tc.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Parse("f", []byte(text))
		if err != nil {
			return
		}
		if all, err = (&loader{base: t.TempDir()}).included(all, nil, 0); err != nil {
			return
		}
		if wide(all) {
			return // good, and slow to fuzz
		}
		r := Convert(all)
		accounted(t, all)
		for _, k := range r.Keys {
			if !json.Valid(k.Value) {
				t.Errorf("%s is not JSON: %s", k.Key, k.Value)
			}
		}
		r.Node.YAML()
	})
}

// wide reports whether a server listens on many ports.
func wide(all []*Directive) bool {
	for _, d := range all {
		if l, err := parseListen(d); err == nil && l.last-l.first > 100 || wide(d.Block) {
			return true
		}
	}
	return false
}

// render writes directives with every word in quotes.
func render(b *strings.Builder, all []*Directive) {
	quote := func(s string) string {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	for _, d := range all {
		b.WriteString(quote(d.Name))
		for _, a := range d.Args {
			b.WriteString(" " + quote(a))
		}
		switch {
		case strings.HasSuffix(d.Name, "_by_lua_block") && d.IsBlock:
			b.WriteString(" {}\n")
		case d.IsBlock:
			b.WriteString(" {\n")
			render(b, d.Block)
			b.WriteString("}\n")
		default:
			b.WriteString(";\n")
		}
	}
}
