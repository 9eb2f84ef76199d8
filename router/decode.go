package router

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// FieldError says which field of a value is wrong, why, and what would be
// right. Path is written as a person would: limits.bytes_per_second.up,
// backend.targets[1].address; it is empty when the value as a whole is meant.
type FieldError struct {
	Path string
	Msg  string
}

func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

// fieldErrorf makes a FieldError. What it quotes of the value is cut where it is
// so long that nobody would read on.
func fieldErrorf(path, format string, args ...any) *FieldError {
	const most = 400
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			args[i] = shorten(arg, most)
		case []byte:
			args[i] = shorten(string(arg), most)
		case time.Duration:
			args[i] = DurationText(arg)
		}
	}
	return &FieldError{Path: shorten(path, most), Msg: fmt.Sprintf(format, args...)}
}

// shorten cuts s after so many bytes, if it has more.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// under puts err, met while reading the value at path, into its place. Errors
// that are not a *FieldError become one.
func under(path string, err error) error {
	if err == nil {
		return nil
	}
	var fe *FieldError
	if !errors.As(err, &fe) {
		return &FieldError{Path: path, Msg: err.Error()}
	}
	switch {
	case path == "":
		return fe
	case fe.Path == "":
		return &FieldError{Path: path, Msg: fe.Msg}
	case strings.HasPrefix(fe.Path, "["):
		return &FieldError{Path: path + fe.Path, Msg: fe.Msg}
	}
	return &FieldError{Path: path + "." + fe.Path, Msg: fe.Msg}
}

// Shorthand is implemented by types whose value may also be written in a
// shorter form: "10.0.0.1:22" for {"targets":[{"address":"10.0.0.1:22"}]}.
// Longhand returns raw in the form of the struct's own fields.
type Shorthand interface {
	Longhand(raw json.RawMessage) (json.RawMessage, error)
}

// MaxValue is how many bytes a value has at most: reading one is to take no node
// longer than other keys can wait.
const MaxValue = 256 << 10

// CheckSize refuses a value that is longer.
func CheckSize(value []byte) error {
	if len(value) > MaxValue {
		return fieldErrorf("", "the value has %d bytes; at most %d are allowed", len(value), MaxValue)
	}
	return nil
}

// Decode reads the one JSON value in data into v, a pointer to a struct, more
// strictly than encoding/json does: field names are exact, unknown and repeated
// fields are refused by name with the nearest known one suggested, nothing may
// follow the value, and every error is a *FieldError with the field's path.
//
// Durations are strings such as "10s", times RFC 3339, CIDRs may be a single
// address. A null leaves its field at zero. Fields absent from data keep the
// value that v holds. A json.RawMessage is any value, as it stands. A whole number that is given lies within the field's tag
// range:"least,most", if it has one, so that 0 need not pass for its absence.
func Decode(data []byte, v any) error {
	if json.Valid(data) {
		return decodeInto("", bytes.Trim(data, " \n\t\r"), reflect.ValueOf(v).Elem(), "")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return jsonSyntaxError(data, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fieldErrorf("", "more text follows the JSON value; one value is expected")
	}
	return decodeInto("", raw, reflect.ValueOf(v).Elem(), "")
}

func jsonSyntaxError(data []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fieldErrorf("", "not valid JSON at character %d: %v", syntax.Offset, err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fieldErrorf("", "not valid JSON: the value ends too early, after %d characters", len(data))
	}
	return fieldErrorf("", "not valid JSON: %v", err)
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	timeType     = reflect.TypeFor[time.Time]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	rawType      = reflect.TypeFor[json.RawMessage]()
)

// decodeInto reads raw, the value at path, into v; tag is that of v's field.
func decodeInto(path string, raw json.RawMessage, v reflect.Value, tag reflect.StructTag) error {
	if string(raw) == "null" {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		elem := reflect.New(v.Type().Elem())
		if err := decodeInto(path, raw, elem.Elem(), ""); err != nil {
			return err
		}
		v.Set(elem)
		return nil
	}
	if b, ok := v.Addr().Interface().(*Backend); ok && b.setPlain(raw) {
		return nil
	}
	if s, ok := v.Addr().Interface().(Shorthand); ok {
		long, err := s.Longhand(raw)
		if err != nil {
			return under(path, err)
		}
		raw = long
	}
	switch v.Type() {
	case durationType, timeType, prefixType:
		return decodeText(path, raw, v)
	case rawType:
		v.SetBytes(bytes.Clone(raw))
		return nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, err := decodeString(path, raw)
		if err != nil {
			return err
		}
		return under(path, u.UnmarshalText([]byte(s)))
	}
	switch v.Kind() {
	case reflect.Struct:
		return decodeStruct(path, raw, v)
	case reflect.Slice:
		return decodeSlice(path, raw, v)
	case reflect.Map:
		return decodeMap(path, raw, v)
	}
	return decodeScalar(path, raw, v, tag)
}

func decodeString(path string, raw json.RawMessage) (string, error) {
	if s, ok := plainString(raw); ok {
		return s, nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fieldErrorf(path, "must be a string, not %s", describe(raw))
	}
	return s, nil
}

func decodeText(path string, raw json.RawMessage, v reflect.Value) error {
	s, err := decodeString(path, raw)
	if err != nil {
		return err
	}
	switch v.Type() {
	case durationType:
		d, err := parseDuration(s)
		if err != nil {
			return under(path, err)
		}
		v.SetInt(int64(d))
	case timeType:
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return fieldErrorf(path, "%q is not a time; write it as 2026-12-31T00:00:00Z", s)
		}
		v.Set(reflect.ValueOf(t))
	case prefixType:
		p, err := ParsePrefix(s)
		if err != nil {
			return under(path, err)
		}
		v.Set(reflect.ValueOf(p))
	}
	return nil
}

