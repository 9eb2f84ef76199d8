package main

import (
	"crypto/tls"
	"os"
	"sync"
	"time"
)

// pairFile is a certificate and its key in files, which change under a running
// node: they are looked at once a second at most, and read when they have changed.
// What cannot be read leaves the last good pair in use.
type pairFile struct {
	cert, key string

	mu     sync.Mutex
	looked time.Time
	state  [2]fileState // as of pair
	pair   *tls.Certificate
}

// fileState tells a file from what it was.
type fileState struct {
	size int64
	mod  time.Time
}

const pairLookEvery = time.Second

// load returns the pair as it is in the files now, or lately.
func (p *pairFile) load(now time.Time) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if since := now.Sub(p.looked); p.pair != nil && since >= 0 && since < pairLookEvery {
		return p.pair, nil
	}
	p.looked = now
	var state [2]fileState
	for i, path := range []string{p.cert, p.key} {
		if info, err := os.Stat(path); err == nil {
			state[i] = fileState{info.Size(), info.ModTime()}
		}
	}
	if p.pair != nil && state == p.state {
		return p.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		if p.pair != nil { // half of it is written, maybe
			return p.pair, nil
		}
		return nil, err
	}
	p.pair, p.state = &pair, state
	return p.pair, nil
}
