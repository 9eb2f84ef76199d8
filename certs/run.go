package certs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// retireEvery is how often retired names are looked through for certificates
// that have expired. Handshakes check the date themselves; this frees memory.
const retireEvery = time.Hour

// Run loads, obtains and renews certificates until ctx ends, then calls off
// what is under way and returns nil. Every goroutine that it started has ended
// by then, which can take as long as one operation of a DNS provider: a record
// that was added is deleted first. It can be called once.
//
// Certificates stay available from GetCertificate after Run has returned.
func (m *Manager) Run(ctx context.Context) error {
	if !m.running.CompareAndSwap(false, true) {
		return errors.New("certificates: Run was called before")
	}
	src, err := newSource(m.cfg, m.storage, m.metrics)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	defer src.close()
	src.survey(ctx)
	c := &crew{m: m, src: src, loads: make(chan struct{}, loadsAtOnce), workers: map[string]*worker{}}
	defer c.all.Wait()
	c.all.Go(func() { src.proof.Run(ctx) })
	purge := time.NewTicker(retireEvery)
	defer purge.Stop()
	for {
		c.reconcile(ctx)
		select {
		case <-ctx.Done():
			return nil // the workers' contexts are ctx's children
		case <-m.poke:
		case <-purge.C:
			m.purge()
		}
	}
}

// purge forgets retired names whose certificates have expired.
func (m *Manager) purge() {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := false
	for name, d := range m.retired {
		if !time.Now().Before(d.cert.Load().Leaf.NotAfter) {
			delete(m.retired, name)
			gone = true
		}
	}
	if gone {
		m.indexLocked()
	}
}

// want is what Run has to do for one name.
type want struct {
	d        *domain
	provider string
	issuer   string // empty: all, in turn
}

// order returns what the source is asked for, after so many attempts failed.
func (w want) order(failures int) order {
	return order{name: w.d.name, provider: w.provider, issuer: w.issuer, failures: failures}
}

// wants returns what is to be kept, and the names whose state is news.
func (m *Manager) wants() (keep map[string]want, news []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep = make(map[string]want, len(m.domains))
	for name, d := range m.domains {
		if d.refused == nil {
			keep[name] = want{d, d.provider, d.asked.Issuer}
		}
	}
	for name := range m.news {
		news = append(news, name)
	}
	clear(m.news)
	return keep, news
}

// crew is the workers of one Run, one for each name. Only Run's own goroutine
// touches it, but for loads and all.
type crew struct {
	m       *Manager
	src     *source
	loads   chan struct{} // holds a token for each certificate being loaded
	workers map[string]*worker
	all     sync.WaitGroup
}

// loadsAtOnce bounds how many certificates are read from storage at a time, so
// that ten thousand names do not open thirty thousand files at once. Nothing
// that waits for the network holds a place.
const loadsAtOnce = 8

// worker is the goroutine that keeps one certificate.
type worker struct {
	want
	cancel context.CancelFunc // nil: already cancelled
	done   chan struct{}      // closed when the goroutine has ended
}

// reconcile starts and cancels workers until they match the list.
func (c *crew) reconcile(ctx context.Context) {
	keep, news := c.m.wants()
	names := make(map[string]string, len(keep))
	for name, w := range keep {
		names[name] = w.provider
	}
	c.src.proof.SetNames(names)
	for _, name := range news {
		c.m.cfg.Changed(name)
	}
	for name, w := range c.workers {
		if w.cancel != nil && keep[name] != w.want {
			w.cancel()
			w.cancel = nil
		}
		if w.cancel == nil && isClosed(w.done) {
			delete(c.workers, name)
		}
	}
	for name, want := range keep {
		old := c.workers[name]
		if old != nil && old.cancel != nil {
			continue
		}
		c.workers[name] = c.start(ctx, want, old)
	}
}

// start runs a worker that begins when old, which may be nil, has ended: two
// attempts for one name must not overlap.
func (c *crew) start(ctx context.Context, want want, old *worker) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{want: want, cancel: cancel, done: make(chan struct{})}
	c.all.Go(func() {
		defer close(w.done)
		if old != nil {
			<-old.done
		}
		c.keep(ctx, want)
	})
	return w
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
