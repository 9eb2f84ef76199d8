package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// shakeResult says where sluice's CPU time of a full TLS handshake goes.
type shakeResult struct {
	Seconds int              `json:"seconds"` // that were profiled
	Shares  map[string]share `json:"shares"`  // by function
}

const (
	shakeSeconds = 3
	// shakeOwnLimit is the share that sluice and its certificate library may have
	// of a full handshake beside crypto/tls, the runtime and the kernel.
	shakeOwnLimit = 0.05
)

// shakeParts are what a handshake consists of, by the functions that do it.
func shakeParts() [][2]string {
	return [][2]string{
		{"key exchange, X25519", "crypto/tls.(*ecdhKeyExchange).serverSharedSecret"},
		{"signature, ECDSA P-256", "crypto.SignMessage"},
		{"finding the certificate", "github.com/remotegpu/sluice/proxy/http.tlsConfig.func1"},
		{"session ticket", "crypto/tls.(*serverHandshakeStateTLS13).sendSessionTickets"},
		{"system calls", "internal/runtime/syscall/linux.Syscall6"},
		{"allocations", "runtime.mallocgc"},
		{"garbage collection", "runtime.gcBgMarkWorker"},
		{"all of crypto/tls's handshake", "crypto/tls.(*Conn).handshakeContext"},
	}
}

// runShake profiles a sluice of its own under full handshakes.
func runShake(ctx context.Context, b *bench) error {
	s, err := b.site("shake")
	if err != nil {
		return err
	}
	e, err := sluice().start(ctx, s)
	if err != nil {
		return err
	}
	defer e.proc.stop()
	if err := verify(ctx, e); err != nil {
		return err
	}
	rows := handshakeRows()
	full := slices.IndexFunc(rows, func(r row) bool { return r.name == "tls-full" })
	raw, err := profile(ctx, rows[full], e, shakeSeconds)
	if err != nil {
		return err
	}
	top, err := pprofTool(ctx, s.dir, [][]byte{raw}, "-top", "-cum", "-nodecount=0", "-nodefraction=0", "-edgefraction=0")
	if err != nil {
		return err
	}
	r := &shakeResult{Seconds: shakeSeconds}
	if r.Shares, err = parseTop(top); err != nil {
		return err
	}
	b.result.Shake = r
	return nil
}

// own is the share of sluice's functions and certmagic's, without what they call.
func (r *shakeResult) own() float64 {
	sum := 0.0
	for name, s := range r.Shares {
		if strings.HasPrefix(name, "github.com/remotegpu/sluice/") || strings.HasPrefix(name, "github.com/caddyserver/certmagic.") {
			sum += s.Self
		}
	}
	return sum
}

func (r *shakeResult) section() string {
	cells := [][]string{{"CPU time of a full TLS 1.3 handshake", "function", "share"}}
	for _, part := range shakeParts() {
		cells = append(cells, []string{part[0], part[1], percent(r.Shares[part[1]].Calls)})
	}
	cells = append(cells, []string{"sluice's own code", "functions of sluice and certmagic themselves", percent(r.own())})
	return align(cells) + fmt.Sprintf("\nOf a CPU profile of %d s of full handshakes; shares include what a function calls, so they overlap.\n", r.Seconds)
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func (r *shakeResult) bars() []bar {
	own := r.own()
	return []bar{{"full TLS handshake: share of sluice's own code", "≤ " + percent(shakeOwnLimit), percent(own), own <= shakeOwnLimit}}
}

func (r *shakeResult) failures() []string { return nil }
