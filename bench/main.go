// Command bench measures sluice beside Debian's nginx and haproxy, Caddy built
// from its Go module, and for HTTP/3 a current nginx, on the machine it runs on:
// CPU time per request, message, connection or Gbit, throughput and latency, as
// ratios to nginx. It owns the contenders' configurations, the origin they proxy
// to, the load and the report. It never touches a service that is already
// running, listens on loopback only (as root in a network namespace of its own,
// where all ports are free), and leaves nothing behind but the files in its
// results directory and, in the user's cache, those contenders that no package
// brings. `make bench` runs it; no package imports it.
//
// What is counted and why it can be compared:
//
//   - Every contender proxies to the same origin, which is a process of its own,
//     as is the load (h2load, or the bench itself), so that only the contender's CPU time is counted: all of
//     its process tree's, system time included, over a window that begins once
//     connections stand and connection caches are warm.
//   - Contenders take turns within each round, so that what disturbs the machine
//     disturbs them all; a ratio is taken within a round and the median of the
//     rounds is shown with the least and the greatest.
//   - What has no turns in a row has a study of its own (study.go), with processes
//     that begin and end with it: idle relays, many mappings, edits.
//   - Before anything is measured each contender has to give the right answers
//     over the right protocol, and one wrong answer in a run fails its row.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == originCommand {
		first, err := strconv.Atoi(os.Args[2])
		if err != nil {
			exit(fmt.Errorf("%s: %w", originCommand, err))
		}
		exit(originMain(first, os.Stdin, os.Stdout))
	}
	args := os.Args[1:]
	isolated := len(args) > 0 && args[0] == isolatedCommand
	if isolated {
		args = args[1:]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// From the first signal on, a second one kills at once.
	context.AfterFunc(ctx, stop)
	exit(run(ctx, args, isolated, os.Stdout))
}

func exit(err error) {
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; nothing was written")
	}
	if err != nil {
		if !errors.Is(err, errShown) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// run is the command: it measures what args ask for, writes the report and
// prints its table on stdout. The error is for the person who ran it. All
// processes it started have ended when it returns. isolated says that the
// network namespace is the bench's own already.
func run(ctx context.Context, args []string, isolated bool, stdout io.Writer) error {
	o, err := parseOptions(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := provide(ctx, o.tools(), o.install, stdout); err != nil {
		return err
	}
	if o.isolated = isolated; !isolated && o.isolate && os.Geteuid() == 0 {
		return isolate(ctx, args, stdout)
	}
	if isolated {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if o.pgo != "" {
		return gatherPGO(ctx, o, stdout)
	}
	res, err := measure(ctx, o, stdout)
	if err != nil {
		return err
	}
	if err := publish(res, o.results, stdout); err != nil {
		return err
	}
	return res.failure()
}
