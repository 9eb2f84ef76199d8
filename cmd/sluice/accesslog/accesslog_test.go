package accesslog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record logs a record with as many attributes as the longest that there is.
func record(log *slog.Logger, id int) {
	log.LogAttrs(context.Background(), slog.LevelInfo, "request",
		slog.String("listener", "https/443"), slog.Int("port", 443), slog.String("client", "203.0.113.7:54321"), slog.String("proto", "h1"),
		slog.String("method", "GET"), slog.String("host", "env-abc.remotegpu.com"), slog.String("path", "/jupyter/tree"),
		slog.Int("status", 200), slog.Int("id", id), slog.Int64("bytes_down", 1024), slog.Float64("duration", .00123),
		slog.Float64("ttfb", .0009), slog.String("route", "jupyter"), slog.String("env", "abc"),
		slog.String("service", "jupyter"), slog.String("backend", "10.0.0.1:8888"), slog.String("end", "done"))
}

// ids returns the ids of the records in text, which must be whole lines.
func ids(t *testing.T, text []byte) (ids []int) {
	t.Helper()
	for line := range bytes.Lines(text) {
		var r struct {
			ID    *int
			Msg   string
			Level *string
			Time  time.Time
		}
		if err := json.Unmarshal(line, &r); err != nil || r.ID == nil || r.Msg != "request" || r.Level != nil || r.Time.IsZero() {
			t.Fatalf("line %q: %v", line, err)
		}
		ids = append(ids, *r.ID)
	}
	return ids
}

// consecutive fails the test unless got is 0, 1, 2 and so on up to n.
func consecutive(t *testing.T, got []int, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d records, want %d", len(got), n)
	}
	for i, id := range got {
		if id != i {
			t.Fatalf("record %d has the place of %d", id, i)
		}
	}
}

func TestEveryRecordIsWrittenInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(l)
	for id := range queueSize {
		record(log, id)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	record(log, queueSize) // after the end: neither written nor a panic
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	consecutive(t, ids(t, text), queueSize)
	want := `,"msg":"request","listener":"https/443","port":443,"client":"203.0.113.7:54321","proto":"h1","method":"GET","host":"env-abc.remotegpu.com",` +
		`"path":"/jupyter/tree","status":200,"id":0,"bytes_down":1024,"duration":0.00123,"ttfb":0.0009,"route":"jupyter","env":"abc",` +
		`"service":"jupyter","backend":"10.0.0.1:8888","end":"done"}` + "\n"
	if line, _, _ := bytes.Cut(text, []byte("\n")); !strings.HasSuffix(string(line)+"\n", want) {
		t.Errorf("the first line is\n%s, want it to end in\n%s", line, want)
	}
}

// dropped returns the value of the metric for a reason.
func dropped(t testing.TB, g prometheus.Gatherer, reason string) int {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "sluice_access_log_dropped_total" && m.GetLabel()[0].GetValue() == reason {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	t.Fatalf("no metric for %s", reason)
	return 0
}

// stalled is a writer that takes nothing until told to.
type stalled struct {
	release chan struct{}
	writing chan struct{} // gets a value for each call
	mu      sync.Mutex    // guards got
	got     []byte
}

func newStalled() *stalled {
	return &stalled{release: make(chan struct{}), writing: make(chan struct{}, 1000)}
}

func (s *stalled) Write(p []byte) (int, error) {
	s.writing <- struct{}{}
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, p...)
	return len(p), nil
}

// TestAStalledReaderStopsNobody has nobody read the log: callers go on, what
// does not fit is counted, and what fits is there once somebody reads again.
func TestAStalledReaderStopsNobody(t *testing.T) {
	out, registry := newStalled(), prometheus.NewRegistry()
	const size = 64
	l, err := open(Config{Out: out, Registerer: registry}, size, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(l)
	record(log, 0)
	<-out.writing // the writer is stuck with the first
	const more = 10
	for id := range size + more {
		record(log, id+1)
	}
	if n := dropped(t, registry, "queue"); n != more {
		t.Errorf("%d records dropped, want %d", n, more)
	}
	close(out.release)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	consecutive(t, ids(t, out.got), size+1)
}

func TestCloseGivesUpOnAStalledReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newStalled()
		l, err := Open(Config{Out: out})
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(l)
		record(log, 0)
		<-out.writing
		record(log, 1)
		record(log, 2)
		began := time.Now()
		err = l.Close()
		if took := time.Since(began); took != flushLimit {
			t.Errorf("Close took %v, want %v", took, flushLimit)
		}
		if err == nil || !strings.Contains(err.Error(), "the last 3 records are lost") {
			t.Errorf("Close: %v, want the number of records lost", err)
		}
		close(out.release)
		synctest.Wait()
	})
}

