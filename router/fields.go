package router

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
)

// structFields are the fields of a struct that Decode reads, by their names.
type structFields struct {
	index map[string]int
	names []string
	tags  []reflect.StructTag // by index
}

// structs has the structFields of types, which do not change: looking them up
// by reflection takes longer than reading a mapping.
var structs sync.Map // reflect.Type -> *structFields

func fieldsOf(t reflect.Type) *structFields {
	if known, ok := structs.Load(t); ok {
		return known.(*structFields)
	}
	fields := &structFields{index: map[string]int{}, tags: make([]reflect.StructTag, t.NumField())}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields.index[name] = i
		fields.tags[i] = t.Field(i).Tag
		fields.names = append(fields.names, name)
	}
	structs.Store(t, fields)
	return fields
}

// eachField calls f for each member of the JSON object raw, in order, refusing
// anything else and names that occur twice. raw is valid JSON without space
// around it, and so is what f gets.
func eachField(path string, raw json.RawMessage, f func(name string, value json.RawMessage) error) error {
	if raw[0] != '{' {
		return fieldErrorf(path, "must be an object in { }, not %s", describe(raw))
	}
	var seen names
	for at := skipSpace(raw, 1); raw[at] != '}'; {
		end := valueEnd(raw, at)
		name, ok := plainString(raw[at:end])
		if !ok {
			if err := json.Unmarshal(raw[at:end], &name); err != nil {
				return jsonSyntaxError(raw, err)
			}
		}
		if !seen.add(name) {
			return fieldErrorf(join(path, name), "occurs twice; keep one")
		}
		at = skipSpace(raw, skipSpace(raw, end)+1) // over the colon
		end = valueEnd(raw, at)
		if err := f(name, raw[at:end]); err != nil {
			return err
		}
		if at = skipSpace(raw, end); raw[at] == ',' {
			at = skipSpace(raw, at+1)
		}
	}
	return nil
}

// names is a set, mostly of a few.
type names struct {
	few  []string
	many map[string]bool
}

// add reports whether name is new.
func (n *names) add(name string) bool {
	const few = 16
	if n.many == nil {
		for _, known := range n.few {
			if known == name {
				return false
			}
		}
		if n.few = append(n.few, name); len(n.few) == few {
			n.many = map[string]bool{}
			for _, known := range n.few {
				n.many[known] = true
			}
		}
		return true
	}
	is := n.many[name]
	n.many[name] = true
	return !is
}

func skipSpace(raw []byte, at int) int {
	for raw[at] == ' ' || raw[at] == '\n' || raw[at] == '\t' || raw[at] == '\r' {
		at++
	}
	return at
}

// valueEnd returns where the value that begins at is over.
func valueEnd(raw []byte, at int) int {
	depth := 0
	for ; at < len(raw); at++ {
		switch raw[at] {
		case '"':
			at = stringEnd(raw, at) - 1
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default: // of a number, true, false or null
			if depth > 0 {
				continue
			}
			if n := bytes.IndexAny(raw[at:], ",]} \n\t\r"); n >= 0 {
				return at + n
			}
			return len(raw)
		}
		if depth == 0 {
			return at + 1
		}
	}
	return at
}

// stringEnd returns where the string that begins at is over.
func stringEnd(raw []byte, at int) int {
	for at++; raw[at] != '"'; at++ {
		if raw[at] == '\\' {
			at++
		}
	}
	return at + 1
}

// plainString returns a JSON string that stands for what is written between its
// quotes, as nearly all do.
func plainString(raw json.RawMessage) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	for _, c := range raw[1 : len(raw)-1] {
		if c == '\\' || c >= 0x80 {
			return "", false
		}
	}
	return string(raw[1 : len(raw)-1]), true
}
