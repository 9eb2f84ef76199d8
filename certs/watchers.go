package certs

import (
	"slices"
	"sync"
)

// Watchers tells others what has changed, for those that implement Shelf and
// Shared. Each is told from a goroutine of its own, one call at a time, and of
// what changes while it is at work once. The zero value is ready to be used;
// all methods are safe for concurrent use.
type Watchers struct {
	mu  sync.Mutex // guards all
	all map[*watcher]bool
}

// Add has changed called with what is told from now on, until stop is called.
// Once that has returned, no call is under way.
func (w *Watchers) Add(changed func(what []string)) (stop func()) {
	one := &watcher{changed: changed, ready: make(chan struct{}, 1), done: make(chan struct{})}
	w.mu.Lock()
	if w.all == nil {
		w.all = map[*watcher]bool{}
	}
	w.all[one] = true
	w.mu.Unlock()
	var running sync.WaitGroup
	running.Go(one.run)
	return sync.OnceFunc(func() {
		w.mu.Lock()
		delete(w.all, one)
		w.mu.Unlock()
		close(one.done)
		running.Wait()
	})
}

// Tell tells all of what has changed. It does not wait for them.
func (w *Watchers) Tell(what ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.all {
		one.put(what)
	}
}

type watcher struct {
	changed func([]string)
	ready   chan struct{} // holds a token while there is news
	done    chan struct{}

	mu   sync.Mutex      // guards the following
	news []string        // each once
	has  map[string]bool // what is in news
}

func (w *watcher) put(what []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.has == nil {
		w.has = map[string]bool{}
	}
	for _, s := range what {
		if !w.has[s] {
			w.has[s] = true
			w.news = append(w.news, s)
		}
	}
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

func (w *watcher) run() {
	for {
		select {
		case <-w.done:
			return
		case <-w.ready:
		}
		w.mu.Lock()
		news := slices.Clip(w.news)
		w.news = nil
		clear(w.has)
		w.mu.Unlock()
		if len(news) > 0 {
			w.changed(news)
		}
	}
}
