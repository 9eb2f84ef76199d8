package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to end once it is told to.
const stopGrace = 5 * time.Second

// process is a child that runs in a process group of its own, so that the
// terminal's Ctrl-C reaches only us and stop reaches its children too.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // file with its output
	done chan struct{} // closed when it has ended; err is set by then
	err  error
}

// startProcess starts argv with its output in a file in dir. The caller stops
// it.
func startProcess(name, dir string, stdin io.Reader, stdout io.Writer, argv ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, log, log
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	// The signal is for when we are killed and cannot stop it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive returns nil while the process runs, and else how it ended with the last
// of its output.
func (p *process) alive() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	out, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s ended by itself (%v); its last output:\n%s", p.name, p.err, tail(out))
}

// said returns the last of the process's output as an error, nil if there is none.
func (p *process) said() error {
	out, _ := os.ReadFile(p.log)
	if out = tail(out); len(out) == 0 {
		return nil
	}
	return fmt.Errorf("the last output of %s:\n%s", p.name, out)
}

// stop ends the process and its children and waits for them.
func (p *process) stop() {
	select {
	case <-p.done:
		return // the group's id may be another's by now
	default:
	}
	syscall.Kill(-p.pid(), syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		syscall.Kill(-p.pid(), syscall.SIGKILL)
		<-p.done
	}
}

// command returns a short-lived child that ends with ctx, its children too.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = stopGrace
	return cmd
}

// tail returns the last lines of a program's output.
func tail(out []byte) []byte {
	const lines = 15
	out = bytes.TrimSpace(out)
	at := len(out)
	for range lines {
		if at = bytes.LastIndexByte(out[:at], '\n'); at < 0 {
			return out
		}
	}
	return out[at+1:]
}

// pollInterval is how often until asks again.
const pollInterval = 20 * time.Millisecond

// until calls ready until it returns nil, p ends, limit passes or ctx ends.
func until(ctx context.Context, p *process, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("time ran out"))
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // the end of ctx would hide what was wrong before
		}
		if dead := p.alive(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w", p.name, limit, last)
		case <-tick.C:
		}
	}
}
