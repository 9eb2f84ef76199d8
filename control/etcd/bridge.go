package etcd

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge passes the warnings and errors of the embedded etcd, which logs with
// zap, to slog. Less than warnings are not worth an edge's log.
//
// It also stands between etcd and the process: where etcd gives up, such as on
// a disk that takes no more writes, it logs at fatal or panic level and
// expects that to end everything. Here it ends the goroutine and is told to
// whoever reads failed.
type bridge struct {
	to     *slog.Logger
	silent atomic.Bool
	failed chan error // holds the first fatal message

	mu      sync.Mutex // guards the following field
	stopped error      // why etcd stopped by itself, which it says in its log alone
}

// reason returns why etcd stopped by itself; nil where it did not say.
func (b *bridge) reason() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stopped
}

// note keeps what an entry says of why etcd stops.
func (b *bridge) note(e zapcore.Entry, fields []zapcore.Field) {
	if e.Message != stopping {
		return
	}
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok {
			b.mu.Lock()
			b.stopped = cause
			b.mu.Unlock()
		}
	}
}

// stopping is what etcd logs, with an error, where it gives up but for its
// clients' sake.
const stopping = "server error"

func newBridge(to *slog.Logger) *bridge {
	if to == nil {
		to = slog.New(slog.DiscardHandler)
	}
	return &bridge{to: to, failed: make(chan error, 1)}
}

func (b *bridge) logger() *zap.Logger {
	return zap.New(&bridgeCore{bridge: b}, zap.WithFatalHook(b), zap.WithPanicHook(b))
}

// silence drops what is logged from now on. A failure is still told.
func (b *bridge) silence() { b.silent.Store(true) }

// OnWrite is zap's hook after a fatal or panic entry.
func (b *bridge) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(e.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = errors.Join(err, cause)
		}
	}
	select {
	case b.failed <- err:
	default:
	}
	// Deferred calls run, and no code after the log call does, which is what
	// those who log a fatal entry rely on.
	runtime.Goexit()
}

// bridgeCore is the zapcore.Core of a bridge, with the fields given by With.
type bridgeCore struct {
	*bridge
	with []zapcore.Field
}

// noise are warnings of etcd that are no concern of an embedded one.
var noise = map[string]bool{
	// Said at every start. Separate ports matter to large clusters.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	// Said at every start, of tokens that nobody uses without passwords.
	"simple token is not cryptographically signed": true,
}

func (c *bridgeCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !c.silent.Load()
}

func (c *bridgeCore) With(fields []zapcore.Field) zapcore.Core {
	return &bridgeCore{bridge: c.bridge, with: append(c.with[:len(c.with):len(c.with)], fields...)}
}

func (c *bridgeCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || noise[e.Message] {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c *bridgeCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.note(e, fields)
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	r := slog.NewRecord(e.Time, level, "etcd: "+e.Message, 0)
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.with[:len(c.with):len(c.with)], fields...) {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			r.AddAttrs(slog.Any(f.Key, plain(v)))
		}
	}
	h := c.to.Handler()
	if !h.Enabled(context.Background(), level) {
		return nil
	}
	return h.Handle(context.Background(), r)
}

// plain makes a duration readable; zap's encoders leave it to the output.
func plain(v any) any {
	if d, ok := v.(time.Duration); ok {
		return d.String()
	}
	return v
}

func (c *bridgeCore) Sync() error { return nil }
