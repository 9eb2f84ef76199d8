package http

import (
	"context"
	"log/slog"
	"time"
)

// maxLoggedPath bounds what one request can add to the log.
const maxLoggedPath = 1024

// logAccess writes the record of x. Queries and field values, which may hold
// secrets, are left out.
func (s *Server) logAccess(x *exchange, took time.Duration) {
	log := s.cfg.AccessLog
	if log == nil || !log.Enabled(x.ctx, slog.LevelInfo) {
		return
	}
	path, route, end := x.req.target.path, "", x.out.end
	if len(path) > maxLoggedPath {
		path = path[:maxLoggedPath]
	}
	if x.hop.route != nil {
		route = x.hop.route.Name
	}
	if end == "" {
		end = endDone
	}
	attrs := []slog.Attr{
		slog.Int("listener", x.conn.info.Port),
		slog.String("client", x.client.String()),
		slog.String("proto", x.conn.proto.String()),
		slog.String("method", x.req.method),
		slog.String("host", x.req.host),
		slog.String("path", path),
		slog.Int("status", x.out.status),
		slog.Int64("bytes_up", x.bytes.up.Load()),
		slog.Int64("bytes_down", x.bytes.down.Load()),
		slog.Float64("duration", took.Seconds()),
		slog.Float64("ttfb", x.out.head.Seconds()),
		slog.String("route", route),
		slog.String("env", x.out.env),
		slog.String("service", x.out.service),
		slog.String("backend", x.out.target),
		slog.String("end", end),
	}
	if x.out.err != nil {
		attrs = append(attrs, slog.String("err", x.out.err.Error()))
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}
