package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/api/client"
	"github.com/remotegpu/sluice/control/wire"
)

// adminClient asks a node on its admin address, or by its control API.
type adminClient struct {
	addr string
	api  apiFlags // of commands that have both

	client *client.Client // once it was opened; nil: the admin address is asked
}

// addAdminFlag adds the flag that says which node is asked.
func (a *adminClient) addAdminFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&a.addr, "admin", "127.0.0.1:9180", "the node's admin address, as in its file")
}

// addBothFlags is addAdminFlag for commands that can ask the control API as well.
func (a *adminClient) addBothFlags(cmd *cobra.Command) {
	a.addAdminFlag(cmd)
	a.api.add(cmd)
}

// remote returns the control API that is to be asked, nil where it is the admin
// address. The caller closes it.
func (a *adminClient) remote(cmd *cobra.Command) (*client.Client, error) {
	if cmd.Flags().Changed("admin") {
		if a.api != (apiFlags{}) {
			return nil, usageError{errors.New("--admin and --api are two ways to ask a node; give one of them")}
		}
		return nil, nil
	}
	if err := a.api.check(&clusterFlags{}); err != nil || !a.api.asked(&clusterFlags{}) {
		return nil, err
	}
	return a.api.dial()
}

// open finds out how the node is to be asked.
func (a *adminClient) open(cmd *cobra.Command) (done func(), err error) {
	c, err := a.remote(cmd)
	if err != nil || c == nil {
		return func() {}, err
	}
	a.client = c
	return c.Close, nil
}

// flows lists flows; unseen says which there are besides, and why those are not
// listed.
func (a *adminClient) flows(ctx context.Context, f api.Filter) (all []api.Flow, unseen string, err error) {
	if a.client != nil {
		answer, err := a.client.Flows(ctx, f.Query())
		if err != nil {
			return nil, "", err
		}
		return answer.Items, answer.Unseen, nil
	}
	body, header, err := a.askFully(ctx, http.MethodGet, "/flows", f.Query())
	if err != nil {
		return nil, "", err
	}
	all, err = readLines[api.Flow](body)
	return all, header.Get(api.UnseenHeader), err
}

func (a *adminClient) mappings(ctx context.Context, f api.Filter) ([]api.Mapping, error) {
	return linesOf[api.Mapping](ctx, a, "/mappings", f)
}

func (a *adminClient) explain(ctx context.Context, q api.Question) (e api.Explanation, err error) {
	if a.client != nil {
		said, err := a.client.Explain(ctx, q.Query())
		if err != nil {
			return e, err
		}
		return *said, nil
	}
	body, err := a.ask(ctx, http.MethodGet, "/explain", q.Query())
	if err != nil {
		return e, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&e); err != nil {
		return e, fmt.Errorf("read the node's answer: %w", err)
	}
	return e, nil
}

// cut ends flows and returns how many.
func (a *adminClient) cut(ctx context.Context, f api.Filter, all bool) (*wire.Cut, error) {
	query := f.Query()
	if all {
		query.Set("all", "true")
	}
	if a.client != nil {
		return a.client.CutFlows(ctx, query)
	}
	body, err := a.ask(ctx, http.MethodDelete, "/flows", query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	answer := &wire.Cut{}
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return nil, fmt.Errorf("read the node's answer: %w", err)
	}
	return answer, nil
}

// linesOf gets a list as JSON lines.
func linesOf[T any](ctx context.Context, a *adminClient, path string, f api.Filter) (all []T, err error) {
	body, err := a.ask(ctx, http.MethodGet, path, f.Query())
	if err != nil {
		return nil, err
	}
	return readLines[T](body)
}

// readLines reads JSON lines, and closes what they come from.
func readLines[T any](body io.ReadCloser) (all []T, err error) {
	defer body.Close()
	for dec := json.NewDecoder(bufio.NewReader(body)); ; {
		var v T
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the node's answer: %w", err)
		}
		all = append(all, v)
	}
}

// ask sends a request and returns the body of an answer that is no refusal.
func (a *adminClient) ask(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
	body, _, err := a.askFully(ctx, method, path, query)
	return body, err
}

// askFully is ask that returns the answer's fields as well.
func (a *adminClient) askFully(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, http.Header, error) {
	u := url.URL{Scheme: "http", Host: a.addr, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("the admin address %q is none; write host:port, such as 127.0.0.1:9180", a.addr)}
	}
	// Whatever name leads to the node: it answers to this one, which no web
	// page can claim.
	req.Host = "localhost"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, nil, fmt.Errorf("ask the node at %s: %w (a node that runs there answers on its admin address; --admin names another one)", a.addr, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, resp.Header, nil
	}
	defer resp.Body.Close()
	var refusal struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&refusal); err != nil || refusal.Error == "" {
		return nil, nil, fmt.Errorf("the node at %s answers %s; is it one of this version?", a.addr, resp.Status)
	}
	return nil, nil, fmt.Errorf("the node at %s: %s", a.addr, refusal.Error)
}

// filterFlag sets one field of a filter.
type filterFlag struct {
	filter *api.Filter
	name   string
	text   string
}

func (f *filterFlag) String() string { return f.text }
func (f *filterFlag) Type() string   { return "string" }

func (f *filterFlag) Set(value string) error {
	if value == "" {
		return fmt.Errorf("is empty; leave it out to have all")
	}
	f.text = value
	return f.filter.Set(f.name, value)
}

// addFilterFlags adds flags for fields of a filter.
func addFilterFlags(cmd *cobra.Command, f *api.Filter, names ...string) {
	help := map[string]string{
		"id": "the flow with this ID", "proto": "tcp or udp", "port": "of the node that clients came to",
		"client": "a client's address, or a network of clients", "env": "of this environment", "service": "of this service",
		"listener": "such as tcp/20022 or https/443", "route": "taken by this route", "backend": "at this target, host:port",
	}
	for _, name := range names {
		cmd.Flags().Var(&filterFlag{filter: f, name: name}, name, help[name])
	}
}
