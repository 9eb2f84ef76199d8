package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"
)

// idleResult is what relays cost on which nothing moves.
type idleResult struct {
	Wanted     int                     `json:"wanted"`
	Relays     int                     `json:"relays"`
	Files      uint64                  `json:"file_limit"` // of each process, which decides how many relays there can be
	Contenders []string                `json:"contenders"`
	Rounds     []map[string]idleSample `json:"rounds"` // by contender
}

// idleSample is one contender with none and then with all relays.
type idleSample struct {
	Before footprint `json:"before"`
	After  footprint `json:"after"`
	CPU    float64   `json:"cpu_ms_per_second"` // of holding them
	Error  string    `json:"error,omitempty"`
}

const (
	// idleSpareFiles are what a process has open beside its relays; sluice, like
	// others that expect floods, keeps an eighth of the files it may open back.
	idleSpareFiles = 300
	idleFileShare  = 8
	// idleRounds are enough for memory, which is no matter of luck.
	idleRounds = 2

	idleRSSLimit = 2 << 10 // bytes for each relay
	idleFDLimit  = 2
)

// runIdle gives each contender its turn in each round, in processes of its own.
func runIdle(ctx context.Context, b *bench) error {
	limit, err := fileLimit(uint64(3*b.options.relays + idleSpareFiles))
	if err != nil {
		return err
	}
	res := &idleResult{Wanted: b.options.relays, Files: limit,
		Relays: min(b.options.relays, (int(limit-limit/idleFileShare)-idleSpareFiles)/2)}
	if res.Relays < 1 {
		return fmt.Errorf("only %d files may be open", limit)
	}
	res.Contenders, res.Rounds, err = b.idleRounds(ctx, idleRow{
		name: "idle", rounds: idleRounds, contenders: b.options.withPorts(),
		turn: func(c contender, round int) (idleSample, error) { return b.idleTurn(ctx, c, res, round) },
		text: func(s idleSample) string {
			return fmt.Sprintf("%8s and %.2f files for each relay", byteSize(res.rss(s)), res.fds(s))
		},
	})
	if err != nil {
		return err
	}
	b.result.Idle = res
	return nil
}

// idleRow is what idle rows differ in.
type idleRow struct {
	name       string
	rounds     int // at most
	contenders []contender
	turn       func(c contender, round int) (idleSample, error)
	text       func(idleSample) string // of a turn that worked
}

// idleRounds gives each contender its turn in each round. A turn that fails is
// noted and told; the error is that of ctx.
func (b *bench) idleRounds(ctx context.Context, row idleRow) (names []string, rounds []map[string]idleSample, err error) {
	for _, c := range row.contenders {
		names = append(names, c.name)
	}
	for i := range min(b.options.rounds, row.rounds) {
		round := make(map[string]idleSample)
		for _, c := range row.contenders {
			s, err := row.turn(c, i)
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			if err != nil {
				s.Error = err.Error()
				fmt.Fprintf(b.out, "%-9s %d  %-8s FAILED: %v\n", row.name, i+1, c.name, err)
			} else {
				fmt.Fprintf(b.out, "%-9s %d  %-8s %s\n", row.name, i+1, c.name, row.text(s))
			}
			round[c.name] = s
		}
		rounds = append(rounds, round)
	}
	return names, rounds, nil
}

func (b *bench) idleTurn(ctx context.Context, c contender, r *idleResult, round int) (idleSample, error) {
	s, err := b.site(fmt.Sprintf("idle-%d-%s", round, c.name))
	if err != nil {
		return idleSample{}, err
	}
	s.relays, s.files = r.Relays+idleSpareFiles/10, int(r.Files)
	e, err := c.start(ctx, s)
	if err != nil {
		return idleSample{}, err
	}
	defer e.proc.stop()
	if err := verify(ctx, e); err != nil {
		return idleSample{}, err
	}
	var out idleSample
	if out.Before, err = settled(ctx, e); err != nil {
		return out, err
	}
	held, err := openRelays(ctx, e.addrs[serviceEcho], r.Relays)
	defer func() {
		for _, c := range held {
			closeHard(c)
		}
	}()
	if err != nil {
		return out, errors.Join(err, e.proc.alive(), e.proc.said())
	}
	if out.After, err = settled(ctx, e); err != nil {
		return out, err
	}
	w, err := observe(ctx, e.root, b.options.phases, func() {})
	if err != nil {
		return out, err
	}
	out.CPU = float64(w.cpu) / float64(time.Millisecond) / w.length().Seconds()
	return out, stillEcho(held)
}