// ParsePrefix reads a CIDR such as 10.0.0.0/8 or a single address, which stands
// for itself alone. An IPv4 address written as IPv6 (::ffff:10.0.0.1) is taken
// as IPv4. Bits beyond the prefix length are refused: they mean one address, or
// another length.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fieldErrorf("", "%q is not a network; write a CIDR such as 10.0.0.0/8 or 2001:db8::/32, or one address", s)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fieldErrorf("", "%q mixes IPv4 and IPv6; write the IPv4 network itself, such as 10.0.0.0/8", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fieldErrorf("", "%q has bits beyond its length; write %v for the network, or %v for the one address", s, m, p.Addr())
	}
	return p, nil
}

func decodeScalar(path string, raw json.RawMessage, v reflect.Value, tag reflect.StructTag) error {
	switch v.Kind() {
	case reflect.String:
		s, err := decodeString(path, raw)
		if err != nil {
			return err
		}
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(string(raw))
		if err != nil || (string(raw) != "true" && string(raw) != "false") {
			return fieldErrorf(path, "must be true or false, not %s", describe(raw))
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		return decodeInt(path, raw, v, tag)
	default:
		panic("router: Decode does not know the type " + v.Type().String())
	}
	return nil
}

func decodeSlice(path string, raw json.RawMessage, v reflect.Value) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return fieldErrorf(path, "must be a list in [ ], not %s", describe(raw))
	}
	s := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		if err := decodeInto(fmt.Sprintf("%s[%d]", path, i), item, s.Index(i), ""); err != nil {
			return err
		}
	}
	v.Set(s)
	return nil
}

func decodeMap(path string, raw json.RawMessage, v reflect.Value) error {
	m := reflect.MakeMap(v.Type())
	err := eachField(path, raw, func(name string, value json.RawMessage) error {
		elem := reflect.New(v.Type().Elem()).Elem()
		if err := decodeInto(join(path, name), value, elem, ""); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(name), elem)
		return nil
	})
	if err == nil {
		v.Set(m)
	}
	return err
}

func decodeStruct(path string, raw json.RawMessage, v reflect.Value) error {
	fields := fieldsOf(v.Type())
	return eachField(path, raw, func(name string, value json.RawMessage) error {
		i, ok := fields.index[name]
		if !ok {
			return fieldErrorf(join(path, name), "unknown field%s", suggest(name, fields.names))
		}
		return decodeInto(join(path, name), value, v.Field(i), fields.tags[i])
	})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// describe names the kind of the JSON value raw for an error message: the value
// itself may be a secret.
func describe(raw json.RawMessage) string {
	switch raw[0] {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "a list"
	case 't', 'f':
		return "true or false"
	}
	return "a number"
}

// suggest returns the end of an unknown-field message: the known name that is
// nearest to the one given, or all of them.
func suggest(name string, known []string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		if d := editDistance(strings.ToLower(name), k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	case len(known) == 0:
		return "; no field is known here"
	}
	sorted := slices.Sorted(slices.Values(known))
	return "; known here: " + strings.Join(sorted, ", ")
}

// editDistance is the Levenshtein distance of two short names.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
