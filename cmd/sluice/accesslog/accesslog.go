// Package accesslog writes the record of each flow, apart from the flow: who
// logs hands a record over and goes on, whatever becomes of the disk, or of
// whoever reads the other end of a pipe.
//
// Records wait in a bounded queue for one goroutine, which encodes and writes
// them, many at a time. What does not fit is dropped and counted.
package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// queueSize is how many records may wait: enough for a fifth of a second
	// at 20,000 a second. A full queue holds some 8 MB.
	queueSize = 4096
	// gather is how long the writer lets records gather after it has written,
	// so that a busy node wakes it a hundred times a second rather than for
	// each record, and pays one system call for all of them.
	gather = 10 * time.Millisecond
	// chunk is how many bytes are written at once.
	chunk = 64 << 10
	// flushLimit bounds how long Close waits for what is left to be written.
	flushLimit = 2 * time.Second
	// nagEvery spaces the warnings about a log that cannot be written.
	nagEvery = time.Minute
)

// Config says where records go.
type Config struct {
	// Path is a file that records are appended to, created with mode 0640 if
	// it is not there. Empty: Out.
	Path string
	// Out is where records go without a Path. It is never closed.
	Out io.Writer

	Logger     *slog.Logger          // told what goes wrong with the log; nil: nobody
	Registerer prometheus.Registerer // nil: metrics are kept and not shown
}

// Log is an access log: a slog.Handler that never waits. Records are JSON lines
// without a level. Attributes must be plain values: they are read after the
// call that logged them. Make it with Open; its methods may be called from any
// goroutine.
type Log struct {
	queue   *queue
	encoder slog.Handler // writes to queue.encoded
}

// Open opens the log and starts its writer. Close it.
func Open(cfg Config) (*Log, error) {
	return open(cfg, queueSize, flushLimit)
}

func open(cfg Config, size int, limit time.Duration) (*Log, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	q := &queue{
		path: cfg.Path, out: cfg.Out, log: cfg.Logger, size: size, limit: limit,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if cfg.Path != "" {
		f, err := openFile(cfg.Path)
		if err != nil {
			return nil, fmt.Errorf("open the access log: %w", err)
		}
		q.file, q.out = f, f
	}
	if err := q.countIn(cfg.Registerer); err != nil {
		return nil, errors.Join(err, q.closeFile())
	}
	go q.run()
	withoutLevel := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.LevelKey {
			return slog.Attr{} // all records are alike
		}
		return a
	}
	return &Log{q, slog.NewJSONHandler(&q.encoded, &slog.HandlerOptions{ReplaceAttr: withoutLevel})}, nil
}

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

// Enabled implements slog.Handler.
func (l *Log) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements slog.Handler. It never blocks and gives no error.
func (l *Log) Handle(_ context.Context, r slog.Record) error {
	l.queue.put(entry{l.encoder, r})
	return nil
}

