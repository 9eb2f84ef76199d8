package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// shortBytes writes a number of bytes for people, with units of 1000.
func shortBytes(n float64) string {
	const step = 1000
	if n < step {
		return fmt.Sprintf("%.0fB", n)
	}
	units := []string{"KB", "MB", "GB", "TB", "PB", "EB"}
	n /= step
	for n >= 999.5 && len(units) > 1 {
		n /= step
		units = units[1:]
	}
	if n < 9.95 {
		return fmt.Sprintf("%.1f%s", n, units[0])
	}
	return fmt.Sprintf("%.0f%s", n, units[0])
}

// shortDuration writes a duration for people, in its two largest units.
func shortDuration(d time.Duration) string {
	s := int(d / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// printable writes what cannot be printed as Go escapes it, such as \x1b.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// counted writes a number of things.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// wait waits for d, or until ctx ends, which is an error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
