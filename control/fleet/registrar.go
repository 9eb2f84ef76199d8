package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// appliedEvery is the least time between two records that differ in their
	// applied revision alone: edits come in hundreds a second, and each record
	// is a write that the whole fleet pays for.
	appliedEvery = time.Second

	// addressesEvery is how often the machine's own addresses are looked at.
	addressesEvery = 2 * time.Second
)

// keeper puts the node's record into etcd under the node's lease, and again
// whenever that was lost: at once, or by SetProgress, which is for records that
// differ in the applied revision alone, after the verdicts that were given to it
// before. Neither blocks.
type keeper interface {
	SetRecord(record string)
	SetProgress(record string)
	// Set sets another key below the prefix, under the same lease.
	Set(key, value string)
}

// Config describes this node. Name, Instance and Version are needed.
type Config struct {
	Name     string // of the node, one in the cluster
	Instance string // what the function Instance returned
	Version  string // of the program

	// Addresses are where clients reach the node. Without any, those of the
	// machine's interfaces are used and kept up to date: the public ones, or
	// the private ones if it has no other.
	Addresses  []netip.Addr
	Interfaces func() ([]net.Addr, error) // nil: net.InterfaceAddrs
	// Told has the addresses be those that SetAddresses is given, until then those of
	// Addresses, and those of the interfaces not be looked at. A node that has none
	// yet is Joining when it is said to be Ready: nobody could be sent to it.
	Told bool

	Region string // where the node stands; "": nobody says
	Weight int    // its share of clients, 1 to MaxWeight; 0: 1
	Names  bool   // whether it has a DNS provider, see Card

	// ClusterKeys returns what Node.ClusterKeys is to be, empty where the node has
	// none; it must not block. Nil: the record says nothing of it.
	ClusterKeys func() []string

	Logger *slog.Logger // nil: nothing is logged
}

func (cfg Config) check() error {
	switch {
	case cfg.Name == "":
		return errors.New("node: no name given")
	case cfg.Instance == "":
		return fmt.Errorf("node %s: no instance given", cfg.Name)
	case cfg.Version == "":
		return fmt.Errorf("node %s: no version given", cfg.Name)
	}
	if cfg.Weight < 0 || cfg.Weight > MaxWeight {
		return fmt.Errorf("node %s: weight %d; write 1 to %d", cfg.Name, cfg.Weight, MaxWeight)
	}
	for _, a := range cfg.Addresses {
		if !a.IsGlobalUnicast() {
			return fmt.Errorf("node %s: clients cannot reach it at %v; write global unicast addresses", cfg.Name, a)
		}
	}
	return nil
}

// Registrar keeps this node's record true. SetState and SetApplied are safe
// for concurrent use and do not block.
type Registrar struct {
	keeper     keeper
	log        *slog.Logger
	interfaces func() ([]net.Addr, error) // nil: addresses are configured, or told
	told       bool
	keys       func() []string // nil: nobody says
	names      bool            // see Card
	wake       chan struct{}
	look       chan struct{} // holds a token while the interfaces are to be looked at

	mu      sync.Mutex // guards the following fields
	node    Node
	applied progress // what node.Applied and node.Fingerprint are to become
	urgent  bool     // node differs from the record in more than those
	left    bool     // the program is about to end
	load    *Load    // what node.Load is to become
	older   *Older   // what node.Older is to become
	// https and mapped are ports for peers to look at; 0: none.
	https, mapped int
}

// New checks cfg and returns a Registrar for a node that is Joining, and that
// has started now. It does nothing before Run.
func New(cfg Config, k keeper) (*Registrar, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if k == nil {
		return nil, fmt.Errorf("node %s: nobody given to keep its record", cfg.Name)
	}
	r := &Registrar{
		keeper: k,
		log:    cfg.Logger,
		wake:   make(chan struct{}, 1),
		look:   make(chan struct{}, 1),
		told:   cfg.Told,
		keys:   cfg.ClusterKeys,
		names:  cfg.Names,
		node: Node{
			Name: cfg.Name, Instance: cfg.Instance, Version: cfg.Version, State: Joining,
			Addresses: append([]netip.Addr{}, cfg.Addresses...), // never null in JSON
			Region:    cfg.Region, Weight: max(cfg.Weight, 1),
			Started: time.Now().UTC().Truncate(time.Second),
		},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Addresses) == 0 && !cfg.Told {
		r.interfaces = cfg.Interfaces
		if r.interfaces == nil {
			r.interfaces = net.InterfaceAddrs
		}
	}
	return r, nil
}

// SetState says what the node is doing from now on. It is recorded at once, unless
// Leave was called.
func (r *Registrar) SetState(s State) {
	r.mu.Lock()
	if r.node.State != s && !r.left {
		r.node.State, r.urgent = s, true
	}
	r.mu.Unlock()
	r.poke()
}

// ClusterKeysChanged says that Config.ClusterKeys returns something else. It is
// recorded at once.
func (r *Registrar) ClusterKeysChanged() {
	r.mu.Lock()
	r.urgent = true
	r.mu.Unlock()
	r.poke()
}

// Leave says that the program drains and ends, whatever else is said later.
func (r *Registrar) Leave() {
	r.SetState(Draining)
	r.mu.Lock()
	r.left = true
	r.mu.Unlock()
}

// setProgress says how far the node is with being drained. It is recorded at once.
func (r *Registrar) setProgress(p *Progress) {
	r.mu.Lock()
	r.node.Drain, r.urgent = p, true
	r.mu.Unlock()
	r.poke()
}

