// Package tlskeys keeps in step with other nodes the keys that servers of TLS
// share: those that seal session tickets, so that a client resumes at whichever
// node it comes to, and those of encrypted hellos (ECH).
//
// It owns when keys are made, used and forgotten. How they are kept and sealed,
// it leaves to certs.Shared, and what is done with them to whoever calls New.
// cmd/sluice is its only caller.
package tlskeys

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
)

// DefaultPeriod is for how long a ticket key seals.
const DefaultPeriod = 8 * time.Hour

// Config wires a Keeper. Shared and UseTickets are needed.
type Config struct {
	Shared certs.Shared
	// Period is for how long a ticket key seals. It is made as long before, and
	// opens for as long after. 0: DefaultPeriod. All nodes should have the same.
	Period time.Duration
	// UseTickets is given the keys of tickets, the one that seals first, whenever
	// they change, before New returns for the first time.
	UseTickets func(keys [][32]byte)
	// UseECH, unless nil, is given the keys of encrypted hellos likewise, none
	// once there are none any more.
	UseECH func(keys []tls.EncryptedClientHelloKey)

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: nothing is counted
}

// Keeper keeps keys in step. Make one with New; it belongs to the goroutine that
// calls Run.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	poke    chan struct{} // has a token when what nodes share may have changed

	tickets  ticketKeys // as the nodes share them
	local    []localKey // of this node alone, newest first
	retry    time.Time  // when to write again, after a write failed
	using    [][32]byte
	troubled string // what was said of the value in storage last
	echRev   int64  // of the keys of encrypted hellos that were looked at last
}

// ticketsKey is where the keys of tickets lie in certs.Shared.
const ticketsKey = "shared/tickets"

// ticketKeys is what lies there: keys from the oldest to the newest. The newest
// that seals by now is the one in use; one that is to come is known to every node
// long before.
type ticketKeys struct {
	Version int         `json:"version"` // 1
	Keys    []ticketKey `json:"keys"`
}

type ticketKey struct {
	Secret [32]byte  `json:"secret"`
	From   time.Time `json:"from"` // when it begins to seal
}

// id names a key in logs. It does not tell the key.
func (k ticketKey) id() string {
	sum := sha256.Sum256(append([]byte("sluice ticket key id"), k.Secret[:]...))
	return hex.EncodeToString(sum[:4])
}

// localKey is one that no other node knows.
type localKey struct {
	secret [32]byte
	from   time.Time
	until  time.Time // when it opens no more; zero: it seals
}

// New returns a Keeper that uses what this node has on disk, or a key of its own
// where that is nothing. It starts nothing.
func New(cfg Config) *Keeper {
	if cfg.Period == 0 {
		cfg.Period = DefaultPeriod
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), poke: make(chan struct{}, 1)}
	k.look()
	k.lookECH()
	k.use(time.Now())
	return k
}

