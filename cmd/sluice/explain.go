package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/router"
)

func newExplainCommand() *cobra.Command {
	var node adminClient
	var out outputFlag
	var method, from string
	var headers []string
	cmd := &cobra.Command{
		Use:   "explain URL|[PROTO/]PORT",
		Short: "Show what a node would do with a request or a connection, and why",
		Long: `Explain asks a node what it would do with a request for URL, or with a
connection to one of its mapped ports: which key decides, what its host pattern
captures, where the request goes, by which path, and how the targets are, what
is asked first (basic_auth, forward_auth), which certificate a client is shown
and which one it has to show, and which other routes match by host and why they were not taken. Nothing is
sent to any backend, no password is verified, and nothing counts against limits.`,
		Example: `  sluice explain https://env-abc.remotegpu.com/jupyter/tree
  sluice explain https://api.example.com/v1 -X POST -H 'X-Canary: 1' --from 203.0.113.7
  sluice explain tcp/20022`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			q, err := questionOf(args[0], method, from, headers)
			if err != nil {
				return usageError{err}
			}
			done, err := node.open(cmd)
			if err != nil {
				return err
			}
			defer done()
			e, err := node.explain(cmd.Context(), q)
			if err != nil {
				return err
			}
			return out.write(cmd.OutOrStdout(), e, func(w io.Writer) { writeExplanation(w, &e) })
		},
	}
	node.addBothFlags(cmd)
	out.add(cmd)
	cmd.Flags().StringVarP(&method, "method", "X", "GET", "of the request")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, as Name: value")
	cmd.Flags().StringVar(&from, "from", "", "the client's address, for allow and deny")
	return cmd
}

func questionOf(what, method, from string, headers []string) (q api.Question, err error) {
	query := url.Values{"method": {method}, "header": headers}
	if from != "" {
		if _, err := netip.ParseAddr(from); err != nil {
			return q, fmt.Errorf("--from: %q is not an IP address", from)
		}
		query.Set("client", from)
	}
	switch {
	case strings.Contains(what, "://"):
		query.Set("url", what)
	case strings.HasPrefix(what, "tcp/") || strings.HasPrefix(what, "udp/"):
		query.Set("port", what)
	default: // a port, or host:port as people have it at hand
		query.Set("port", "tcp/"+what[strings.LastIndexByte(what, ':')+1:])
	}
	return api.ParseQuestion(query)
}

func writeExplanation(w io.Writer, e *api.Explanation) {
	fmt.Fprintln(w, printable(e.Outcome))
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %s\t%s\n", name, printable(text))
		}
	}
	row("note", e.Note)
	row("refused", e.Refused)
	row("key", e.Key)
	row("verdict", e.Verdict)
	row("host", e.Host)
	var captures []string
	for _, name := range slices.Sorted(maps.Keys(e.Captures)) {
		captures = append(captures, name+"="+e.Captures[name])
	}
	row("captures", strings.Join(captures, " "))
	row("sent", e.Sent)
	if a := e.ClientAuth; a != nil {
		text := "needs a client certificate of CA " + a.CA + ", without which there is no connection"
		if a.Mode != router.ClientAuthRequire {
			text = "asks for a client certificate of CA " + a.CA + ", and lets everybody in: backends are told what it is worth"
		}
		if a.Err != "" {
			text += " (" + a.Err + ")"
		}
		row("client_auth", text)
	}
	for _, what := range e.First {
		row("first", what)
	}
	for _, t := range e.Targets {
		row("target", strings.TrimSpace(fmt.Sprintf("%s weight %d %s %s", t.Address, t.Weight, t.Health, t.HealthErr)))
	}
	if c := e.Certificate; c != nil {
		text := fmt.Sprintf("%s by %s until %s", strings.Join(c.Names, ", "), c.Issuer, c.Until.Format("2006-01-02"))
		if c.Err != "" {
			text = "none: " + c.Err
		}
		row("certificate", text)
	}
	if e.Limits != nil {
		if text, err := json.Marshal(e.Limits); err == nil {
			row("limits", string(text))
		}
	}
	for _, o := range e.Others {
		row("not", fmt.Sprintf("routes/%s (%s): %s", o.Route, o.Host, o.Why))
	}
}
