package router

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"testing"
)

// hostExprSeeds are expressions with what they may be asked about.
var hostExprSeeds = []struct{ expr, host string }{
	{`^env-(?<id>[a-z0-9-]+)\.remotegpu\.com$`, "env-a-b1.remotegpu.com"},
	{`^(?<inner>[^-]+)--env-(?P<id>[^.]+)\.remotegpu\.com$`, "8888--env-abc.remotegpu.com"},
	{`^(?<id>[a-z0-9]+)-s123\.x-gpu\.com$`, "abc-s123.x-gpu.com"},
	{`^(?<id>.+)-(?<svc>.+)\.x-gpu\.com$`, "a-b-c.x-gpu.com"},
	{`^(?<s>ssh|jupyter|code)-(?<id>.+)\.x-gpu\.com$`, "code-a.b.x-gpu.com"}, {`^(?:ab|a)(?<r>b*)(?<f>[a-c]{2})$`, "abbbbc"},
	{`^(?<r>[ab]{1,3})(?<f>[ab]{2})b$`, "aabab"}, {`^(?<id>.*)(?:gpu|x)[a-z]$`, "a-gpux"},
	{`^(?<id>.+?)-(?<svc>.+?)\.x-gpu\.com$`, "a-b-c.x-gpu.com"},
	{`remotegpu`, "env.remotegpu.com"}, {`gpu(?<tail>.*)`, "x-gpu.gpu.com"}, {``, ""}, {`^$`, ""}, {`^^a$$`, "a"}, {`^(^|x)(^|y)a`, "xa"},
	{`^a\.test$|^b\.test$`, "b.test"}, {`^(?<s>ssh|jupyter|code)-s[0-9]\.x\.test$`, "code-s7.x.test"},
	{`(?i)^ENV-(?<id>[A-Z]+)\.Kelvin\.test$`, "env-abc.kelvin.test"}, {`(?m)^a$`, "a"}, {`\bgpu\b`, "x-gpu.com"}, {`a\Bb`, "ab"},
	{`^(?<a>a*)(?<b>a*)$`, "aaaa"}, {`^(?<a>a{2,3})(?<b>b?)c{2}\.x`, "aabcc.x"}, {`^(a|ab)(c|bcd)(d*)$`, "abcd"}, {`^(?<x>(?<y>a)|b)+$`, "ab"},
	{`^[a-c]{1,3}[0-9]{2}$`, "ab12"}, {`^(?:(?<o>x)|y)z`, "yz"}, {`(?<o>(a*)+)$`, "baa"}, {`^\x{212a}`, "k"}, {`(?i)\x{212a}`, "k"}, {`[^\x00-\x7f]`, "a"},
	{`^(?:a?){9}a{9}$`, "aaaaaaaaa"}, {`(?s)^.`, "\n"}, {`^.`, "\n"}, {`^[^.]*\.?$`, "ab."}, {`x*`, "y"}, {`^(?<e>)a$`, "a"}, {`(a|b|)$`, "ab"},
	{`^ab{0}c`, "ac"}, {`(?:^a|b)c$`, "bc"}, {`(?:^|[.])gpu\.test$`, "x.gpu.test"}, {`a$b`, "ab"}, {`(?:|a)+`, "aa"}, {`(?:a|b)*?c`, "abac"},
}

// FuzzHostExpr holds expressions against package regexp: the same hosts match,
// with the same captures, and each that does is found by its literals.
func FuzzHostExpr(f *testing.F) {
	for _, s := range hostExprSeeds {
		f.Add(s.expr, s.host)
	}
	f.Fuzz(checkHostExpr)
}

func checkHostExpr(t *testing.T, expr, host string) {
	e, err := parseHostExpr(expr)
	if err != nil || !isHostText(host) {
		return
	}
	std, err := regexp.Compile(expr)
	if err != nil {
		t.Fatalf("%q is taken; for regexp: %v", expr, err)
	}
	for _, host := range append(held(e, host), host) {
		checkMatch(t, e, std, host)
	}
}

// held returns hosts made of the literals that e demands, which random text
// hardly ever has.
func held(e *hostExpr, host string) []string {
	var hosts []string
	for _, set := range e.needs {
		for _, l := range set {
			if text := l.text + host; isHostText(text) && len(hosts) < 20 {
				hosts = append(hosts, l.text, text, host+l.text)
			}
		}
	}
	return hosts
}

func checkMatch(t *testing.T, e *hostExpr, std *regexp.Regexp, host string) {
	t.Helper()
	if !isHostText(host) {
		return
	}
	want := std.FindStringSubmatch(host)
	c := Captures{names: e.groups, host: host}
	if got := e.match(host, &c.at); got != (want != nil) {
		t.Fatalf("%q matches %q: %v, for regexp %v (in steps: %v)", std, host, got, want != nil, e.seq != nil)
	}
	if want == nil {
		return
	}
	for i, name := range std.SubexpNames() {
		if name != "" && c.Get(name) != want[i] {
			t.Fatalf("%q on %q: %s = %q, for regexp %q (in steps: %v)", std, host, name, c.Get(name), want[i], e.seq != nil)
		}
	}
	for _, set := range e.needs {
		x := (&regexIndex{}).with(HostPattern{source: "~", kind: hostRegex, re: &hostExpr{needs: [][]literal{set}}}, &Route{})
		if !holdsOne(host, set) {
			t.Fatalf("%q matches %q, which holds none of %+v", std, host, set)
		}
		if found := x.candidates(host, nil); nextRegex(found) == nil {
			t.Fatalf("%q matches %q, which is not found by %+v", std, host, set)
		}
	}
}

