package main

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/remotegpu/sluice/cmd/sluice/accesslog"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/router"
)

// newLogger returns the log of the node's own doings, on w.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(err) // config.Load has checked it
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: durationsInWords}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// durationsInWords has durations told as KEYS.md writes them: JSON's own way, a
// number of nanoseconds, says nothing.
func durationsInWords(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(router.DurationText(a.Value.Duration()))
	}
	return a
}

// openAccessLog opens the log with one record per flow, where there is to be
// one.
func (n *node) openAccessLog(context.Context) error {
	c := accesslog.Config{Logger: n.log, Registerer: n.registry}
	switch path := n.cfg.Log.Access; path {
	case "none":
		return nil
	case "stdout":
		c.Out = n.stdout
	default:
		c.Path = path
	}
	log, err := accesslog.Open(c)
	if err != nil {
		return err
	}
	n.accessLog = log
	n.onClose(func() error {
		if err := log.Close(); err != nil {
			n.log.Warn("stopped without the whole access log", "err", err) // no reason to fail: flows have ended well
		}
		return nil
	})
	return nil
}

// runLogRotation opens the access log anew whenever told to.
func (n *node) runLogRotation(ctx context.Context, rotations <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rotations:
		}
		if n.accessLog == nil || n.cfg.Log.Access == "stdout" {
			n.log.Info("nothing to do on SIGUSR1: log.access names no file; keys in etcd are live as they are", "access", n.cfg.Log.Access)
			continue
		}
		n.accessLog.Reopen()
		n.elders.tell(msgReopen)
	}
}
