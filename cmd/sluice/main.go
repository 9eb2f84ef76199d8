// Command sluice is a programmable L4/L7 edge proxy: one binary that serves
// live port mappings and HTTPS routes from etcd.
//
// This package holds the commands and wires the parts together; it is the only
// place that knows every package.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/doctor"
)

// The exit codes of sluice.
const (
	exitOK    = 0
	exitError = 1 // it did not work; the reason is on standard error
	exitUsage = 2 // the command line or the node's file is wrong
	exitCut   = 3 // stopped as told, but flows had to be cut at the drain limit
	exitWarn  = 3 // of doctor: nothing worse than warnings
)

func main() {
	signals, hangups := make(chan os.Signal, 2), make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	signal.Notify(hangups, syscall.SIGUSR1)
	if isStderrTerminal() {
		signal.Notify(signals, syscall.SIGHUP) // the terminal is gone, and its user
	} else {
		signal.Notify(hangups, syscall.SIGHUP)
	}
	err := run(os.Args[1:], signals, hangups, os.Stdout, os.Stderr)
	if err != nil {
		lines := strings.Split(err.Error(), "\n")
		for i := range lines {
			lines[i] = printable(lines[i]) // it may quote what anybody wrote to etcd
		}
		fmt.Fprintln(os.Stderr, "sluice:", strings.Join(lines, "\n"))
	}
	os.Exit(exitCode(err))
}

// run executes one command line. The first of signals asks a running node to
// drain, the second to stop at once; of hangups SIGHUP asks it to let the program
// that lies in its place now take over, and SIGUSR1 to open its logs anew.
func run(args []string, signals, hangups <-chan os.Signal, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "A programmable L4/L7 edge proxy with live configuration in etcd",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionString(),
	}
	root.SetVersionTemplate(versionLine())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	node := newRunCommand(signals, hangups)
	root.AddCommand(node, newUpgradeCommand(), newCheckCommand(), newFlowsCommand(), newMappingsCommand(), newStateCommand(), newVersionCommand(),
		newApplyCommand(), newStatusCommand(), newWaitCommand(), newHistoryCommand(),
		newConfirmCommand(), newEtcdCommand(), newExplainCommand(), newDiffCommand(), newRollbackCommand(), newSnapshotCommand(), newCertsCommand(),
		newImportCommand(), newDoctorCommand())
	root.AddCommand(newKeyCommands()...)
	root.AddCommand(newNodeCommand(), newPortCommand(), newEnvCommand(), newTokenCommand(), newDNSCommand())
	root.AddCommand(newHealthCommand(), newInstallCommand(), newUninstallCommand(), newManualCommand())
	understood := false
	ctx, interrupt := context.WithCancelCause(context.Background())
	defer interrupt(nil)
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) {
		understood = true
		if cmd != node { // which does more at a signal than to end
			go obey(ctx, signals, interrupt)
		}
	}
	err := root.ExecuteContext(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if err != nil && (!understood || strings.HasPrefix(err.Error(), "required flag")) { // a command, an argument or a flag that there is not
		err = usageError{err}
	}
	return err
}

// obey has the first of signals end what a command does, which then tidies up; the
// second ends the program wherever it is, as does one that a node alone has a use
// for.
func obey(ctx context.Context, signals <-chan os.Signal, interrupt context.CancelCauseFunc) {
	signal.Reset(syscall.SIGUSR1)
	if !isStderrTerminal() {
		signal.Reset(syscall.SIGHUP)
	}
	select {
	case s := <-signals:
		signal.Reset()
		interrupt(fmt.Errorf("ended by a signal (%v)", s))
	case <-ctx.Done():
	}
}

// wantsCommand is what a command does that only holds others.
func wantsCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("there is no %q in %s; `%s --help` lists what there is", args[0], cmd.CommandPath(), cmd.CommandPath())}
	}
	return cmd.Help()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// usageError is an error of the person at the command line or of the node's
// file, rather than of the machine.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// cutError says that a node stopped as told but had to cut flows.
type cutError struct{ flows int }

func (e cutError) Error() string {
	return fmt.Sprintf("%d flows were still open at the end of drain_timeout and were cut", e.flows)
}

func exitCode(err error) int {
	var usage usageError
	var cut cutError
	var ill doctorError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &cut):
		return exitCut
	case errors.As(err, &ill) && ill.worst == doctor.Warning:
		return exitWarn
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitError
}
