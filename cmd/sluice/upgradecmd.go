package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

func newUpgradeCommand() *cobra.Command {
	var path string
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Have the running node replaced by the program that lies in its place now",
		Long: `Upgrade has the node that runs on this machine start the program that its own
file is now, hand its sockets over to it, and keep the flows that it has until
they end or upgrade.linger is over. No client notices. It waits until the new
process serves, and tells how many flows the old one keeps.

Where the new process does not get ready, because it ends, hangs, or cannot use
the node's file as it is now, the old one serves on, and upgrade exits with 1
and shows the last lines of what the new one said. SIGHUP to the node does the
same and tells its log. Run it as root or as the node's user; systemctl reload
sluice does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if path == "" {
				path = "sluice.yaml"
				if _, err := os.Stat(defaultFile); !errors.Is(err, fs.ErrNotExist) {
					path = defaultFile
				}
			}
			data, err := config.DataOf(path) // the rest is for the new process to judge
			if err != nil {
				return usageError{err}
			}
			r, err := askForUpgrade(cmd.Context(), data)
			if err != nil {
				return err
			}
			if r.Error != "" {
				return fmt.Errorf("nothing has changed, and the node serves on: %s%s", r.Error, indented(r.Said))
			}
			return out.write(cmd.OutOrStdout(), r, func(w io.Writer) {
				fmt.Fprintf(w, "process %d serves, version %s (was %s); the process before keeps %s\n",
					r.PID, r.Version, r.Was, counted(r.Remaining, "flow"))
			})
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the node's file (default: "+defaultFile+" if it is there, else sluice.yaml)")
	out.add(cmd)
	return cmd
}

// upgradeSocket is where in its data directory a node is asked for an upgrade.
const upgradeSocket = "upgrade.sock"

// shortPath opens a directory and returns a name for a file in it that is short
// enough for the address of a socket, which takes 107 bytes. The directory is to
// be closed afterwards.
func shortPath(dir, name string) (path string, d *os.File, err error) {
	d, err = os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name, d, nil
}

func askForUpgrade(ctx context.Context, data string) (r upgradeResult, err error) {
	path, d, err := shortPath(data, upgradeSocket)
	if err != nil {
		return r, fmt.Errorf("find the node's data directory: %w", err)
	}
	defer d.Close()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return r, fmt.Errorf("no node runs with the data directory %s", data)
	}
	if err != nil {
		return r, fmt.Errorf("ask the node with the data directory %s: %w", data, err)
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		return r, fmt.Errorf("the node has not said what became of the upgrade, see its log: %w", err)
	}
	return r, nil
}

// upgradeRequest is somebody who waits for an upgrade. done gets the result.
type upgradeRequest struct{ done chan upgradeResult }

// requestsPause is how long to wait before the socket for upgrades is tried again.
const requestsPause = time.Second

// takeRequests has whoever connects to the node's socket get an upgrade. A node
// that cannot be asked serves on.
func (n *node) takeRequests(ctx context.Context) error {
	said := ""
	for {
		err := n.takeRequestsAt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			n.log.Error("`sluice upgrade` does not reach this node, which serves on; SIGHUP does the same", "err", err)
		}
		select {
		case <-time.After(requestsPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// takeRequestsAt opens the socket, and answers until ctx ends or that fails.
func (n *node) takeRequestsAt(ctx context.Context) error {
	path, d, err := shortPath(n.cfg.Data, upgradeSocket)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(n.cfg.Data, upgradeSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of a process before: %w", err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("open the socket for upgrades: %w", err)
	}
	defer ln.Close()
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // by then it may be another process's
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		c, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("take requests for upgrades: %w", err)
		}
		n.answering.Go(func() { n.serveRequest(ctx, c) })
	}
}

// serveRequest passes a request on, and waits for what comes of it: longer than
// ctx, which ends in the course of an upgrade.
func (n *node) serveRequest(ctx context.Context, c net.Conn) {
	defer c.Close()
	r := upgradeRequest{make(chan upgradeResult, 1)}
	var result upgradeResult
	select {
	case n.requests <- r:
		result = <-r.done
	case <-ctx.Done():
		result = upgradeResult{Error: "the node stops, or is being upgraded already", Was: versionString()}
	}
	c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(result.encode()) // who has gone need not know
}