// TestFewRecordsDoNotWait wants a lone record written at once, and the next
// ones together.
func TestFewRecordsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newStalled()
		close(out.release)
		l, err := Open(Config{Out: out})
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(l)
		began := time.Now()
		record(log, 0)
		synctest.Wait()
		<-out.writing
		if !time.Now().Equal(began) {
			t.Errorf("the first record took %v", time.Since(began))
		}
		for id := range 5 {
			record(log, id+1)
		}
		<-out.writing
		if took := time.Since(began); took != gather {
			t.Errorf("the next ones took %v, want %v", took, gather)
		}
		time.Sleep(time.Hour)
		if len(out.writing) > 0 {
			t.Errorf("%d writes more, want the five records in one", len(out.writing))
		}
		record(log, 6)
		synctest.Wait()
		consecutive(t, ids(t, out.got), 7)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestReopenFollowsTheName(t *testing.T) {
	dir := t.TempDir()
	path, moved := filepath.Join(dir, "access.log"), filepath.Join(dir, "access.log.1")
	var said bytes.Buffer
	l, err := Open(Config{Path: path, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(l)
	record(log, 0)
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	awaitFile(t, path)
	record(log, 1)
	// A name that cannot be opened: the log goes on where it is.
	if err := os.Rename(path, filepath.Join(dir, "access.log.2")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	record(log, 2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, name := range []string{"access.log.1", "access.log.2"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ids(t, text)...)
	}
	consecutive(t, all, 3)
	if !strings.Contains(said.String(), "cannot open the access log anew") {
		t.Errorf("it said %q", said.String())
	}
}

// awaitFile waits until there is a file.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("waited in vain for %s", path)
		}
	}
}

// failing is a writer that cannot write.
type failing struct{ calls int }

func (f *failing) Write([]byte) (int, error) {
	f.calls++
	return 0, errors.New("no space left on device")
}

func TestWhatCannotBeWrittenIsCountedAndSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		out, registry := &failing{}, prometheus.NewRegistry()
		l, err := Open(Config{Out: out, Registerer: registry, Logger: slog.New(slog.NewTextHandler(&said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(l)
		for id := range 3 {
			record(log, id)
			time.Sleep(time.Second)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if n := dropped(t, registry, "write"); n != 3 || out.calls != 3 {
			t.Errorf("%d records counted in %d writes, want 3 in 3", n, out.calls)
		}
		if n := strings.Count(said.String(), "no space left on device"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, said.String())
		}
	})
}

func TestAttributesOfTheLogger(t *testing.T) {
	var out bytes.Buffer
	l, err := Open(Config{Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	record(slog.New(l).With("node", "edge-1").WithGroup("flow"), 0)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, `"msg":"request","node":"edge-1","flow":{"listener":"https/443","port":443,`) {
		t.Errorf("got %s", got)
	}
}

func TestManyWriters(t *testing.T) {
	r, w := io.Pipe()
	lines := make(chan int)
	go func() {
		n := 0
		for s := bufio.NewScanner(r); s.Scan(); {
			n++
		}
		lines <- n
	}()
	registry := prometheus.NewRegistry()
	l, err := Open(Config{Out: w, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			log := slog.New(l)
			for id := range 2000 {
				record(log, id)
			}
		})
	}
	running.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if n, lost := <-lines, dropped(t, registry, "queue"); n+lost != 16000 {
		t.Errorf("%d written and %d dropped of 16000", n, lost)
	}
}

// BenchmarkHandOver is what a record costs the flow that it is of.
func BenchmarkHandOver(b *testing.B) {
	registry := prometheus.NewRegistry()
	l, err := Open(Config{Out: io.Discard, Registerer: registry})
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(l)
	b.ReportAllocs()
	for b.Loop() {
		record(log, 0)
	}
	b.StopTimer()
	b.ReportMetric(float64(dropped(b, registry, "queue"))/float64(b.N), "dropped/op")
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}
