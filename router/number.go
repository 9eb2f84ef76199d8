package router

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// decodeInt reads a whole number. bounds is the field's tag "range", such as
// "1,1000", or empty; zero is its tag "zero", which is said besides where the
// number is 0 and that is out of range.
func decodeInt(path string, raw json.RawMessage, v reflect.Value, tag reflect.StructTag) error {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	bounds := tag.Get("range")
	switch {
	case errors.Is(err, strconv.ErrRange) && bounds == "" && raw[0] == '-':
		return fieldErrorf(path, "%s is too small; the minimum is %d", string(raw), math.MinInt64)
	case errors.Is(err, strconv.ErrRange) && bounds == "":
		return fieldErrorf(path, "%s is too large; the maximum is %d", string(raw), math.MaxInt64)
	case err != nil && !errors.Is(err, strconv.ErrRange):
		what := describe(raw)
		if what == "a number" {
			what = string(raw)
		}
		return fieldErrorf(path, "must be a whole number, not %s", what)
	}
	if bounds != "" {
		least, most := parseBounds(bounds)
		if err != nil || n < least || n > most {
			hint := ""
			if n == 0 {
				hint = tag.Get("zero")
			}
			return fieldErrorf(path, "must be from %d to %d, not %s%s", least, most, string(raw), hint)
		}
	}
	v.SetInt(n)
	return nil
}

// parseBounds reads a tag "range".
func parseBounds(s string) (least, most int64) {
	low, high, _ := strings.Cut(s, ",")
	least, err := strconv.ParseInt(low, 10, 64)
	most, err2 := strconv.ParseInt(high, 10, 64)
	if err != nil || err2 != nil {
		panic("router: the tag range:\"" + s + "\" is none")
	}
	return least, most
}

var (
	durationShape = regexp.MustCompile(`^[-+]?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$`)
	longUnits     = regexp.MustCompile(`^(\d{1,6})([dw])(.*)$`)
)

// DurationText writes d as people do, without the units that say nothing: 48h
// rather than 48h0m0s.
func DurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// parseDuration reads a duration as time.ParseDuration does, refuses those
// below zero, and says what is wrong with what is almost one.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err == nil && d >= 0:
		return d, nil
	case durationShape.MatchString(s) && s[0] == '-':
		return 0, fieldErrorf("", "must be positive, not %s", s)
	case durationShape.MatchString(s):
		return 0, fieldErrorf("", "%s is too large; the maximum is %dh", s, math.MaxInt64/int64(time.Hour))
	}
	if parts := longUnits.FindStringSubmatch(s); parts != nil {
		return 0, longUnitError(s, parts)
	}
	return 0, fieldErrorf("", "%q is not a duration; write a number with a unit, such as \"500ms\", \"10s\", \"5m\" or \"24h\"", s)
}

// longUnitError refuses days and weeks, which parts (of longUnits) has.
func longUnitError(s string, parts []string) error {
	unit, hours := "days are", time.Duration(24)
	if parts[2] == "w" {
		unit, hours = "weeks are", 7*24
	}
	n, _ := strconv.Atoi(parts[1]) // six digits at most
	rest, err := time.ParseDuration("0s" + parts[3])
	if err != nil || rest < 0 {
		return fieldErrorf("", "%q: %s not a unit; write hours, such as \"168h\"", s, unit)
	}
	whole := (time.Duration(n)*hours*time.Hour + rest).String()
	whole = strings.Replace(whole, "m0s", "m", 1)
	return fieldErrorf("", "%q: %s not a unit; write %q", s, unit, strings.Replace(whole, "h0m", "h", 1))
}
