package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs"
)

func (f *certsFlags) newRemove() *cobra.Command {
	var issuer string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Take away an imported certificate, or that of an issuer",
		Long: `Rm deletes a certificate of NAME for all nodes: the imported one, or that of
--issuer. Nodes serve another one that covers the name from then on; where there is
none they go on with it until there is one, or it ends. It cannot be taken back:
export it before, if it may be wanted again. A name that is wanted has another one
obtained. It does not revoke.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			s, err := a.pick(cmd.Context(), strings.ToLower(args[0]), issuer)
			if err != nil {
				return err
			}
			if !yes {
				return usageError{fmt.Errorf("the certificate of %s from %s, until %s, and its key would be gone: `sluice certs export` keeps a copy; say --yes if that is what you want",
					s.Name, issuer, date(s.Certificate.Leaf.NotAfter))}
			}
			if err := certs.Remove(cmd.Context(), a.shared, s); err != nil {
				return err
			}
			c := a.describe(s)
			c.Problem = ""
			return f.write(cmd.OutOrStdout(), c, func(w io.Writer) {
				fmt.Fprintf(w, "%s: took away the certificate from %s, serial number %s\n", printable(c.Name), printable(c.Issuer), c.Serial)
			})
		}),
	}
	cmd.Flags().StringVar(&issuer, "issuer", certs.Imported, "the issuer whose certificate to take away, or \"imported\"")
	cmd.Flags().BoolVar(&yes, "yes", false, "take it away")
	return cmd
}

// hidden says what stands in front of a certificate that was obtained, "" where
// nothing does.
func (a *certsAccess) hidden(ctx context.Context, got *certs.Stored) (string, error) {
	stored, err := certs.LoadAllStored(ctx, a.shared, got.Name)
	if err != nil {
		return "", errors.Join(fmt.Errorf("%s was obtained", got.Name), err)
	}
	at := slices.IndexFunc(stored, servedFirst)
	if at < 0 {
		return "", nil
	}
	return fmt.Sprintf("is not served: an imported one is, until %s; `sluice certs rm %s` takes that away",
		date(stored[at].Certificate.Leaf.NotAfter), got.Name), nil
}