// WithAttrs implements slog.Handler.
func (l *Log) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Log{l.queue, l.encoder.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (l *Log) WithGroup(name string) slog.Handler { return &Log{l.queue, l.encoder.WithGroup(name)} }

// Reopen has the file opened anew by its path, after it was moved away: what
// was handed over before may still go to the old one. A file that cannot be
// opened is reported, and the old one kept. Without a Path it does nothing.
func (l *Log) Reopen() {
	q := l.queue
	if q.path == "" {
		return
	}
	q.mu.Lock()
	q.reopen = true
	q.mu.Unlock()
	q.poke()
}

// Close writes what is left, for two seconds at most, and closes the file.
// What is logged afterwards is dropped. The error says how many records were
// lost on the way, if any were; a write that never returns is left behind.
func (l *Log) Close() error { return l.queue.close() }

// entry is a record and who encodes it.
type entry struct {
	encoder slog.Handler
	record  slog.Record
}

// queue is what waits to be written, and its writer.
type queue struct {
	path  string
	log   *slog.Logger
	size  int
	limit time.Duration

	wake chan struct{} // holds one
	done chan struct{} // closed when the writer has returned

	full, failed prometheus.Counter // records dropped

	mu      sync.Mutex // guards the following fields; never held while waiting
	pending []entry
	writing int  // records that the writer took and has not written
	idle    bool // the writer waits for a first record
	reopen  bool
	closed  bool

	// Of the writer, and of close when it has returned.
	out     io.Writer
	file    *os.File // what out is with a path
	spare   []entry
	encoded bytes.Buffer
	nagged  time.Time
}

func (q *queue) countIn(r prometheus.Registerer) error {
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_access_log_dropped_total", Help: "Access log records that were not written, by why not."}, []string{"reason"})
	q.full, q.failed = dropped.WithLabelValues("queue"), dropped.WithLabelValues("write")
	if r == nil {
		return nil
	}
	return r.Register(dropped)
}

// put hands a record over, or drops it where too many wait.
func (q *queue) put(e entry) {
	q.mu.Lock()
	if q.closed || len(q.pending) == q.size {
		q.mu.Unlock()
		q.full.Inc()
		return
	}
	q.pending = append(q.pending, e)
	wake := q.idle || len(q.pending) == q.size/2
	q.idle = false
	q.mu.Unlock()
	if wake {
		q.poke()
	}
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run writes until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.done)
	pause := time.NewTimer(gather)
	defer pause.Stop()
	for {
		batch, reopen, closed := q.take()
		if reopen {
			q.openAnew()
		}
		q.write(batch)
		if closed {
			return
		}
		if len(batch) == 0 && !reopen {
			<-q.wake
			continue
		}
		pause.Reset(gather)
		select {
		case <-pause.C:
		case <-q.wake:
		}
	}
}

// take returns what there is to do. The batch is valid until the next call.
func (q *queue) take() (batch []entry, reopen, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.spare) // let go of what was written
	batch, q.pending = q.pending, q.spare[:0]
	q.spare, q.writing = batch, len(batch)
	reopen, q.reopen = q.reopen, false
	q.idle = len(batch) == 0
	return batch, reopen, q.closed
}

func (q *queue) write(batch []entry) {
	begun := 0 // the first record in encoded
	for i := range batch {
		// The encoder writes to memory and the attributes are plain: no error.
		_ = batch[i].encoder.Handle(context.Background(), batch[i].record)
		if q.encoded.Len() >= chunk || i == len(batch)-1 {
			q.flush(i + 1 - begun)
			begun = i + 1
		}
	}
}

// flush writes what is encoded, of so many records.
func (q *queue) flush(records int) {
	_, err := q.out.Write(q.encoded.Bytes())
	q.encoded.Reset()
	q.mu.Lock()
	q.writing -= records
	q.mu.Unlock()
	if err != nil {
		q.failed.Add(float64(records))
		q.nag("cannot write the access log; records are lost", err)
	}
}

// nag says what is wrong with the log, but not for every record.
func (q *queue) nag(what string, err error) {
	if time.Since(q.nagged) < nagEvery {
		return
	}
	q.nagged = time.Now()
	q.log.Error(what, "err", err)
}

func (q *queue) openAnew() {
	f, err := openFile(q.path)
	if err != nil {
		q.log.Error("cannot open the access log anew; writing to the old file", "err", err)
		return
	}
	if err := q.closeFile(); err != nil {
		q.log.Error("close the access log's old file", "err", err)
	}
	q.file, q.out = f, f
	q.log.Info("opened the access log anew", "file", q.path)
}

func (q *queue) closeFile() error {
	if q.file == nil {
		return nil
	}
	return q.file.Close()
}

func (q *queue) close() error {
	q.mu.Lock()
	again := q.closed
	q.closed = true
	q.mu.Unlock()
	if again {
		return nil
	}
	q.poke()
	limit := time.NewTimer(q.limit)
	defer limit.Stop()
	select {
	case <-q.done:
		return q.closeFile()
	case <-limit.C:
	}
	q.mu.Lock()
	lost := len(q.pending) + q.writing
	q.mu.Unlock()
	q.failed.Add(float64(lost))
	return fmt.Errorf("the access log was not read or written for %v: the last %d records are lost", q.limit, lost)
}
