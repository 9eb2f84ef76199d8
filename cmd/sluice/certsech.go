package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs/tlskeys"
	"github.com/remotegpu/sluice/router"
)

func (f *certsFlags) newECH() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ech",
		Short: "Make, show and remove the keys of encrypted hellos",
		Long: `With Encrypted Client Hello (ECH, RFC 9849) clients say in the clear which front
they come to, the public name, and which host they want only to the nodes. The
keys are shared by all nodes, sealed with the cluster key, and in force within a
second. Clients find the newest in the HTTPS records of hosts in DNS, which are
yours to write; of older ones the last three are kept, and clients with any other
are told the newest, under the public name's certificate.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	cmd.AddCommand(f.newECHGenerate(), f.newECHShow(), f.newECHRemove())
	return cmd
}

func (f *certsFlags) newECHGenerate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate PUBLIC-NAME",
		Short: "Make another key and show what DNS has to say of it",
		Long: `Generate makes another key, puts it before those there are, and prints what the
HTTPS records of hosts have to say of it. PUBLIC-NAME is what hellos say in the
clear; it needs a certificate, so put a key under domains/ for it or for a
wildcard that covers it.`,
		Example: "  sluice certs ech generate edge.x-gpu.com --config /etc/sluice/sluice.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			name, err := router.ParseDomainName(args[0])
			if err == nil && strings.HasPrefix(name, "*") {
				err = errors.New("it is a wildcard")
			}
			if err != nil {
				return usageError{fmt.Errorf("the public name has to be a name of one host such as edge.x-gpu.com: %w", err)}
			}
			e, err := tlskeys.GenerateECH(cmd.Context(), a.shared, name)
			if err != nil {
				return err
			}
			return f.showECH(cmd, e)
		}),
	}
}

func (f *certsFlags) newECHShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show what DNS has to say of the newest key",
		Args:  cobra.NoArgs,
		RunE: f.with(func(cmd *cobra.Command, _ []string, a *certsAccess) error {
			e, err := tlskeys.LoadECH(cmd.Context(), a.shared)
			if errors.Is(err, fs.ErrNotExist) {
				return errNoECH
			}
			if err != nil {
				return fmt.Errorf("read the keys of encrypted hellos: %w", err)
			}
			return f.showECH(cmd, e)
		}),
	}
}

var errNoECH = errors.New("there is no key of encrypted hellos; `sluice certs ech generate PUBLIC-NAME` makes one")

func (f *certsFlags) newECHRemove() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rm",
		Short: "Remove all keys, once no DNS record names them any more",
		Args:  cobra.NoArgs,
		RunE: f.with(func(cmd *cobra.Command, _ []string, a *certsAccess) error {
			if !yes {
				return usageError{errors.New("this removes every key, which nothing brings back: say --yes if that is what you want")}
			}
			err := tlskeys.RemoveECH(cmd.Context(), a.shared)
			if errors.Is(err, fs.ErrNotExist) {
				return errNoECH
			}
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), map[string]bool{"removed": true}, func(w io.Writer) {
				fmt.Fprintln(w, "removed; clients that still have one learn, under the certificate of the public name, to go without")
			})
		}),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove them")
	return cmd
}

// shownECH is what may be told of keys: no secret.
type shownECH struct {
	PublicName string      `json:"public_name"`
	Record     string      `json:"record"`
	Made       []time.Time `json:"made"` // newest first
}

func (f *certsFlags) showECH(cmd *cobra.Command, e tlskeys.ECH) error {
	shown := shownECH{PublicName: e.PublicName, Record: e.Record()}
	for _, k := range e.Keys {
		shown.Made = append(shown.Made, k.Made)
	}
	return f.write(cmd.OutOrStdout(), shown, func(w io.Writer) {
		fmt.Fprintf(w, "public name %s, %s, the newest of %s. In DNS, for each host:\n\n  HOST. 300 IN HTTPS 1 . alpn=\"h3,h2\" %s\n",
			e.PublicName, counted(len(e.Keys), "key"), e.Keys[0].Made.Format(time.RFC3339), e.Record())
	})
}
