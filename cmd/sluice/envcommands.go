package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/wire"
)

func newEnvCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Create, change and end environments: ports, mappings and routes at once",
		Long: `An environment has services, each of a pool (sluice pool): a public port and its
mapping, or a route. All of it is written in one transaction, or nothing is.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	f.addBoth(cmd)
	cmd.AddCommand(newEnvCreate(&f), newEnvGet(&f), newEnvList(&f), newEnvPatch(&f), newEnvRemove(&f), newEnvAccess(&f))
	return cmd
}

// waitFlag says how long to wait for nodes.
type waitFlag struct{ limit time.Duration }

func (w *waitFlag) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&w.limit, "wait", 10*time.Second, "how long to wait until every live node has applied it; 0: not at all")
}

func newEnvCreate(f *clusterFlags) *cobra.Command {
	var wait waitFlag
	var file, backend string
	var services []string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create [ID]",
		Short: "Create an environment",
		Long: `Create allocates a port of each service's pool and writes the mappings and routes,
all in one transaction. With --file it takes all of it from JSON, where a service
can ask for more (a certain port, several, a user name, secrets).

It says what nodes have to say of the environment's keys, and exits with 1 where one
refuses a key or cannot open a port, if a node has not answered in time, and if
none is live. The environment is there then all the same.`,
		Example: "  sluice env create 6hiflzwte2xnkroq --backend 10.0.3.17 --service ssh,jupyter",
		Args:    cobra.MaximumNArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			spec, err := envSpec(file, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				spec.ID = args[0]
			}
			if backend != "" {
				spec.Backend = backend
			}
			if expires > 0 {
				spec.ExpiresAt = time.Now().Add(expires).Truncate(time.Second)
			}
			for _, name := range services {
				if _, there := spec.Services[name]; !there {
					spec.Services[name] = envs.ServiceSpec{}
				}
			}
			e, err := c.createEnv(cmd.Context(), spec, wait.limit)
			if err != nil {
				return err
			}
			return showChanged(f, cmd, e)
		}),
	}
	wait.add(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", `JSON such as {"id": ..., "backend": ..., "services": {"ssh": {}}}; - is standard input`)
	cmd.Flags().StringVar(&backend, "backend", "", "the host where its services listen")
	cmd.Flags().StringSliceVar(&services, "service", nil, "a service that it is to have, by the name of its pool")
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it is to live, such as 24h")
	return cmd
}

// envSpec reads what an environment is to be from a file; "" is none.
func envSpec(file string, stdin io.Reader) (envs.Spec, error) {
	spec := envs.Spec{}
	if file != "" {
		arg := "@" + file
		if file == "-" {
			arg = "-"
		}
		text, err := readValue(arg, stdin)
		if err != nil {
			return spec, err
		}
		if spec, err = envs.ParseSpec([]byte(text)); err != nil {
			return spec, usageError{err}
		}
	}
	if spec.Services == nil {
		spec.Services = map[string]envs.ServiceSpec{}
	}
	return spec, nil
}

func showEnv(f *clusterFlags, cmd *cobra.Command, e *wire.Environment) error {
	return f.write(cmd.OutOrStdout(), e, func(w io.Writer) {
		writeRow(w, "SERVICE", "PORT", "PROTOCOL", "BACKEND", "ROUTE")
		for _, name := range slices.Sorted(maps.Keys(e.Services)) {
			s := e.Services[name]
			proto := s.Protocol
			if proto == "" && s.Port != 0 {
				proto = "tcp"
			}
			writeRow(w, printable(name), servicePorts(s), orDash(proto), orDash(s.Backend), orDash(s.Route))
		}
		for _, a := range e.Answers {
			fmt.Fprintf(w, "! %s\t%s\t%s\n", printable(a.Node), printable(a.Key), printable(a.Verdict.Text))
		}
	})
}

// showChanged writes what a change has made of an environment, and what nodes say of
// it. The error says what of it is dead: that it is written is of no use to whoever
// is told to connect there.
func showChanged(f *clusterFlags, cmd *cobra.Command, e *wire.Environment) error {
	if err := showEnv(f, cmd, e); err != nil {
		return err
	}
	dead := 0
	for _, a := range e.Answers {
		if a.Verdict.State == control.Refused || strings.HasPrefix(a.Verdict.Text, control.Degraded+": port_busy") {
			dead++
		}
	}
	if dead > 0 {
		return fmt.Errorf("environment %s is there, and nodes do not serve all of it, as %s says", e.ID, counted(dead, "verdict"))
	}
	return nil
}

func newEnvGet(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "get ID",
		Short: "Show an environment",
		Args:  cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			e, err := c.env(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return showEnv(f, cmd, e)
		}),
	}
}

func newEnvList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List environments, those whose names begin with PREFIX",
		Args:  cobra.MaximumNArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			prefix := ""
			if len(args) == 1 {
				prefix = args[0]
			}
			all, err := c.envs(cmd.Context(), prefix)
			if err != nil {
				return err
			}
			return f.outputFlag.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "ENV", "AGE", "EXPIRES", "BACKEND", "SERVICES")
				for _, e := range all {
					expires, services := "-", ""
					if !e.ExpiresAt.IsZero() {
						expires = e.ExpiresAt.Local().Format(time.DateTime)
					}
					for _, name := range slices.Sorted(maps.Keys(e.Services)) {
						services += name + ":" + servicePorts(e.Services[name]) + " "
					}
					writeRow(w, e.ID, ago(e.CreatedAt), expires, orDash(e.Backend), orDash(oneLine(services, 100)))
				}
			})
		}),
	}
}

func newEnvPatch(f *clusterFlags) *cobra.Command {
	var wait waitFlag
	var backend string
	var add, drop []string
	var expires time.Duration
	var never bool
	cmd := &cobra.Command{
		Use:   "patch ID",
		Short: "Move an environment's backend, add or drop services, put off its end",
		Args:  cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			p := envs.Patch{Services: map[string]*envs.ServiceSpec{}}
			if backend != "" {
				p.Backend = &backend
			}
			switch at := time.Now().Add(expires).Truncate(time.Second); {
			case never:
				p.ExpiresAt = &time.Time{}
			case expires > 0:
				p.ExpiresAt = &at
			}
			for _, name := range drop {
				p.Services[name] = nil
			}
			for _, name := range add {
				p.Services[name] = &envs.ServiceSpec{}
			}
			e, err := c.patchEnv(cmd.Context(), args[0], p, wait.limit)
			if err != nil {
				return err
			}
			return showChanged(f, cmd, e)
		}),
	}
	wait.add(cmd)
	cmd.Flags().StringVar(&backend, "backend", "", "the host where its services listen now")
	cmd.Flags().StringSliceVar(&add, "add", nil, "a service that it is to have besides")
	cmd.Flags().StringSliceVar(&drop, "drop", nil, "a service that it has no longer")
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it is to live from now on, such as 24h")
	cmd.Flags().BoolVar(&never, "never-expires", false, "it is to live until somebody ends it")
	cmd.MarkFlagsMutuallyExclusive("expires", "never-expires")
	return cmd
}

func newEnvRemove(f *clusterFlags) *cobra.Command {
	var wait waitFlag
	drain := time.Duration(-1)
	cmd := &cobra.Command{
		Use:   "rm ID...",
		Short: "End environments: mappings and routes go, ports rest in quarantine",
		Long: `Rm ends environments. Their sessions end as on_delete of their mappings says, or
