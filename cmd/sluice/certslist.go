package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// hand returns what orders and revokes. The node's file has to say by whom.
func (f *certsFlags) hand(a *certsAccess) (*certs.Hand, error) {
	cfg, err := f.orders(a.cfg)
	if err != nil {
		return nil, err
	}
	cfg.Store = a.shared
	return certs.NewHand(cfg)
}

// orders returns what the node's file says of issuers and DNS providers.
func (f *certsFlags) orders(c *config.Config) (certs.Config, error) {
	if len(c.ACME.Issuers) == 0 {
		return certs.Config{}, usageError{errors.New("the issuers and DNS providers are in the node's file: give it as --config")}
	}
	providers, err := dns.NewAll(c.DNS, nil)
	if err != nil {
		return certs.Config{}, usageError{err}
	}
	return certs.Config{
		DataDir: c.Data, Issuers: issuers(c.ACME), FallBackAfter: c.ACME.FallBackAfter, Providers: providers,
		Resolvers: c.ACME.Resolvers, Propagation: dns01.Rule(c.ACME.Propagation),
		PropagationDelay: c.ACME.PropagationDelay, PropagationTimeout: c.ACME.PropagationTimeout,
	}, nil
}

// certificate is what commands tell of a certificate. There is no secret in it.
type certificate struct {
	Name    string    `json:"name"`
	Issuer  string    `json:"issuer"`
	Names   []string  `json:"names,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	From    time.Time `json:"from,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	Signed  string    `json:"signed_by,omitempty"`
	Key     string    `json:"key,omitempty"`
	Chain   []string  `json:"chain,omitempty"` // who signed what, from the leaf on
	RenewOn time.Time `json:"renew_from,omitzero"`
	RenewTo time.Time `json:"renew_to,omitzero"`
	Stored  time.Time `json:"stored,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

func (a *certsAccess) describe(s *certs.Stored) certificate {
	leaf := s.Certificate.Leaf
	c := certificate{
		Name: s.Name, Issuer: certs.IssuerName(issuers(a.cfg.ACME), s.Issuer), Names: leaf.DNSNames,
		Serial: fmt.Sprintf("%x", leaf.SerialNumber), From: leaf.NotBefore, Until: leaf.NotAfter,
		Signed: leaf.Issuer.CommonName, Key: keyAlgorithm(leaf), Chain: s.Signers(), Stored: s.Modified,
	}
	c.RenewOn, c.RenewTo = s.RenewalWindow()
	if left := time.Until(leaf.NotAfter); left <= 0 {
		c.Problem = "has expired"
	} else if s.Issuer == certs.Imported && left < loudBefore {
		c.Problem = "is imported and nobody renews it: import another, or let it be obtained"
	}
	return c
}

// loudBefore is how long before its end an imported certificate is a problem.
const loudBefore = 30 * 24 * time.Hour

func (f *certsFlags) newList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PART]",
		Short: "List the certificates of the cluster, those whose names hold PART",
		Args:  cobra.MaximumNArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			all, err := a.list(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			return f.list(cmd.OutOrStdout(), len(all), func(i int) any { return all[i] }, func(w io.Writer) {
				writeRow(w, "NAME", "ISSUER", "LEFT", "UNTIL", "PROBLEM")
				for _, c := range all {
					writeRow(w, printable(c.Name), printable(c.Issuer), left(c.Until), date(c.Until), orDash(printable(c.Problem)))
				}
			})
		}),
	}
}

// left writes how long is left until a time.
func left(until time.Time) string {
	if until.IsZero() {
		return "-"
	}
	return shortDuration(max(0, time.Until(until)))
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// readersAtOnce is how many certificates are read at a time.
const readersAtOnce = 16

// list reads all certificates whose names hold part, by name and issuer.
func (a *certsAccess) list(ctx context.Context, part string) ([]certificate, error) {
	files, err := a.shared.List(ctx, "certificates", true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	type place struct{ issuer, name string }
	var places []place
	for _, file := range files {
		if issuer, name, suffix, ok := certs.FileOf(file); ok && suffix == "crt" && strings.Contains(name, part) {
			places = append(places, place{issuer, name})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return strings.Compare(a.name+" "+a.issuer, b.name+" "+b.issuer)
	})
	all := make([]certificate, len(places))
	var readers sync.WaitGroup
	work := make(chan int)
	for range readersAtOnce {
		readers.Go(func() {
			for i := range work {
				p := places[i]
				s, err := certs.LoadStored(ctx, a.shared, p.issuer, p.name)
				if err != nil {
					all[i] = certificate{Name: p.name, Issuer: certs.IssuerName(issuers(a.cfg.ACME), p.issuer), Problem: err.Error()}
					continue
				}
				all[i] = a.describe(s)
			}
		})
	}
	for i := range places {
		work <- i
	}
	close(work)
	readers.Wait()
	return all, ctx.Err()
}