// Run makes, takes up and forgets keys as time goes by, until ctx ends, and
// returns nil then.
func (k *Keeper) Run(ctx context.Context) error {
	stop := k.cfg.Shared.WatchShared("shared/", func(key string) {
		if key != ticketsKey && key != echSharedKey {
			return
		}
		select {
		case k.poke <- struct{}{}:
		default:
		}
	})
	defer stop()
	// Nodes that were started together do not write together.
	k.retry = time.Now().Add(mathrand.N(startSpread))
	for {
		k.look()
		k.lookECH()
		now := time.Now()
		k.use(now)
		wait := time.Until(k.nextChange(now))
		if due := k.tickets.due(); !due.After(now) {
			if !now.Before(k.retry) {
				k.write(ctx)
				continue
			}
			wait = min(wait, k.retry.Sub(now))
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-timer.C:
		case <-k.poke:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

const (
	startSpread = 2 * time.Second
	retryAfter  = time.Minute
	writeLimit  = 10 * time.Second
	maxKeys     = 16 // more are nobody's honest work
)

// look reads the value that nodes share, as this node has it in memory. One that
// is of no use is said once, and left alone.
func (k *Keeper) look() {
	v, ok := k.cfg.Shared.Peek(ticketsKey)
	if !ok {
		return // never there, or away: what was known stays in use
	}
	keys, err := parseTickets(v.Data)
	said := ""
	if err != nil {
		said = err.Error()
	} else {
		k.tickets = keys.doubted(time.Now(), k.cfg.Period)
	}
	if said != k.troubled && said != "" {
		k.metrics.failures.Inc()
		k.log.Error("the shared keys of session tickets are of no use; this node goes on with those that it has", "err", err)
	}
	k.troubled = said
}

func parseTickets(data []byte) (keys ticketKeys, err error) {
	if err = json.Unmarshal(data, &keys); err != nil {
		return ticketKeys{}, errors.New("they are not what a node writes") // json would quote from them
	}
	switch {
	case keys.Version != 1:
		return ticketKeys{}, fmt.Errorf("they are of version %d, and this program knows version 1", keys.Version)
	case len(keys.Keys) == 0 || len(keys.Keys) > maxKeys:
		return ticketKeys{}, fmt.Errorf("they are %d", len(keys.Keys))
	case !slices.IsSortedFunc(keys.Keys, func(a, b ticketKey) int { return a.From.Compare(b.From) }):
		return ticketKeys{}, errors.New("they are not in the order of their time")
	}
	return keys, nil
}

// current returns the place of the key that seals at now, -1 where none does yet.
func (t ticketKeys) current(now time.Time) int {
	at := -1
	for i, key := range t.Keys {
		if !key.From.After(now) {
			at = i
		}
	}
	return at
}

// doubted returns the keys without those that a node made whose clock was ahead:
// until they seal, nobody would make another. A node whose own clock is behind
// sees none yet that seals, and leaves them all.
func (t ticketKeys) doubted(now time.Time, period time.Duration) ticketKeys {
	if t.current(now) < 0 {
		return t
	}
	far := now.Add(2 * period) // a good clock makes them for one period ahead
	t.Keys = slices.DeleteFunc(slices.Clone(t.Keys), func(key ticketKey) bool { return key.From.After(far) })
	return t
}

// due returns when the value has to be written anew: once the newest key seals,
// the next one has to be made.
func (t ticketKeys) due() time.Time {
	if len(t.Keys) == 0 {
		return time.Time{}
	}
	return t.Keys[len(t.Keys)-1].From
}

// next returns the value as it should be from now on.
func (t ticketKeys) next(now time.Time, period time.Duration) ticketKeys {
	to := ticketKeys{Version: 1}
	current := t.current(now)
	for i, key := range t.Keys {
		// The end of a key that sealed is the beginning of the one behind it.
		if i < current && now.Sub(t.Keys[i+1].From) >= period {
			continue
		}
		to.Keys = append(to.Keys, key)
	}
	if len(to.Keys) == 0 {
		to.Keys = append(to.Keys, ticketKey{Secret: newSecret(), From: now.UTC()})
	}
	last := to.Keys[len(to.Keys)-1]
	if !last.From.After(now) {
		// Every node gets to know it before it seals, one that was late included.
		from := last.From.Add(period)
		if soon := now.Add(period / 8); from.Before(soon) {
			from = soon
		}
		to.Keys = append(to.Keys, ticketKey{Secret: newSecret(), From: from.UTC()})
	}
	return to
}

func newSecret() (secret [32]byte) {
	rand.Read(secret[:])
	return secret
}

// write makes the next key, unless another node was quicker.
func (k *Keeper) write(ctx context.Context) {
	if k.troubled != "" {
		k.later(retryAfter)
		return // whoever wrote that may know better
	}
	k.later(startSpread) // by then this node has heard of what was written
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	v, err := k.cfg.Shared.Get(ctx, ticketsKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.failed(ctx, err)
		return
	}
	was := ticketKeys{}
	if err == nil && len(v.Data) > 0 { // else it is damaged: as good as none
		if was, err = parseTickets(v.Data); err != nil {
			return // look says so
		}
	}
	now := time.Now()
	was = was.doubted(now, k.cfg.Period)
	if len(was.Keys) > 0 && was.due().After(now) {
		return // another node has made it, and this one is about to hear of that
	}
	next := was.next(now, k.cfg.Period)
	data, err := json.Marshal(next)
	if err == nil {
		_, err = k.cfg.Shared.Swap(ctx, ticketsKey, v.Rev, data)
	}
	switch {
	case errors.Is(err, certs.ErrSwapped):
	case err != nil:
		k.failed(ctx, err)
	default:
		made := next.Keys[len(next.Keys)-1]
		k.log.Info("made the next key of session tickets, for all nodes", "key", made.id(), "seals_from", made.From)
	}
}

// later has the next write wait for about d.
func (k *Keeper) later(d time.Duration) { k.retry = time.Now().Add(d + mathrand.N(d/4)) }

func (k *Keeper) failed(ctx context.Context, err error) {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return // the node stops
	}
	k.later(retryAfter)
	k.metrics.failures.Inc()
	k.log.Warn("the next key of session tickets could not be made; it is tried again", "err", err)
}

// use puts the keys of now in use, if they are others than before.
func (k *Keeper) use(now time.Time) {
	current := k.tickets.current(now)
	shared := current >= 0 && now.Sub(k.tickets.Keys[current].From) < 2*k.cfg.Period
	k.local = slices.DeleteFunc(k.local, func(l localKey) bool { return !l.until.IsZero() && !now.Before(l.until) })
	if shared {
		for i := range k.local {
			if k.local[i].until.IsZero() {
				k.local[i].until = now.Add(k.cfg.Period)
			}
		}
	} else {
		k.ownKey(now)
	}
	var keys [][32]byte
	if shared {
		keys = append(keys, k.tickets.Keys[current].Secret)
	}
	for _, l := range k.local { // that which seals is the first of them
		keys = append(keys, l.secret)
	}
	for i, key := range k.tickets.Keys {
		if i == current && shared || i < current && now.Sub(k.tickets.Keys[i+1].From) >= k.cfg.Period ||
			!shared && i == current && now.Sub(key.From) >= 3*k.cfg.Period {
			continue
		}
		keys = append(keys, key.Secret)
	}
	k.metrics.keys(shared, len(keys))
	if slices.Equal(keys, k.using) {
		return
	}
	k.using = keys
	k.cfg.UseTickets(slices.Clone(keys))
}

// ownKey sees to it that a key of this node's own seals: there is none that nodes
// share, or it has been sealing for twice its time and nobody has made another.
func (k *Keeper) ownKey(now time.Time) {
	if len(k.local) > 0 && k.local[0].until.IsZero() {
		if now.Sub(k.local[0].from) < k.cfg.Period {
			return
		}
		k.local[0].until = now.Add(k.cfg.Period)
	}
	if len(k.tickets.Keys) > 0 {
		k.log.Warn("no node has made a new key of session tickets for long; this one seals with a key of its own, and clients resume here alone")
	}
	k.local = slices.Insert(k.local, 0, localKey{secret: newSecret(), from: now})
}

// nextChange returns when use has something to change next.
func (k *Keeper) nextChange(now time.Time) time.Time {
	next := now.Add(k.cfg.Period)
	soonest := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	for _, key := range k.tickets.Keys {
		for n := range 4 {
			soonest(key.From.Add(time.Duration(n) * k.cfg.Period))
		}
	}
	for _, l := range k.local {
		soonest(l.until)
		soonest(l.from.Add(k.cfg.Period))
	}
	return next
}
