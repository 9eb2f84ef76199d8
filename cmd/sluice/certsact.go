package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/control/keys"
)

// orderFlags say how a certificate is to be ordered.
type orderFlags struct{ provider, issuer string }

func (o *orderFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.provider, "provider", "", "DNS provider (default: as the key under domains/ says)")
	cmd.Flags().StringVar(&o.issuer, "issuer", "", "the one issuer to order from (default: as the key under domains/ says, else all in turn)")
}

func (f *certsFlags) newRenew() *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:   "renew NAME",
		Short: "Obtain another certificate for a name, even if the one there is not due",
		Long: `Renew orders a certificate from here, under the lock that nodes order under, and
within the limits that hold for the cluster. It is stored for all nodes, which
serve it at once, unless an imported one is in front of it, which it tells. Run it
where a node is, with its file and its environment.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			got, err := f.renew(cmd.Context(), a, strings.ToLower(args[0]), o)
			if err != nil {
				return err
			}
			c := a.describe(got)
			if c.Problem, err = a.hidden(cmd.Context(), got); err != nil {
				return err
			}
			if entry, err := a.entry(cmd.Context(), got.Name); err != nil {
				return err
			} else if entry == nil && c.Problem == "" {
				c.Problem = "has no key domains/" + got.Name + ": it is renewed only if a route needs it"
			}
			return f.write(cmd.OutOrStdout(), c, func(w io.Writer) {
				fmt.Fprintf(w, "%s: obtained from %s, until %s\n", got.Name, c.Issuer, date(c.Until))
				if c.Problem != "" {
					fmt.Fprintf(w, "! it %s\n", c.Problem)
				}
			})
		}),
	}
	o.add(cmd)
	return cmd
}

// renew obtains another certificate and waits until the nodes serve it.
func (f *certsFlags) renew(ctx context.Context, a *certsAccess, name string, o orderFlags) (*certs.Stored, error) {
	stored, err := certs.LoadAllStored(ctx, a.shared, name)
	if err != nil {
		return nil, err
	}
	imported := slices.ContainsFunc(stored, servedFirst)
	if imported && o.issuer == "" {
		return nil, fmt.Errorf("%s is imported: import another one; or take it away by `sluice certs rm`; or say by --issuer whom to order one from that is kept behind it", name)
	}
	d, err := a.domainOf(ctx, name, o.provider, o.issuer)
	if err != nil {
		return nil, err
	}
	hand, err := f.hand(a)
	if err != nil {
		return nil, err
	}
	defer hand.Close()
	got, err := hand.Renew(ctx, d)
	if err != nil || imported {
		return got, err // the imported one is served as long as it holds
	}
	return got, a.awaitServed(ctx, got)
}

// servedFirst reports whether nodes serve s whatever else there is for its name.
func servedFirst(s *certs.Stored) bool {
	return s.Issuer == certs.Imported && time.Now().Before(s.Certificate.Leaf.NotAfter)
}

// entry returns the key of a name under domains/, nil if there is none.
func (a *certsAccess) entry(ctx context.Context, name string) (*keys.Entry, error) {
	all, err := a.keys.List(ctx, "domains/"+name)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(e keys.Entry) bool { return e.Key == "domains/"+name })
	if at < 0 {
		return nil, nil
	}
	return &all[at], nil
}

const (
	// servedWithin is how long nodes have to say that they serve a certificate.
	servedWithin = 30 * time.Second
	// lookEvery is how often they are asked.
	lookEvery = 200 * time.Millisecond
)

// awaitServed waits until each live node says that it serves a certificate. Of a
// name without a key they say nothing.
func (a *certsAccess) awaitServed(ctx context.Context, s *certs.Stored) error {
	ctx, cancel := context.WithTimeout(ctx, servedWithin)
	defer cancel()
	until := date(s.Certificate.Leaf.NotAfter)
	var late []string
	for {
		entry, err := a.entry(ctx, s.Name)
		if err != nil && ctx.Err() == nil || entry == nil && err == nil {
			return err
		}
		if err == nil {
			late = late[:0]
			for _, node := range sortedKeys(entry.Verdicts) {
				if !strings.Contains(entry.Verdicts[node].Text, until) {
					late = append(late, node)
				}
			}
			if len(late) == 0 {
				return nil
			}
		}
		if err := wait(ctx, lookEvery); err != nil {
			return fmt.Errorf("the certificate of %s until %s is stored, and these nodes have not said within %v that they serve it: %s",
				s.Name, until, servedWithin, strings.Join(late, ", "))
		}
	}
}

func (f *certsFlags) newRevoke() *cobra.Command {
	var o orderFlags
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Replace the certificate of a name, and revoke the old one once nodes serve the new",
		Long: `Revoke first obtains another certificate with a key of its own, waits until the