// relayWorkers open or check relays at the same time, few enough for every
// contender's backlog.
const relayWorkers = 16

// openRelays connects n times and has each connection echo once, which proves
// that its relay stands. Those that stand are returned also on error.
func openRelays(ctx context.Context, addr netip.AddrPort, n int) ([]net.Conn, error) {
	conns, errs := make([]net.Conn, n), make([]error, relayWorkers)
	var working sync.WaitGroup
	for k := range relayWorkers {
		working.Go(func() {
			for i := k; i < n && errs[k] == nil; i += relayWorkers {
				c, err := dialTCP(ctx, addr)
				if err != nil {
					errs[k] = err
					return
				}
				conns[i] = c
				errs[k] = echoSoon(c)
			}
		})
	}
	working.Wait()
	var held []net.Conn
	for _, c := range conns {
		if c != nil {
			held = append(held, c)
		}
	}
	for _, err := range errs {
		if err != nil { // the others' are most often the same
			return held, fmt.Errorf("after %d of %d relays: %w", len(held), n, err)
		}
	}
	return held, nil
}

// echoSoon has a message echoed, or returns an error.
func echoSoon(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(startLimit)); err != nil {
		return err
	}
	return errors.Join(echo(c, newMessage(), make([]byte, messageSize)), c.SetDeadline(time.Time{}))
}

// stillEcho makes sure that none of the connections was given up while it
// rested.
func stillEcho(conns []net.Conn) error {
	for i, c := range conns {
		if err := echoSoon(c); err != nil {
			return fmt.Errorf("relay %d of %d did not survive its rest: %w", i+1, len(conns), err)
		}
	}
	return nil
}

// closeHard resets a connection, so that its port is free at once.
func closeHard(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

func (r *idleResult) rss(s idleSample) float64 {
	return float64(s.After.RSS-s.Before.RSS) / float64(r.Relays)
}

func (r *idleResult) fds(s idleSample) float64 {
	return float64(s.After.FDs-s.Before.FDs) / float64(r.Relays)
}

// over returns a figure of a contender in all rounds that count.
func (r *idleResult) over(contender string, figure func(idleSample) float64) []float64 {
	var all []float64
	for _, round := range r.Rounds {
		if s, ok := round[contender]; ok && s.Error == "" {
			all = append(all, figure(s))
		}
	}
	return all
}

func (r *idleResult) section() string {
	cells := [][]string{{fmt.Sprintf("%d idle relays", r.Relays), "memory at rest", "with relays", "for each relay", "(least–greatest)", "files for each", "CPU"}}
	for _, name := range r.Contenders {
		each := spreadOf(r.over(name, r.rss))
		cells = append(cells, []string{
			name,
			byteSize(median(r.over(name, func(s idleSample) float64 { return float64(s.Before.RSS) }))),
			byteSize(median(r.over(name, func(s idleSample) float64 { return float64(s.After.RSS) }))),
			byteSize(each.median), "(" + byteSize(each.min) + "–" + byteSize(each.max) + ")",
			figure(median(r.over(name, r.fds))),
			figure(median(r.over(name, func(s idleSample) float64 { return s.CPU }))) + " ms/s",
		})
	}
	note := ""
	if r.Relays < r.Wanted {
		note = fmt.Sprintf("\n%d relays were wanted; a process may have %d files open here, each relay takes two, and sluice keeps an eighth back.\n", r.Wanted, r.Files)
	}
	return align(cells) + note
}

func (r *idleResult) bars() []bar {
	rss, fds := spreadOf(r.over(judged, r.rss)), median(r.over(judged, r.fds))
	if len(r.over(judged, r.rss)) == 0 {
		return nil
	}
	return []bar{
		{fmt.Sprintf("%d idle relays: memory of each", r.Relays), "≤ " + byteSize(idleRSSLimit), byteSize(rss.median), rss.median <= idleRSSLimit},
		{fmt.Sprintf("%d idle relays: files of each", r.Relays), fmt.Sprintf("≤ %d", idleFDLimit), figure(fds), math.Round(fds*100)/100 <= idleFDLimit},
	}
}

func (r *idleResult) failures() []string {
	var all []string
	for i, round := range r.Rounds {
		for _, name := range r.Contenders {
			if s := round[name]; s.Error != "" {
				all = append(all, fmt.Sprintf("idle: %s in round %d: %s", name, i+1, s.Error))
			}
		}
	}
	return all
}
