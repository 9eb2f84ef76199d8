package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

func newTokenCommand() *cobra.Command {
	var f clusterFlags
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Say who may use the control API",
		Long: `Tokens let programs use the control API. etcd has their hashes alone: a token is
shown when it is made, and never again.`,
		Args: cobra.ArbitraryArgs,
		RunE: wantsCommand,
	}
	f.addBoth(cmd)
	cmd.AddCommand(newTokenCreate(&f), newTokenList(&f), newTokenRotate(&f), newTokenRemove(&f))
	return cmd
}

// showSecret writes a token, the only time that it is shown.
func showSecret(f *clusterFlags, cmd *cobra.Command, secret string) error {
	return f.write(cmd.OutOrStdout(), map[string]string{"token": secret}, func(w io.Writer) { fmt.Fprintln(w, secret) })
}

func newTokenCreate(f *clusterFlags) *cobra.Command {
	var t wire.NewToken
	var expires time.Duration
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a token, and show it",
		Example: "  sluice token create platform --role operator --envs prod- --expires 2160h",
		Args:    cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			if err := tokens.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			t.Name = args[0]
			if expires > 0 {
				at := time.Now().Add(expires).UTC().Truncate(time.Second)
				t.ExpiresAt = &at
			}
			secret, err := p.createToken(cmd.Context(), t)
			if err != nil {
				return err
			}
			if secret == "" {
				return nil
			}
			return showSecret(f, cmd, secret)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&t.Role, "role", string(tokens.Viewer), "viewer reads, operator changes keys and environments, admin rolls back and changes tokens")
	flags.StringVar(&t.Envs, "envs", "", "only for environments whose names begin with this")
	flags.StringSliceVar(&t.Pools, "pools", nil, "only for these pools")
	flags.DurationVar(&expires, "expires", 0, "how long it is good for; default: until it is removed")
	flags.StringVar(&t.Certificate, "certificate", "", "no secret, but the name in the client certificates (api.client_ca) that stand for the token")
	flags.StringVar(&t.Note, "note", "", "what it is for")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func newTokenList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List tokens",
		Args:  cobra.NoArgs,
		RunE: f.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			all, err := p.tokens(cmd.Context())
			if err != nil {
				return err
			}
			return f.outputFlag.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "TOKEN", "ROLE", "ENVS", "POOLS", "AGE", "EXPIRES", "NOTE")
				for _, t := range all {
					expires := "-"
					if !t.ExpiresAt.IsZero() {
						expires = t.ExpiresAt.Local().Format(time.DateTime)
					}
					writeRow(w, t.Name, t.Role, orDash(printable(t.Envs)), orDash(printable(strings.Join(t.Pools, ","))), ago(t.CreatedAt), expires, orDash(printable(t.Note)))
				}
			})
		}),
	}
}

func newTokenRotate(f *clusterFlags) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Make another token in the place of one, and show it",
		Args:  cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			secret, err := p.rotateToken(cmd.Context(), args[0], grace)
			if err != nil {
				return err
			}
			return showSecret(f, cmd, secret)
		}),
	}
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "how long the former one is good besides; 0: not at all")
	return cmd
}

func newTokenRemove(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a token: whoever has it is refused at once",
		Args:  cobra.ExactArgs(1),
		RunE: f.withPlane(func(cmd *cobra.Command, args []string, p plane) error {
			return p.removeToken(cmd.Context(), args[0])
		}),
	}
}