live nodes serve it, and then has the authority that issued the old one revoke
that. If no other one can be obtained nothing is revoked. A revoke that was
interrupted after the old one was replaced is finished by running it again.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			code, known := certs.Reasons[reason]
			if !known {
				return usageError{fmt.Errorf("--reason: %q is not known; write one of %s", reason, strings.Join(sortedKeys(certs.Reasons), ", "))}
			}
			if !yes {
				return usageError{errors.New("a revocation cannot be taken back: say --yes if that is what you want")}
			}
			if !cmd.Flags().Changed("reason") {
				code = -1
			}
			return f.revoke(cmd, a, strings.ToLower(args[0]), o, code)
		}),
	}
	o.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "superseded", "why: "+strings.Join(sortedKeys(certs.Reasons), ", "))
	cmd.Flags().BoolVar(&yes, "yes", false, "revoke it")
	return cmd
}

// revoke replaces the certificate of a name and revokes it, or what an earlier
// revoke has replaced and left. A reason of less than 0 was not given.
func (f *certsFlags) revoke(cmd *cobra.Command, a *certsAccess, name string, o orderFlags, reason int) error {
	ctx := cmd.Context()
	stored, err := certs.LoadAllStored(ctx, a.shared, name)
	if err != nil {
		return err
	}
	newest := certs.Newest(slices.DeleteFunc(slices.Clone(stored), func(s *certs.Stored) bool { return s.Issuer == certs.Imported }))
	left, err := certs.Unfinished(ctx, a.shared, name)
	if err != nil {
		return err
	}
	if newest == nil && left == nil {
		return fmt.Errorf("there is no certificate for %s that was obtained; one that is imported is revoked where it came from", name)
	}
	hand, err := f.hand(a)
	if err != nil {
		return err
	}
	defer hand.Close()
	old, replaced := newest, false
	if left != nil {
		old = left.Certificate
		replaced = newest != nil && !newest.Certificate.Leaf.Equal(old.Certificate.Leaf)
	}
	switch {
	case reason < 0 && left != nil:
		reason = left.Reason
	case reason < 0:
		reason = certs.Reasons["superseded"]
	}
	got, hidden := newest, slices.ContainsFunc(stored, servedFirst)
	switch {
	case !replaced:
		if o.issuer == "" && hidden {
			o.issuer = a.describe(old).Issuer
		}
		if left, got, err = f.replace(ctx, a, old, left, o, reason); err != nil {
			return err
		}
	case !hidden:
		if err := a.awaitServed(ctx, newest); err != nil {
			return fmt.Errorf("nothing was revoked: %w", err)
		}
	}
	if err := hand.Revoke(ctx, old, reason); err != nil {
		return fmt.Errorf("%s has another certificate, until %s, and the old one is not revoked, which running this again tries: %w", name, date(got.Certificate.Leaf.NotAfter), err)
	}
	if err := left.Forget(ctx, a.shared); err != nil {
		return fmt.Errorf("the old certificate of %s is revoked; the note that it is to be was left behind: %w", name, err)
	}
	done := struct {
		Revoked  certificate `json:"revoked"`
		Replaced certificate `json:"replaced_by"`
	}{a.describe(old), a.describe(got)}
	return f.write(cmd.OutOrStdout(), done, func(w io.Writer) {
		fmt.Fprintf(w, "%s: revoked serial number %s, replaced by %s, until %s\n", name, done.Revoked.Serial, done.Replaced.Serial, date(done.Replaced.Until))
	})
}

// replace obtains another certificate in the place of old. That old is to be
// revoked is noted before, unless it is by an earlier try.
func (f *certsFlags) replace(ctx context.Context, a *certsAccess, old *certs.Stored, left *certs.Revocation, o orderFlags, reason int) (*certs.Revocation, *certs.Stored, error) {
	if left == nil || reason != left.Reason {
		var err error
		if left, err = certs.SetOut(ctx, a.shared, old, reason); err != nil {
			return nil, nil, fmt.Errorf("nothing was revoked: %w", err)
		}
	}
	got, err := f.renew(ctx, a, old.Name, o)
	if err == nil {
		return left, got, nil
	}
	err = fmt.Errorf("nothing was revoked: %w", err)
	if got == nil && ctx.Err() == nil { // and nothing was obtained: this is the end of it
		err = errors.Join(err, left.Forget(ctx, a.shared))
	}
	return nil, nil, err
}