// SetPorts says which ports peers may look at to see whether the node is well: of
// its https listener, and a mapped TCP port that is open; 0: none. It is recorded
// at once.
func (r *Registrar) SetPorts(https, mapped int) {
	r.mu.Lock()
	if r.https != https || r.mapped != mapped {
		r.https, r.mapped, r.urgent = https, mapped, true
	}
	r.mu.Unlock()
	r.poke()
}

// progress is how far a node is.
type progress struct {
	rev         int64
	fingerprint string
}

// recorded returns what the record says. r.mu is held.
func (r *Registrar) recorded() progress { return progress{r.node.Applied, r.node.Fingerprint} }

// SetApplied says that the state of etcd at revision rev is in force, and with
// it values of this fingerprint. It is recorded within a second, the last of
// several that come faster.
func (r *Registrar) SetApplied(rev int64, fingerprint string) {
	now := progress{rev, fingerprint}
	r.mu.Lock()
	news := r.applied == r.recorded() && now != r.applied // else Run knows that there is some
	r.applied = now
	r.mu.Unlock()
	if news {
		r.poke()
	}
}

func (r *Registrar) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes the record, first of all and whenever it has changed, until ctx
// ends; it then returns nil. The record itself ends with its lease.
func (r *Registrar) Run(ctx context.Context) error {
	r.refreshAddresses()
	if err := r.write(true); err != nil {
		return err
	}
	written := time.Now()
	rest := time.NewTimer(0) // when a mere revision may be written
	defer rest.Stop()
	look := time.NewTicker(addressesEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-rest.C:
		case <-look.C:
			r.refreshAddresses()
		case <-r.look:
			r.refreshAddresses()
		}
		changed, urgent := r.changed()
		if !changed {
			continue
		}
		if wait := appliedEvery - time.Since(written); !urgent && wait > 0 {
			rest.Reset(wait)
			continue
		}
		if err := r.write(urgent); err != nil {
			return err
		}
		written = time.Now()
		rest.Reset(appliedEvery)
	}
}

func (r *Registrar) changed() (changed, urgent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.urgent || r.applied != r.recorded() || r.load != r.node.Load || r.older != r.node.Older, r.urgent
}

// write writes the record: of what is urgent at once, and of what is applied
// behind the verdicts.
func (r *Registrar) write(urgent bool) error {
	r.mu.Lock()
	if r.urgent = false; !urgent {
		r.node.Applied, r.node.Fingerprint = r.applied.rev, r.applied.fingerprint
		r.node.Load, r.node.Older = r.load, r.older
	} else if r.keys != nil {
		r.node.ClusterKeys = append([]string{}, r.keys()...) // never null in JSON
	}
	n, https, mapped := r.node, r.https, r.mapped
	r.mu.Unlock()
	if r.told && n.State == Ready && len(n.Addresses) == 0 {
		n.State = Joining
	}
	record, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("write the record of node %s: %w", n.Name, err)
	}
	if !urgent {
		r.keeper.SetProgress(string(record))
		return nil
	}
	r.keeper.SetRecord(string(record))
	card, err := json.Marshal(Card{State: n.State, Addresses: n.Addresses, Region: n.Region, Weight: n.Weight, HTTPS: https, Mapped: mapped, Names: &r.names})
	if err != nil {
		return fmt.Errorf("write the card of node %s: %w", n.Name, err)
	}
	r.keeper.Set(cardsFolder+n.Name, string(card))
	return nil
}

// LookAgain says that the addresses of interfaces may have changed.
func (r *Registrar) LookAgain() {
	select {
	case r.look <- struct{}{}:
	default:
	}
}

// SetAddresses says where clients reach the node from now on. It is recorded at
// once.
func (r *Registrar) SetAddresses(now []netip.Addr) {
	r.mu.Lock()
	before := r.node.Addresses
	changed := len(now) > 0 && !slices.Equal(before, now)
	if changed {
		r.node.Addresses, r.urgent = slices.Clone(now), true
	}
	r.mu.Unlock()
	if changed {
		r.log.Info("this node is reachable at other addresses", "before", fmt.Sprint(before), "now", fmt.Sprint(now))
		r.poke()
	}
}

// SetLoad says how busy the node is. It is recorded with the next progress, and
// if nothing else is to be, by itself.
func (r *Registrar) SetLoad(l Load) {
	r.mu.Lock()
	r.load = &l
	r.mu.Unlock()
	r.poke()
}

// SetOlder says what older processes of the node still have; the zero value: there
// are none. It is recorded with the next progress, and if it has changed, by itself.
func (r *Registrar) SetOlder(o Older) {
	now := &o
	if o == (Older{}) {
		now = nil
	}
	r.mu.Lock()
	changed := (now == nil) != (r.older == nil) || now != nil && *now != *r.older
	if changed {
		r.older = now
	}
	r.mu.Unlock()
	if changed {
		r.poke()
	}
}

// refreshAddresses looks at the interfaces, unless addresses are configured.
// What cannot be read, and an empty answer, such as while a link is being set
// up again, leaves the last addresses in place.
func (r *Registrar) refreshAddresses() {
	if r.interfaces == nil {
		return
	}
	own, err := r.interfaces()
	if err != nil {
		r.log.Warn("cannot read the addresses of this machine's interfaces", "err", err)
		return
	}
	r.SetAddresses(reachable(own))
}
