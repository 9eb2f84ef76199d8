package field_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/field"
)

func list(lines ...string) *field.List {
	l := new(field.List)
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		l.Add(name, value)
	}
	return l
}

func text(l *field.List) string {
	var lines []string
	for _, line := range l.Lines() {
		lines = append(lines, line.Name+": "+line.Value)
	}
	return strings.Join(lines, " | ")
}

func TestList(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(l *field.List)
		want string
	}{
		"as it was":        {func(*field.List) {}, "Host: a | x-b: 1 | Accept: */* | X-B: 2 | te: trailers"},
		"set in place":     {func(l *field.List) { l.Set("X-b", "3") }, "Host: a | x-b: 3 | Accept: */* | te: trailers"},
		"set a new one":    {func(l *field.List) { l.Set("X-C", "3") }, "Host: a | x-b: 1 | Accept: */* | X-B: 2 | te: trailers | X-C: 3"},
		"set a known one":  {func(l *field.List) { l.SetID(field.TE, "x") }, "Host: a | x-b: 1 | Accept: */* | X-B: 2 | te: x"},
		"add a known one":  {func(l *field.List) { l.AddID(field.TE, "x") }, "Host: a | x-b: 1 | Accept: */* | X-B: 2 | te: trailers | TE: x"},
		"delete":           {func(l *field.List) { l.Del("x-B") }, "Host: a | Accept: */* | te: trailers"},
		"delete a known":   {func(l *field.List) { l.DelID(field.TE) }, "Host: a | x-b: 1 | Accept: */* | X-B: 2"},
		"delete the first": {func(l *field.List) { l.Del("HOST") }, "x-b: 1 | Accept: */* | X-B: 2 | te: trailers"},
		"delete nothing":   {func(l *field.List) { l.Del("X-C"); l.DelID(field.Date) }, "Host: a | x-b: 1 | Accept: */* | X-B: 2 | te: trailers"},
		"delete by func":   {func(l *field.List) { l.DelFunc(func(l *field.Line) bool { return l.ID == field.Other }) }, "Host: a | te: trailers"},
		"reset":            {(*field.List).Reset, ""},
		"take": {func(l *field.List) {
			other := list("A: 1")
			l.Take(other)
			l.Add("B", text(other)[:4])
		}, "A: 1 | B: Host"},
	} {
		l := list("Host: a", "x-b: 1", "Accept: */*", "X-B: 2", "te: trailers")
		if tc.edit(l); text(l) != tc.want {
			t.Errorf("%s: %s, want %s", name, text(l), tc.want)
		}
	}
	l := list("Host: a", "x-b: 1", "X-B: 2")
	if got := fmt.Sprint(l.Get("X-B"), l.Get("host"), l.Get("x-c"), l.GetID(field.Host), l.GetID(field.Date), l.Has(field.Host), l.Has(field.Date), l.Len()); got != "1aatrue false 3" {
		t.Errorf("%s", got)
	}
}

func TestIdentify(t *testing.T) {
	for id := field.Connection; id <= field.Location; id++ {
		for _, name := range []string{id.Name(), strings.ToLower(id.Name()), strings.ToUpper(id.Name())} {
			if got := field.Identify(name); got != id {
				t.Errorf("%q is %d, want %d", name, got, id)
			}
		}
		for _, name := range []string{id.Name() + "x", id.Name()[1:], strings.Replace(id.Name(), "-", "_", 1) + "\x00", "\x00" + id.Name()[1:]} {
			if got := field.Identify(name); got == id {
				t.Errorf("%q passes for %s", name, id.Name())
			}
		}
	}
	// What is folded is letters, not whatever differs in that bit.
	if field.Identify("Keep\rAlive") != field.Other || field.EqualFold("a-b", "a\rb") || field.EqualFold("@", "`") {
		t.Error("other characters than letters are folded")
	}
}

func TestTokens(t *testing.T) {
	l := list("Connection: keep-alive , Upgrade;q=1", "Connection: close")
	for token, want := range map[string]bool{"upgrade": true, "CLOSE": true, "keep-alive": true, "keep": false, "q=1": false, "": false} {
		if got := l.HasToken(field.Connection, token); got != want {
			t.Errorf("%q: %v, want %v", token, got, want)
		}
	}
	if l.HasToken(field.TE, "trailers") {
		t.Error("a field that is not there has a token")
	}
}

func TestMayTrail(t *testing.T) {
	for name, want := range map[string]bool{
		"Grpc-Status": true, "X-Sum": true, "Server-Timing": true, "content-length": false, "Transfer-Encoding": false, "Host": false,
		"If-Match": false, "TE": false, "Trailer": false, "Content-Type": false, "authorization": false, "If": true,
	} {
		if got := field.MayTrail(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
