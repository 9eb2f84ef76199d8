package router

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// members walks an object as encoding/json does.
func members(raw []byte) (all []string, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, fmt.Errorf("not an object")
	}
	seen := map[string]bool{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if seen[name.(string)] {
			return nil, fmt.Errorf("twice")
		}
		seen[name.(string)] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		all = append(all, name.(string), string(value))
	}
	return all, nil
}

// FuzzEachField compares what eachField finds with encoding/json.
func FuzzEachField(f *testing.F) {
	f.Add(`{"a":1,"b":"x\"},{","c":[1,{"d":"]"}],"e":{"f":{}},"g":null}`)
	f.Add("{ \"a\" :\n\t-1.5e3 , \"\\u0062\" : true,\"ä\":\"\xff\" }")
	f.Add(`{"a":1,"a":2}`)
	f.Add(`{}`)
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf(`"k%d":[%d]`, i, i))
	}
	f.Add("{" + strings.Join(many, ",") + "}")
	f.Add("{" + strings.Join(many, ",") + `,"k3":0}`)
	f.Fuzz(func(t *testing.T, text string) {
		if !json.Valid([]byte(text)) {
			return
		}
		raw := bytes.Trim([]byte(text), " \n\t\r")
		want, wantErr := members(raw)
		var got []string
		err := eachField("", raw, func(name string, value json.RawMessage) error {
			got = append(got, name, string(value))
			return nil
		})
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, want %v", text, err, wantErr)
		}
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	})
}

// FuzzPlainBackend reads a backend in its short form and as a list of one, which
// takes the long way.
func FuzzPlainBackend(f *testing.F) {
	for _, s := range []string{"10.0.0.1:22", "[::1]:22", "web-3:8080", "https://a.b", "a", "${id}:1", "ä:1", "a:b:1", " a:1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		quoted, err := json.Marshal(address)
		if err != nil {
			t.Fatal(err)
		}
		short, shortErr := ParseMapping(TCP, 22, fmt.Appendf(nil, `{"http":%s}`, quoted))
		long, longErr := ParseMapping(TCP, 22, fmt.Appendf(nil, `{"http":[%s]}`, quoted))
		if fmt.Sprint(shortErr) != fmt.Sprint(longErr) {
			t.Fatalf("%q: %v, as a list %v", address, shortErr, longErr)
		}
		if shortErr == nil && !reflect.DeepEqual(short.HTTP, long.HTTP) {
			t.Errorf("%q: %+v, as a list %+v", address, short.HTTP, long.HTTP)
		}
	})
}

func BenchmarkParseMapping(b *testing.B) {
	for _, value := range []string{"127.0.0.1:2000", `{"backend":"127.0.0.1:2000","env":"env000001","service":"ssh"}`} {
		b.Run(fmt.Sprint(len(value)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseMapping(TCP, 20000, []byte(value)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
