package http

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// maxLoggedPath bounds what one request can add to the log.
const maxLoggedPath = 1024

// logAccess writes the record of x. Queries and field values, which may hold
// secrets, are left out.
func (s *Server) logAccess(x *exchange, took time.Duration) {
	log := s.cfg.AccessLog
	if log == nil || !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	path, route, end := x.req.target.path, "", x.out.end
	if len(path) > maxLoggedPath {
		path = path[:maxLoggedPath]
	}
	if x.hop.route != nil {
		route = x.hop.route.Name
	}
	// The log may keep the record for longer than the exchange keeps its buffer.
	kept := keep(x.req.method, x.req.host, path, x.out.env)
	if end == "" {
		end = endDone
	}
	attrs := []slog.Attr{
		slog.String("listener", x.conn.listener()),
		slog.Int("port", x.conn.info.Port),
		slog.String("client", x.client.String()),
		slog.String("proto", x.conn.proto.String()),
		slog.String("method", kept[0]),
		slog.String("host", kept[1]),
		slog.String("path", kept[2]),
		slog.Int("status", x.out.status),
		slog.Int64("bytes_up", x.bytes.up.Load()),
		slog.Int64("bytes_down", x.bytes.down.Load()),
		slog.Float64("duration", took.Seconds()),
		slog.Float64("ttfb", x.out.head.Seconds()),
		slog.String("route", route),
		slog.String("env", kept[3]),
		slog.String("service", x.out.service),
		slog.String("backend", x.out.target),
		slog.String("end", end),
	}
	if x.out.address != x.out.target && x.out.address != "" {
		attrs = append(attrs, slog.String("address", x.out.address))
	}
	if x.identity != nil && x.identity.Verified {
		attrs = append(attrs, slog.String("client_cert", x.identity.Fingerprint))
	}
	if x.tries.made > 1 {
		attrs = append(attrs, slog.Int("tries", x.tries.made))
	}
	if x.out.err != nil {
		attrs = append(attrs, slog.String("err", x.out.err.Error()))
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// keep returns copies of strings, made as one.
func keep(parts ...string) []string {
	all := strings.Join(parts, "")
	for i, s := range parts {
		parts[i], all = all[:len(s)], all[len(s):]
	}
	return parts
}
