package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api"
)

// healthLimit is how long a node may take to say how it is: one that takes
// longer serves nobody well either.
const healthLimit = 3 * time.Second

// draining is the detail of /readyz while a node drains.
const draining = "draining"

func newHealthCommand() *cobra.Command {
	var admin adminClient
	var strict bool
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the node on this machine whether it serves, for health checks of containers",
		Long: `Health asks a node's admin address for /readyz. It exits with 0 where the node has
a configuration in force, from etcd or, while etcd does not answer, from disk,
and is not draining; else with 1. With --ready etcd has to have been read: so
it is for roll-outs, where the next node has its turn after this one.`,
		Example: `  sluice health
  until sluice health --ready; do sleep 1; done`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), healthLimit)
			defer cancel()
			r, err := admin.readiness(ctx)
			if err != nil {
				return err
			}
			if !r.Ready && (strict || r.Source != "disk" || r.Detail == draining) {
				return fmt.Errorf("the node at %s does not serve: its configuration is from %s: %s", admin.addr, r.Source, r.Detail)
			}
			return out.write(cmd.OutOrStdout(), r, func(w io.Writer) {
				fmt.Fprintf(w, "serving what it has from %s, revision %d\n", r.Source, r.Rev)
			})
		},
	}
	admin.addAdminFlag(cmd)
	out.add(cmd)
	cmd.Flags().BoolVar(&strict, "ready", false, "etcd has to have been read since the start")
	return cmd
}

// readiness asks for /readyz, which answers 503 where a node is not ready, and
// says why in the same form.
func (a *adminClient) readiness(ctx context.Context) (r api.Readiness, err error) {
	u := url.URL{Scheme: "http", Host: a.addr, Path: "/readyz"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return r, usageError{fmt.Errorf("the admin address %q is none; write host:port, such as 127.0.0.1:9180", a.addr)}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return r, fmt.Errorf("ask the node at %s: %w", a.addr, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&r); err != nil {
		return r, fmt.Errorf("read what the node at %s says with status %s: %w", a.addr, resp.Status, err)
	}
	return r, nil
}
