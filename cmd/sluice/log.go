package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// newLogger returns the log of the node's own doings, on w.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(err) // config.Load has checked it
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// openAccessLog returns the log with one record per flow, nil for none, and
// what closes it. The file is opened for appending, so that it may be rotated
// by copying and truncating.
func openAccessLog(c config.Log, stdout io.Writer) (*slog.Logger, func() error, error) {
	w, closeLog := stdout, func() error { return nil }
	switch c.Access {
	case "none":
		return nil, closeLog, nil
	case "stdout":
	default:
		f, err := os.OpenFile(c.Access, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("open the access log: %w", err)
		}
		w, closeLog = f, f.Close
	}
	drop := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.LevelKey {
			return slog.Attr{} // all records are alike
		}
		return a
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: drop})), closeLog, nil
}
