package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
)

// envsClient is a client of one node's control API, with a token of its own.
type envsClient struct {
	http    *http.Client
	url     string // of the environments
	token   string
	backend netip.Addr // of all environments
}

// newClients makes clients, the same number for each node, as far as that goes.
func (c *envsCluster) newClients(ctx context.Context) error {
	for i := range envsClients {
		out, err := c.sluice(ctx, "token", "create", fmt.Sprintf("client%d", i), "--role", "operator")
		if err != nil {
			return err
		}
		n := c.nodes[i%len(c.nodes)]
		c.clients = append(c.clients, &envsClient{
			http: &http.Client{Transport: &http.Transport{}}, url: fmt.Sprintf("http://%v/api/v1/environments", n.ports.Admin),
			token: strings.TrimSpace(string(out)), backend: c.net.here,
		})
	}
	return nil
}

// sluice runs a command of the program's about the cluster.
func (c *envsCluster) sluice(ctx context.Context, args ...string) (out []byte, err error) {
	cmd := command(ctx, c.bench.options.sluice, append(args, "--endpoints", "http://"+c.store.addr.String())...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if out, err = cmd.Output(); err != nil {
		return out, fmt.Errorf("sluice %s: %w: %s", strings.Join(args, " "), err, tail(stderr.Bytes()))
	}
	return out, nil
}

// create makes an environment and returns its ssh port.
func (c *envsClient) create(ctx context.Context, id, query string, taken *takenPorts) (port int, err error) {
	services := map[string]struct{}{}
	for _, name := range envsServices() {
		services[name] = struct{}{}
	}
	body, err := json.Marshal(map[string]any{"id": id, "backend": c.backend.String(), "services": services})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+query, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var made struct{ Services map[string]struct{ Port int } }
	if err := json.Unmarshal(answer, &made); err != nil || resp.StatusCode != http.StatusCreated || len(made.Services) != len(services) {
		return 0, fmt.Errorf("create %s: %s: %s", id, resp.Status, tail(answer))
	}
	for name, s := range made.Services {
		taken.take(s.Port, id+"/"+name)
	}
	return made.Services[envsSSH].Port, nil
}

// takenPorts are the ports that clients were told they have.
type takenPorts struct {
	mu    sync.Mutex
	by    map[int]string
	twice []string
}

func (t *takenPorts) take(port int, by string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.by[port]; other != "" {
		t.twice = append(t.twice, fmt.Sprintf("%d: %s and %s", port, other, by))
	}
	t.by[port] = by
}