func (f *certsFlags) newImport() *cobra.Command {
	var chainFile, keyFile, rootsFile string
	cmd := &cobra.Command{
		Use:   "import NAME --cert FILE --key FILE",
		Short: "Give the cluster a certificate for a name that was obtained elsewhere",
		Long: `Import checks that key and certificate belong together, that the certificate is for
NAME, in date, and leads to an authority that the system trusts, or to those of
--roots, and stores it for all nodes. Nobody renews it.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			chain, err := os.ReadFile(chainFile)
			if err != nil {
				return err
			}
			key, err := os.ReadFile(keyFile)
			if err != nil {
				return err
			}
			var roots *x509.CertPool
			if rootsFile != "" {
				blob, err := os.ReadFile(rootsFile)
				if err != nil {
					return err
				}
				if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(blob) {
					return fmt.Errorf("%s: no certificate in it: want PEM", rootsFile)
				}
			}
			s, err := certs.Import(strings.ToLower(args[0]), chain, key, roots)
			if err != nil {
				return fmt.Errorf("%s is not imported: %w", args[0], err)
			}
			if err := a.shared.PutStored(cmd.Context(), s); err != nil {
				return err
			}
			c := a.describe(s)
			return f.write(cmd.OutOrStdout(), c, func(w io.Writer) {
				fmt.Fprintf(w, "%s: imported, signed by %s, until %s\n", printable(c.Name), printable(c.Signed), date(c.Until))
				if c.Problem != "" {
					fmt.Fprintf(w, "! it %s\n", c.Problem)
				}
			})
		}),
	}
	cmd.Flags().StringVar(&chainFile, "cert", "", "PEM file of the certificate and those that lead to its authority")
	cmd.Flags().StringVar(&keyFile, "key", "", "PEM file of its private key")
	cmd.Flags().StringVar(&rootsFile, "roots", "", "PEM file of the authorities that it may lead to (default: the system's)")
	_ = cmd.MarkFlagRequired("cert")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (f *certsFlags) newExport() *cobra.Command {
	var out, issuer string
	var show, force bool
	cmd := &cobra.Command{
		Use:   "export NAME",
		Short: "Write the certificate of a name and its private key as PEM",
		Long: `Export writes the certificate, those that lead to its authority, and the private
key: to the file of --out, for its owner alone to read, or to standard output if
that is no terminal.`,
		Args: cobra.ExactArgs(1),
		RunE: f.with(func(cmd *cobra.Command, args []string, a *certsAccess) error {
			stdout, isFile := cmd.OutOrStdout().(*os.File)
			if out == "" && !show && isFile && isTerminal(stdout) {
				return usageError{errors.New("the private key would stand on the terminal: write to a file with --out, or say --show")}
			}
			s, err := a.pick(cmd.Context(), strings.ToLower(args[0]), issuer)
			if err != nil {
				return err
			}
			blob := slices.Concat(bytes.TrimSpace(s.Chain), []byte("\n"), bytes.TrimSpace(s.Key), []byte("\n"))
			if out == "" {
				_, err := cmd.OutOrStdout().Write(blob)
				return err
			}
			return writePrivate(out, blob, force)
		}),
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write; it must not exist yet")
	cmd.Flags().BoolVar(&force, "force", false, "take the place of a file that exists")
	cmd.Flags().BoolVar(&show, "show", false, "write to the terminal")
	cmd.Flags().StringVar(&issuer, "issuer", "", "of several certificates that of this issuer, or \"imported\" (default: the one issued last)")
	return cmd
}

// pick returns the certificate of a name, of an issuer if that is given.
func (a *certsAccess) pick(ctx context.Context, name, issuer string) (*certs.Stored, error) {
	stored, err := certs.LoadAllStored(ctx, a.shared, name)
	if err != nil {
		return nil, err
	}
	if issuer != "" {
		stored = slices.DeleteFunc(stored, func(s *certs.Stored) bool { return a.describe(s).Issuer != issuer })
	}
	if s := certs.Newest(stored); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("there is no such certificate for %s; `sluice certs ls` lists what there is", name)
}

// writePrivate writes a file that its owner alone may read, all of it or nothing.
func writePrivate(path string, blob []byte, force bool) error {
	if _, err := os.Lstat(path); err == nil && !force {
		return usageError{fmt.Errorf("%s exists; say --force to have it replaced", path)}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return saveWhole(filepath.Clean(path), func(w io.Writer) error { // makes it 0600
		_, err := w.Write(blob)
		return err
	})
}

func (f *certsFlags) newRehearse() *cobra.Command {
	var o orderFlags
	var staple bool
	cmd := &cobra.Command{
		Use:   "rehearse NAME",
		Short: "Order a certificate where it counts for nothing, and tell each step",
		Long: `Rehearse does everything that an order for NAME takes, at the staging directory of
the issuer and through the same DNS provider, and throws the certificate away.
Nothing is stored or served, and etcd is not needed. Run it where a node is, with
its file and its environment.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			c, err := f.node()
			if err != nil {
				return err
			}
			cfg, err := f.orders(c)
			if err != nil {
				return err
			}
			d := certs.Domain{Name: strings.ToLower(args[0]), Provider: o.provider, Issuer: o.issuer, MustStaple: staple}
			var said bool
			err = certs.Rehearse(cmd.Context(), cfg, d, func(s certs.Step) {
				said = said || s.Err != ""
				f.sayStep(cmd.OutOrStdout(), s)
			})
			if err != nil && said {
				return fmt.Errorf("an order for %s would fail", d.Name)
			}
			return err
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&staple, "must-staple", false, "ask for a certificate that must be stapled, as must_staple of the key under domains/ does")
	return cmd
}

// sayStep writes a step as it ends: as JSON, a line for each.
func (f *certsFlags) sayStep(w io.Writer, s certs.Step) {
	switch {
	case f.json():
		_ = encoder(w).Encode(s)
	case s.Err != "":
		fmt.Fprintf(w, "FAILED  %s: %s\n", printable(s.What), printable(s.Err))
	default:
		fmt.Fprintf(w, "ok      %s (%v)\n", printable(s.What), s.Took.Round(10*time.Millisecond))
	}
}