go on for as long as --drain has it.`,
		Example: "  sluice env rm 6hiflzwte2xnkroq --drain 30s",
		Args:    cobra.MinimumNArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			if cmd.Flags().Changed("drain") && drain < 0 {
				return usageError{errors.New("--drain: must be 0 (sessions are cut) or more")}
			}
			var last int64
			for i, id := range args {
				limit := wait.limit
				if i+1 < len(args) {
					limit = 0 // the last one is waited for, and with it all
				}
				rev, err := c.removeEnv(cmd.Context(), id, drain, limit)
				if err != nil {
					return fmt.Errorf("%w (%d of %d were ended before)", err, i, len(args))
				}
				last = rev
			}
			return f.said(cmd, last, nil)
		}),
	}
	wait.add(cmd)
	cmd.Flags().DurationVar(&drain, "drain", drain, "how long sessions may go on, such as 30s; 0: not at all; default: as on_delete of the mappings says")
	return cmd
}

func newEnvAccess(f *clusterFlags) *cobra.Command {
	var secrets bool
	cmd := &cobra.Command{
		Use:   "access ID",
		Short: "Say how an environment's services are reached",
		Long: `Access says how each service is reached, as its pool has it. Texts that speak of a
secret are left out, unless --secrets is given: it takes the cluster key.`,
		Args: cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, c plane) error {
			all, err := c.access(cmd.Context(), args[0], secrets)
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), all, func(w io.Writer) {
				for _, name := range sortedKeys(all) {
					a := all[name]
					text := a.Command
					if text == "" {
						text = a.URL
					}
					if text == "" && a.Port != 0 {
						text = fmt.Sprintf("%s port %d", a.Host, a.Port)
					}
					writeRow(w, printable(name), orDash(text))
				}
			})
		}),
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "also what people need to log in, opened with the cluster key")
	return cmd
}
