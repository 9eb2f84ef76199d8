package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/router"
)

// shown is everything there is to tell of a name.
type shown struct {
	Name         string                     `json:"name"`
	Key          string                     `json:"domain,omitempty"` // value under domains/; empty: there is none
	Verdicts     map[string]control.Verdict `json:"verdicts,omitempty"`
	Certificates []certificate              `json:"certificates"`
	Revoking     *certificate               `json:"to_be_revoked,omitempty"` // what an interrupted revoke has left
	Attempt      json.RawMessage            `json:"last_attempt,omitempty"`
	Issuers      []certs.LimitStatus        `json:"issuers,omitempty"`
}

func (f *certsFlags) newShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show what is stored for a name, what nodes say of it, and what stands in the way of an order",
		Args:  cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			s, err := f.show(cmd.Context(), a, strings.ToLower(args[0]))
			if err != nil {
				return err
			}
			return f.write(cmd.OutOrStdout(), s, s.text)
		}),
	}
}

func (f *certsFlags) show(ctx context.Context, a *certsAccess, name string) (*shown, error) {
	s := &shown{Name: name, Certificates: []certificate{}}
	entry, err := a.entry(ctx, name)
	if err != nil {
		return nil, err
	}
	if entry != nil {
		s.Key, s.Verdicts = entry.Value, entry.Verdicts
	}
	stored, err := certs.LoadAllStored(ctx, a.shared, name)
	if err != nil {
		return nil, err
	}
	for _, c := range stored {
		s.Certificates = append(s.Certificates, a.describe(c))
	}
	if entry == nil && len(stored) == 0 {
		return nil, fmt.Errorf("there is neither a certificate for %s nor a key domains/%s; `sluice certs ls` lists what there is", name, name)
	}
	left, err := certs.Unfinished(ctx, a.shared, name)
	if err != nil {
		return nil, err
	}
	if left != nil {
		c := a.describe(left.Certificate)
		s.Revoking = &c
	}
	attempt, err := a.shared.Get(ctx, certs.AttemptsKey(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if json.Valid(attempt.Data) {
		s.Attempt = attempt.Data
	}
	if len(a.cfg.ACME.Issuers) > 0 {
		hand, err := f.hand(a)
		if err != nil {
			return nil, err
		}
		defer hand.Close()
		s.Issuers = hand.Limits(ctx, name)
	}
	return s, nil
}

func (s *shown) text(w io.Writer) {
	for _, c := range s.Certificates {
		fmt.Fprintf(w, "%s\tby %s, until %s (%s left)\n", printable(c.Name), printable(c.Issuer), date(c.Until), left(c.Until))
		fmt.Fprintf(w, "  names\t%s\n", printable(strings.Join(c.Names, ", ")))
		fmt.Fprintf(w, "  serial number\t%s\n", c.Serial)
		fmt.Fprintf(w, "  key\t%s\n", c.Key)
		fmt.Fprintf(w, "  signed by\t%s\n", printable(strings.Join(c.Chain, ", by ")))
		if !c.RenewOn.IsZero() {
			fmt.Fprintf(w, "  to be renewed\tbetween %s and %s, says its authority\n", date(c.RenewOn), date(c.RenewTo))
		}
		if c.Problem != "" {
			fmt.Fprintf(w, "  !\t%s\n", printable(c.Problem))
		}
	}
	if s.Revoking != nil {
		fmt.Fprintf(w, "!\tserial number %s was to be revoked, which is not done: `sluice certs revoke %s --yes` does it\n", s.Revoking.Serial, printable(s.Name))
	}
	for _, node := range sortedKeys(s.Verdicts) {
		fmt.Fprintf(w, "%s\t%s\n", node, printable(s.Verdicts[node].Text))
	}
	if s.Key == "" {
		fmt.Fprintf(w, "no key\tdomains/%s: it is renewed only if a route needs it\n", printable(s.Name))
	}
	for _, i := range s.Issuers {
		if !i.Until.IsZero() {
			fmt.Fprintf(w, "issuer %s\ttakes no order for it before %s: %s\n", i.Issuer, date(i.Until), printable(i.Why))
		}
		if i.Failing != "" {
			fmt.Fprintf(w, "issuer %s\tfails: %s\n", i.Issuer, printable(i.Failing))
		}
	}
}

// keyAlgorithm says what key a certificate is for.
func keyAlgorithm(leaf *x509.Certificate) string {
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return leaf.PublicKeyAlgorithm.String()
}

// domainOf returns what the key of a name says of how to obtain it, unless flags
// do.
func (a *certsAccess) domainOf(ctx context.Context, name, provider, issuer string) (certs.Domain, error) {
	d := certs.Domain{Name: name, Provider: provider, Issuer: issuer}
	entry, err := a.entry(ctx, name)
	if err != nil || entry == nil {
		return d, err
	}
	asked, err := router.ParseDomain(name, []byte(entry.Value))
	if err != nil {
		return d, nil // nodes refuse it, and go by what was there before
	}
	if d.Provider == "" {
		d.Provider = asked.Provider
	}
	if d.Issuer == "" {
		d.Issuer = asked.Issuer
	}
	d.MustStaple = asked.MustStaple
	return d, nil
}
