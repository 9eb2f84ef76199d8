package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// idleWebResult is what HTTPS connections cost on which nothing moves, each
// after one request.
type idleWebResult struct {
	Connections int                     `json:"connections"`
	Contenders  []string                `json:"contenders"`
	Rounds      []map[string]idleSample `json:"rounds"` // by contender
}

const (
	idleWebRounds = 2
	// idleWebLimit is sluice's memory with all connections, to nginx's.
	idleWebLimit = 1.5
)

// runIdleWeb gives each contender its turn in each round, in processes of its own.
func runIdleWeb(ctx context.Context, b *bench) error {
	n := b.options.keepAlive
	if limit, err := fileLimit(uint64(3*n + idleSpareFiles)); err != nil {
		return err
	} else if most := int(limit-limit/idleFileShare) - idleSpareFiles; n > most {
		return fmt.Errorf("%d connections are too many where a process may have %d files open; -keep-alive %d is not", n, limit, max(most, 0))
	}
	res := &idleWebResult{Connections: n}
	var err error
	res.Contenders, res.Rounds, err = b.idleRounds(ctx, idleRow{
		name: "idle-https", rounds: idleWebRounds, contenders: b.options.withHTTPS(),
		turn: func(c contender, round int) (idleSample, error) { return b.idleWebTurn(ctx, c, n, round) },
		text: func(s idleSample) string { return fmt.Sprintf("%8s", byteSize(float64(s.After.RSS))) },
	})
	if err != nil {
		return err
	}
	b.result.IdleWeb = res
	return nil
}

func (b *bench) idleWebTurn(ctx context.Context, c contender, n, round int) (idleSample, error) {
	s, err := b.site(fmt.Sprintf("idle-https-%d-%s", round, c.name))
	if err != nil {
		return idleSample{}, err
	}
	s.relays, s.files = n+idleSpareFiles/10, 3*n+idleSpareFiles
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
	held := make([]asker, n)
	defer func() {
		for _, a := range held {
			if a != nil {
				a.close()
			}
		}
	}()
	if err := eachOf(held, func(a *asker) (err error) {
		if *a, err = dialAskH1TLS(ctx, e, 1); err != nil {
			return err
		}
		return askOnce(*a)
	}); err != nil {
		return out, errors.Join(err, e.proc.alive(), e.proc.said())
	}
	if out.After, err = settled(ctx, e); err != nil {
		return out, err
	}
	w, err := observe(ctx, e.root, b.options.phases, func() {})
	if err != nil {
		return out, err
	}
	out.CPU = float64(w.cpu.Milliseconds()) / w.length().Seconds()
	return out, eachOf(held, func(a *asker) error { return askOnce(*a) })
}

// eachOf does something with every connection, some at a time, and returns the
// first error of each worker.
func eachOf(held []asker, do func(*asker) error) error {
	errs := make([]error, relayWorkers)
	var working sync.WaitGroup
	for k := range relayWorkers {
		working.Go(func() {
			for i := k; i < len(held) && errs[k] == nil; i += relayWorkers {
				if err := do(&held[i]); err != nil {
					errs[k] = fmt.Errorf("connection %d of %d: %w", i+1, len(held), err)
				}
			}
		})
	}
	working.Wait()
	return errors.Join(errs...)
}

// askOnce has one request answered.
func askOnce(a asker) error {
	if _, err := a.write(); err != nil {
		return err
	}
	_, err := a.read()
	return err
}

// over returns a figure of a contender in all rounds that count, and its ratios
// to the reference's in the same rounds.
func (r *idleWebResult) over(contender string, figure func(idleSample) float64) series {
	var all series
	for _, round := range r.Rounds {
		s, ok := round[contender]
		if !ok || s.Error != "" {
			continue
		}
		ref := 0.0
		if to, ok := round[reference]; ok && to.Error == "" {
			ref = figure(to)
		}
		all.add(figure(s), ref)
	}
	return all
}

func idleAfter(s idleSample) float64 { return float64(s.After.RSS) }

func (r *idleWebResult) section() string {
	cells := [][]string{{fmt.Sprintf("%d idle HTTPS connections", r.Connections), "memory at rest", "with connections", "ratio to " + reference, "for each", "CPU"}}
	for _, name := range r.Contenders {
		after := r.over(name, idleAfter)
		each := r.over(name, func(s idleSample) float64 { return float64(s.After.RSS-s.Before.RSS) / float64(r.Connections) })
		cells = append(cells, []string{
			name,
			byteSize(median(r.over(name, func(s idleSample) float64 { return float64(s.Before.RSS) }).values)),
			byteSize(median(after.values)), times(median(after.ratios)), byteSize(median(each.values)),
			figure(median(r.over(name, func(s idleSample) float64 { return s.CPU }).values)) + " ms/s",
		})
	}
	return align(cells) + "\nEach has had one request over HTTP/1.1 before, and has another answered in the end.\n"
}

func (r *idleWebResult) bars() []bar {
	ratio := spreadOf(r.over(judged, idleAfter).ratios)
	if len(r.over(judged, idleAfter).ratios) == 0 {
		return nil
	}
	return []bar{atMost(fmt.Sprintf("%d idle HTTPS connections: memory", r.Connections), idleWebLimit, reference, ratio, true)}
}

func (r *idleWebResult) failures() []string {
	var all []string
	for i, round := range r.Rounds {
		for _, name := range r.Contenders {
			if s := round[name]; s.Error != "" {
				all = append(all, fmt.Sprintf("idle-https: %s in round %d: %s", name, i+1, s.Error))
			}
		}
	}
	return all
}
