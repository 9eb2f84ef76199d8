package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
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
	f.add(cmd)
	cmd.AddCommand(newTokenCreate(&f), newTokenList(&f), newTokenRotate(&f), newTokenRemove(&f))
	return cmd
}

// readToken returns a token of the cluster, or nil.
func readToken(ctx context.Context, store *keys.Store, name string) (*tokens.Token, error) {
	all, err := readTokens(ctx, store)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.Name == name {
			return t, nil
		}
	}
	return nil, nil
}

func readTokens(ctx context.Context, store *keys.Store) ([]*tokens.Token, error) {
	kvs, _, err := store.Client.ReadUnder(ctx, tokens.Folder, 0)
	if err != nil {
		return nil, err
	}
	var all []*tokens.Token
	for _, kv := range kvs {
		t, err := tokens.Parse(strings.TrimPrefix(kv.Key, tokens.Folder), kv.Value)
		if err != nil {
			return nil, fmt.Errorf("the key %s cannot be read: %w; mend or delete it", kv.Key, err)
		}
		t.Rev = kv.ModRev
		all = append(all, t)
	}
	return all, nil
}

// writeToken writes t in the place of what it was at its revision.
func writeToken(ctx context.Context, store *keys.Store, t *tokens.Token) error {
	value, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if _, err := tokens.Parse(t.Name, value); err != nil {
		return usageError{err}
	}
	_, err = store.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Value: value, Since: t.Rev}}, store.By)
	return err
}

// showSecret writes a token, the only time that it is shown.
func showSecret(f *clusterFlags, cmd *cobra.Command, secret string) error {
	return f.write(cmd.OutOrStdout(), map[string]string{"token": secret}, func(w io.Writer) { fmt.Fprintln(w, secret) })
}

func newTokenCreate(f *clusterFlags) *cobra.Command {
	var t tokens.Token
	var role string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a token, and show it",
		Example: "  sluice token create platform --role operator --envs prod- --expires 2160h",
		Args:    cobra.ExactArgs(1),
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			if err := tokens.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			there, err := readToken(cmd.Context(), store, args[0])
			if err != nil {
				return err
			}
			if there != nil {
				return fmt.Errorf("there is a token %s already; `sluice token rotate %[1]s` makes another in its place", args[0])
			}
			now := time.Now()
			secret, made := tokens.New(args[0], now)
			made.Role, made.Envs, made.Pools, made.Note, made.Certificate = tokens.Role(role), t.Envs, t.Pools, t.Note, t.Certificate
			if expires > 0 {
				made.ExpiresAt = now.Add(expires).UTC().Truncate(time.Second)
			}
			if made.Certificate != "" {
				made.Hash, secret = "", ""
			}
			if err := writeToken(cmd.Context(), store, made); err != nil {
				return err
			}
			if secret == "" {
				return nil
			}
			return showSecret(f, cmd, secret)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&role, "role", string(tokens.Viewer), "viewer reads, operator changes keys and environments, admin rolls back and changes tokens")
	flags.StringVar(&t.Envs, "envs", "", "only for environments whose names begin with this")
	flags.StringSliceVar(&t.Pools, "pools", nil, "only for these pools")
	flags.DurationVar(&expires, "expires", 0, "how long it is good for; default: until it is removed")
	flags.StringVar(&t.Certificate, "certificate", "", "no secret, but the name in the client certificates (api.client_ca) that stand for the token")
	flags.StringVar(&t.Note, "note", "", "what it is for")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// shownToken is a token as lists have it: without its hashes.
type shownToken struct {
	Name        string    `json:"name"`
	Role        string    `json:"role"`
	Envs        string    `json:"envs,omitempty"`
	Pools       []string  `json:"pools,omitempty"`
	Certificate string    `json:"certificate,omitempty"`
	CreatedAt   time.Time `json:"created_at,omitzero"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"`
	FormerUntil time.Time `json:"former_until,omitzero"`
	Note        string    `json:"note,omitempty"`
}

func newTokenList(f *clusterFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List tokens",
		Args:  cobra.NoArgs,
		RunE: f.withStore(func(cmd *cobra.Command, _ []string, store *keys.Store) error {
			all, err := readTokens(cmd.Context(), store)
			if err != nil {
				return err
			}
			show := func(i int) any {
				t := all[i]
				return shownToken{t.Name, string(t.Role), t.Envs, t.Pools, t.Certificate, t.CreatedAt, t.ExpiresAt, t.FormerUntil, t.Note}
			}
			return f.outputFlag.list(cmd.OutOrStdout(), len(all), show, func(w io.Writer) {
				writeRow(w, "TOKEN", "ROLE", "ENVS", "POOLS", "AGE", "EXPIRES", "NOTE")
				for _, t := range all {
					expires := "-"
					if !t.ExpiresAt.IsZero() {
						expires = t.ExpiresAt.Local().Format(time.DateTime)
					}
					writeRow(w, t.Name, string(t.Role), orDash(printable(t.Envs)), orDash(printable(strings.Join(t.Pools, ","))), ago(t.CreatedAt), expires, orDash(printable(t.Note)))
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
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			t, err := readToken(cmd.Context(), store, args[0])
			if err != nil {
				return err
			}
			if t == nil || t.Certificate != "" {
				return fmt.Errorf("there is no token %s that could be made anew", args[0])
			}
			secret, renewed := t.Renew(time.Now(), grace)
			if err := writeToken(cmd.Context(), store, renewed); err != nil {
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
		RunE: f.withStore(func(cmd *cobra.Command, args []string, store *keys.Store) error {
			kvs, _, err := store.Client.ReadUnder(cmd.Context(), tokens.Folder+args[0], 0)
			if err != nil {
				return err
			}
			for _, kv := range kvs {
				if kv.Key == tokens.Folder+args[0] {
					_, err := store.Client.Commit(cmd.Context(), []etcd.Edit{{Key: kv.Key, Delete: true, Since: kv.ModRev}}, store.By)
					return err
				}
			}
			return fmt.Errorf("there is no token %s", args[0])
		}),
	}
}
