package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

func newPortCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "port",
		Short: "Allocate ports of pools to environments, and say who holds which",
		Long: `These commands allocate the ports of pools (sluice pool), in one transaction
each, so that no port is ever held twice. They write no mappings: sluice env does
all of it at once.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	f.addBoth(cmd)
	cmd.AddCommand(newPortAlloc(&f), newPortRelease(&f), newPortList(&f), newPortPools(&f), newPortReserve(&f), newPortUnreserve(&f), newPortAudit(&f))
	return cmd
}

func newPortAlloc(f *clusterFlags) *cobra.Command {
	var r portpool.Request
	cmd := &cobra.Command{
		Use:   "alloc ENV SERVICE",
		Short: "Give an environment a port of a service's pool",
		Long: `Alloc gives the environment ENV a port of the pool SERVICE: the one that it had
before, if that is free, else one as the pool says. Asked again, it answers with
what it gave.`,
		Example: "  sluice port alloc 6hiflzwte2xnkroq ssh",
		Args:    cobra.ExactArgs(2),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			r.Env, r.Service = args[0], args[1]
			s, err := c.alloc(cmd.Context(), r)
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), s, func(w io.Writer) { fmt.Fprintln(w, servicePorts(s)) })
		}),
	}
	cmd.Flags().IntVar(&r.Port, "port", 0, "that very port, which may be a reserved one of the pool")
	cmd.Flags().IntVar(&r.Span, "span", 0, fmt.Sprintf("so many ports in a row, up to %d", portpool.MaxSpan))
	return cmd
}

// servicePorts writes the ports of a service, "-" where it has none.
func servicePorts(s *wire.Service) string {
	if s.Port == 0 {
		return "-"
	}
	return router.PortRange{First: s.Port, Last: s.Port + max(s.Span, 1) - 1}.String()
}

func newPortRelease(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "release ENV SERVICE",
		Short: "Take a service's ports away from an environment; they rest in quarantine",
		Args:  cobra.ExactArgs(2),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			rev, err := c.release(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			released := struct {
				Released bool  `json:"released"`
				Revision int64 `json:"revision,omitempty"`
			}{rev != 0, rev}
			return f.write(cmd.OutOrStdout(), released, func(w io.Writer) {
				if rev == 0 {
					fmt.Fprintf(w, "environment %s has no %s\n", args[0], args[1])
				}
			})
		}),
	}
}

func newPortList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [SERVICE]",
		Short: "List ports that are held, reserved or were released, of one pool or all",
		Args:  cobra.MaximumNArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			service := ""
			if len(args) == 1 {
				service = args[0]
			}
			all, err := c.ports(cmd.Context(), service)
			if err != nil {
				return err
			}
			return f.outputFlag.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "PORT", "STATE", "SERVICE", "ENV", "SINCE", "UNTIL", "RESERVED")
				for _, h := range all {
					until := "-"
					if !h.Until.IsZero() {
						until = h.Until.Local().Format(time.DateTime)
					}
					writeRow(w, fmt.Sprintf("%s/%d", h.Proto, h.Port), string(h.State), orDash(printable(h.Service)), orDash(printable(h.Env)),
						ago(h.Since), until, orDash(printable(h.Reserved)))
				}
			})
		}),
	}
}

func newPortPools(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "pools",
		Short: "Count the ports of each pool by their state",
		Args:  cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, c plane) error {
			all, err := c.usage(cmd.Context())
			if err != nil {
				return err
			}
			stats := map[string]portpool.Stats{}
			for _, u := range all {
				stats[u.Service] = u.Stats
			}
			return f.write(cmd.OutOrStdout(), stats, func(w io.Writer) {
				writeRow(w, "SERVICE", "SIZE", "HELD", "QUARANTINED", "RESERVED", "MAPPED", "AVAILABLE")
				for _, service := range sortedKeys(stats) {
					s := stats[service]
					writeRow(w, printable(service), fmt.Sprint(s.Size), fmt.Sprint(s.Held), fmt.Sprint(s.Quarantined), fmt.Sprint(s.Reserved), fmt.Sprint(s.Mapped), fmt.Sprint(s.Available))
				}
			})
		}),
	}
}

// protoFlag says which protocols a command about ports is for.
type protoFlag struct{ name string }

func (p *protoFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.name, "protocol", "tcp", "tcp, udp, or tcp+udp")
	_ = cmd.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"tcp", "udp", "tcp+udp"}, cobra.ShellCompDirectiveNoFileComp))
}

// check refuses what names no protocols, or no ports.
func (p *protoFlag) check(ports string) error {
	if _, _, err := v1.ReservedPorts(p.name, ports); err != nil {
		return usageError{err}
	}
	return nil
}

func newPortReserve(f *clusterFlags) *cobra.Command {
	var proto protoFlag
	var what string
	cmd := &cobra.Command{
		Use:     "reserve PORT[-PORT]",
		Short:   "Set ports aside, so that no environment gets them",
		Example: `  sluice port reserve 20022 --for "the office VPN"`,
		Args:    cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			if err := proto.check(args[0]); err != nil {
				return err
			}
			rev, err := c.reserve(cmd.Context(), wire.Reservation{Protocol: proto.name, Ports: args[0], For: what})
			return f.said(cmd, rev, err)
		}),
	}
	proto.add(cmd)
	cmd.Flags().StringVar(&what, "for", "", "what for; whoever wants the port reads it")
	_ = cmd.MarkFlagRequired("for")
	return cmd
}

// said writes the revision of a change.
func (f *clusterFlags) said(cmd *cobra.Command, rev int64, err error) error {
	if err != nil {
		return err
	}
	return f.write(cmd.OutOrStdout(), map[string]int64{"revision": rev}, func(w io.Writer) {
		if rev == 0 {
			fmt.Fprintln(w, "nothing to change")
		}
	})
}

func newPortUnreserve(f *clusterFlags) *cobra.Command {
	var proto protoFlag
	cmd := &cobra.Command{
		Use:   "unreserve PORT[-PORT]",
		Short: "Make ports available that were set aside, or that rest in quarantine",
		Args:  cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			if err := proto.check(args[0]); err != nil {
				return err
			}
			rev, err := c.unreserve(cmd.Context(), proto.name, args[0])
			return f.said(cmd, rev, err)
		}),
	}
	proto.add(cmd)
	return cmd
}

func newPortAudit(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "audit",
		Short: "Compare allocations, mappings and environments, and say what does not fit",
		Long: `Audit looks for ports that are held without a mapping (unmapped) or with somebody
else's (foreign), by an environment that is gone or knows nothing of it
(orphaned), or outside of their pool (stranded); for mappings on ports of a pool
that nobody holds (unheld); for ports that environments believe to have (unowned);
for names at which two environments answer (shared); and for pools that are not in
force (refused) and values that cannot be read (unreadable). It exits with 1 if it
finds any. Ports that are orphaned are given back by sluice port release.`,
		Args: cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, c plane) error {
			found, err := c.audit(cmd.Context())
			if err != nil {
				return err
			}
			err = f.outputFlag.list(cmd.OutOrStdout(), len(found), func(i int) any { return found[i] }, func(w io.Writer) {
				for _, x := range found {
					fmt.Fprintf(w, "%s\t%s\t%s\n", x.Kind, printable(x.Key), printable(x.Text))
				}
			})
			return cmp.Or(err, foundError(len(found)))
		}),
	}
}

// foundError is the error of an audit that found something, nil for nothing.
func foundError(n int) error {
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s", counted(n, "finding"))
}
