package router_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// TestEveryFieldIsDocumented wants each field of each value in the reference,
// so that one cannot be added without its description.
func TestEveryFieldIsDocumented(t *testing.T) {
	reference, err := os.ReadFile("../KEYS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[router.Mapping](), reflect.TypeFor[router.Route](), reflect.TypeFor[router.Backend](),
		reflect.TypeFor[router.Domain](), reflect.TypeFor[router.PublishedName](), reflect.TypeFor[portpool.Pool](),
	} {
		for _, field := range documentedFields(typ, "") {
			if !strings.Contains(string(reference), field+"`") && !strings.Contains(string(reference), `"`+field+`"`) {
				t.Errorf("KEYS.md does not describe `%s` of %v", field, typ)
			}
		}
	}
}

func documentedFields(t reflect.Type, path string) []string {
	var all []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "-" || name == "" {
			continue
		}
		at := strings.TrimPrefix(path+"."+name, ".")
		ft := t.Field(i).Type
		if ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct && ft.Elem().NumField() > 0 && ft.Elem().Field(0).Tag.Get("json") != "" {
			all = append(all, documentedFields(ft.Elem(), at+"[]")...)
		}
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		inner := ft.Kind() == reflect.Struct && ft.NumField() > 0 && ft.Field(0).Tag.Get("json") != ""
		if inner && ft != reflect.TypeFor[router.Backend]() {
			all = append(all, documentedFields(ft, at)...)
			continue
		}
		all = append(all, at)
	}
	return all
}
