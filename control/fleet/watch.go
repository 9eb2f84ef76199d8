package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// lookEvery is how often a node looks at each address that it watches, and
	// lookLimit how long it waits for all of the answer. With the times of pulse
	// and the lease of six seconds they make the sum in ARCHITECTURE.md.
	lookEvery = time.Second
	lookLimit = 2 * time.Second
	// mappedEvery is how many looks at the https listener come between two at the
	// mapped port, which cost the backend of its mapping a connection. After one
	// that failed it is looked at each time.
	mappedEvery = 30
	// viewEvery is the least time between two views that are written, but for the
	// first ones after a quiet time: where half of a cluster goes, all votes change.
	viewEvery = 500 * time.Millisecond
)

// Prober looks at one address of a peer. Each call opens connections of its own
// and closes them. An *UnableError says that this node cannot tell.
type Prober interface {
	// HTTPS does a TLS handshake with the https listener and asks for
	// /health-proxy.
	HTTPS(ctx context.Context, addr string) error
	// TCP connects.
	TCP(ctx context.Context, addr string) error
}

// UnableError is an error of this node that says nothing about the peer.
type UnableError struct{ Err error }

func (e *UnableError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *UnableError) Unwrap() error { return e.Err }

// WatcherConfig wires a Watcher. All but Logger and Registerer are needed.
type WatcherConfig struct {
	Node     string
	Registry *Registry
	Prober   Prober
	// Set sets a key under the node's lease.
	Set        func(key, value string)
	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// Watcher looks at the peers that its node is to watch, and says what it sees.
type Watcher struct {
	cfg     WatcherConfig
	metrics *watchMetrics
	news    chan struct{} // holds a token while the view may have changed

	mu     sync.Mutex // guards the following field
	pulses map[string]*pulse
}

// NewWatcher returns a Watcher that does nothing before Run.
func NewWatcher(cfg WatcherConfig) *Watcher {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{cfg: cfg, news: make(chan struct{}, 1), pulses: map[string]*pulse{}}
	w.metrics = newWatchMetrics(cfg.Registerer, cfg.Registry)
	return w
}

// Run watches until ctx ends, and has ended all it began when it returns nil.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { w.publish(ctx) })
	looking := map[string]context.CancelFunc{}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		changed := w.cfg.Registry.Changed()
		wanted := map[string]target{}
		for _, t := range w.cfg.Registry.targets() {
			wanted[t.id()] = t
		}
		for id, stop := range looking {
			if _, ok := wanted[id]; !ok {
				stop()
				delete(looking, id)
			}
		}
		for id, t := range wanted {
			if looking[id] == nil {
				ctx, stop := context.WithCancel(ctx)
				looking[id] = stop
				running.Go(func() { w.look(ctx, t) })
			}
		}
		w.forget(wanted)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		again.Reset(gather) // more may come
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

// id tells targets apart that are looked at in other ways.
func (t target) id() string { return fmt.Sprint(t.subject, " ", t.https, " ", t.mapped) }

// forget forgets what is known of addresses that are not watched any more.
func (w *Watcher) forget(wanted map[string]target) {
	subjects := map[string]bool{}
	for _, t := range wanted {
		subjects[t.subject] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for subject := range w.pulses {
		if !subjects[subject] {
			delete(w.pulses, subject)
			w.poke()
		}
	}
}

func (w *Watcher) poke() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// look looks at one address over and over.
func (w *Watcher) look(ctx context.Context, t target) {
	mapped := rand.IntN(mappedEvery)         // looks until the mapped port has its turn
	wait := time.NewTimer(rand.N(lookEvery)) // nodes begin together, and shall not look so
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		began := time.Now()
		looked, err := w.once(ctx, t, &mapped)
		if ctx.Err() != nil {
			return
		}
		if looked {
			w.note(t, began, err)
		}
		wait.Reset(max(lookEvery*9/10+rand.N(lookEvery/5)-time.Since(began), lookEvery/10))
	}
}

// once looks at what has its turn of one address, if anything has.
func (w *Watcher) once(ctx context.Context, t target, mapped *int) (looked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	addr := func(port int) string { return fmt.Sprintf("[%v]:%d", t.addr, port) }
	if t.https != 0 {
		if err := w.cfg.Prober.HTTPS(ctx, addr(t.https)); err != nil {
			return true, fmt.Errorf("https port %d: %w", t.https, err)
		}
	}
	if *mapped--; *mapped > 0 || t.mapped == 0 {
		return t.https != 0, nil
	}
	if err := w.cfg.Prober.TCP(ctx, addr(t.mapped)); err != nil {
		return true, fmt.Errorf("mapped port %d: %w", t.mapped, err)
	}
	*mapped = mappedEvery
	return true, nil
}

// note takes in how a look ended.
func (w *Watcher) note(t target, began time.Time, err error) {
	if errors.As(err, new(*UnableError)) {
		w.metrics.looks.WithLabelValues("unable").Inc()
		return
	}
	if err == nil {
		w.metrics.looks.WithLabelValues("up").Inc()
		w.metrics.seconds.Observe(time.Since(began).Seconds())
	} else {
		w.metrics.looks.WithLabelValues("down").Inc()
	}
	w.mu.Lock()
	p := w.pulses[t.subject]
	if p == nil {
		p = new(pulse)
		w.pulses[t.subject] = p
	}
	changed, up := p.note(began, time.Now(), err), p.up
	w.mu.Unlock()
	if !changed {
		return
	}
	if up {
		w.cfg.Logger.Info("a peer answers", "peer", t.subject)
	} else {
		w.cfg.Logger.Warn("a peer does not answer; this node votes to send no clients there", "peer", t.subject, "err", err)
	}
	w.poke()
}

// view returns what this node sees.
func (w *Watcher) view() *View {
	v := &View{}
	w.mu.Lock()
	defer w.mu.Unlock()
	for subject, p := range w.pulses {
		switch {
		case !p.known:
		case p.up:
			v.Up = append(v.Up, subject)
		default:
			if v.Down == nil {
				v.Down = map[string]string{}
			}
			v.Down[subject] = p.why
		}
	}
	v.sort()
	return v
}

// publish says what this node sees, when that changes.
func (w *Watcher) publish(ctx context.Context) {
	rest := time.NewTimer(0)
	defer rest.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		}
		v := w.view()
		text, err := json.Marshal(v)
		if err != nil || string(text) == last { // the former cannot be
			continue
		}
		last = string(text)
		w.cfg.Registry.setView(v)
		w.cfg.Set(viewsFolder+w.cfg.Node, last)
		w.metrics.votes.Inc()
		rest.Reset(viewEvery)
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		}
	}
}