// TestHostExprs asks every expression of the seeds about every host of them.
func TestHostExprs(t *testing.T) {
	for _, s := range hostExprSeeds {
		for _, other := range hostExprSeeds {
			checkHostExpr(t, s.expr, other.host)
		}
	}
}

// TestOrdinaryExprsGoForward wants what people write to be matched without
// going back, and found by what tells it from others.
func TestOrdinaryExprsGoForward(t *testing.T) {
	for expr, want := range map[string]literal{
		`^env-(?<id>[a-z0-9-]+)\.remotegpu\.com$`:               {end: true, text: ".remotegpu.com"},
		`^(?<id>[a-z0-9]+)-s123\.x-gpu\.com$`:                   {end: true, text: "-s123.x-gpu.com"},
		`^(?<inner>[0-9]{1,5})--env-(?<id>[^.]+)\.x-gpu\.com$`:  {end: true, text: ".x-gpu.com"},
		`^env-a1b2\.remotegpu\.com$`:                            {begin: true, end: true, text: "env-a1b2.remotegpu.com"},
		`(?i)^ENV-(?<id>[A-Z0-9-]+)\.REMOTEGPU\.COM$`:           {end: true, text: ".remotegpu.com"},
		`^(?<id>[a-z0-9]+)-(?<region>[a-z0-9]+)\.`:              {text: "-"},
		`^service-with-a-long-name-(?<id>[a-z0-9]+)\.x\.test$`:  {begin: true, text: "service-with-a-long-name-"},
		`^(?<id>[a-z0-9]+)-middle-of-it-(?<svc>[a-z]+)\.x\.io$`: {text: "-middle-of-it-"},
	} {
		e, err := parseHostExpr(expr)
		if err != nil {
			t.Fatal(err)
		}
		if e.seq == nil {
			t.Errorf("%s is matched with going back", expr)
		}
		if got := e.needs[0]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is found by %+v, want %+v", expr, got, want)
		}
	}
}

func TestHostExprsAreBounded(t *testing.T) {
	for expr, want := range map[string]string{
		`^[a-z]{1000}[a-z]{1000}[a-z]{1000}$`:                                                                                       "compiles to 3006 steps",
		`^(?:` + strings.Repeat("[a-z]", 190) + `){1000}$`:                                                                          "at most 2048 are allowed",
		`^(((a{10}){10}){10})` + strings.Repeat(`[a-z]{900}`, 9):                                                                    "at most 2048 are allowed",
		`^` + strings.Repeat(`(?<a>x)`, 1) + strings.Repeat("a", 1020):                                                              "characters long",
		`^(?<a>.)(?<b>.)(?<c>.)(?<d>.)(?<e>.)(?<f>.)(?<g>.)(?<h>.)(?<i>.)(?<j>.)(?<k>.)(?<l>.)(?<m>.)(?<n>.)(?<o>.)(?<p>.)(?<q>.)$`: "17 named groups; at most 16",
		`^(?<host>.)$`: "built-in variable", `(`: "missing closing )",
	} {
		if _, err := parseHostExpr(expr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", expr, err, want)
		}
	}
	for _, expr := range []string{`^[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}\.x\.test$`, `((((a?){2}){2}){2}){3,}`, `(?:ab|c){0}x{5,9}y{7}`} {
		tree, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		prog, err := syntax.Compile(tree.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if got := regexSize(tree); got < len(prog.Inst)-2 || got > 2*len(prog.Inst) {
			t.Errorf("%s is said to compile to %d steps, and comes to %d", expr, got, len(prog.Inst))
		}
	}
	// As much going back as there can be: each pair of place and instruction.
	e, err := parseHostExpr(`^(?:(?:a|a)*(?:a|a)*(?:a|a)*(?:a|a)*)*b$`)
	if err != nil {
		t.Fatal(err)
	}
	if (&Captures{}).at == (spans{}) && e.match(strings.Repeat("a", maxHost), new(spans)) {
		t.Error("matched without a b")
	}
}

// Classes of characters that no host has take no memory: \PC would be a table of
// 5 KB for each time that it is written, and a value may have many.
func TestHostExprClassesAreSmall(t *testing.T) {
	for _, class := range []string{`\PC`, `\pL`, `\W`, `[^a]`, `(?i:\pL)`, `[\pL\pN]`, `\p{Greek}`} {
		re, err := parseHostExpr(`^(x|yy)*` + strings.Repeat(class, 100) + `$`)
		if err != nil {
			t.Fatal(err)
		}
		if re.prog == nil {
			t.Fatalf("%s: not a program", class)
		}
		for _, inst := range re.prog.inst {
			if n := len(inst.Rune); n > 16 {
				t.Errorf("%s: an instruction holds %d characters", class, n)
			}
		}
	}
}
