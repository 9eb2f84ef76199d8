package certs

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap/zapcore"
)

// zapCore hands what certmagic logs to slog. Its reports about an attempt are
// for debugging: the attempt's error comes back to us and is logged by us. What
// it says elsewhere comes one level lower than it thinks.
type zapCore struct {
	handler slog.Handler
}

func newZapCore(h slog.Handler) zapcore.Core { return zapCore{handler: h} }

// level returns where an entry of that level and logger belongs.
func (zapCore) level(l zapcore.Level, logger string) slog.Level {
	for _, part := range []string{"obtain", "renew", "acme_client", "handshake"} {
		if strings.HasSuffix(logger, part) {
			return slog.LevelDebug
		}
	}
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelWarn
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Enabled answers without knowing the logger; Write looks again.
func (c zapCore) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), c.level(l, ""))
}

// With implements zapcore.Core.
func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	return zapCore{handler: c.handler.WithAttrs(attrs(fields))}
}

// Check implements zapcore.Core.
func (c zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.handler.Enabled(context.Background(), c.level(e.Level, e.LoggerName)) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, c.level(e.Level, e.LoggerName), "certmagic: "+e.Message, 0)
	if e.LoggerName != "" {
		r.AddAttrs(slog.String("logger", e.LoggerName))
	}
	r.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (zapCore) Sync() error { return nil }

// attrs turns zap's fields into slog's, in a fixed order.
func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		if f.Key == "error" {
			f.Key = "err"
		}
		f.AddTo(enc)
	}
	all := make([]slog.Attr, 0, len(enc.Fields))
	for _, key := range slices.Sorted(maps.Keys(enc.Fields)) {
		all = append(all, slog.Any(key, enc.Fields[key]))
	}
	return all
}
