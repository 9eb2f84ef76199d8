package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// demoRoute is put in etcd at the very first start of a node with the demo
// backend, so that there is something to ask for.
const demoRoute = "demo"

// seedDemo puts the demo's route, unless there are keys already.
func seedDemo(ctx context.Context, endpoint, prefix, backend string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	there, err := c.Get(ctx, prefix+"/", clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err == nil && len(there.Kvs) == 0 {
		_, err = c.Put(ctx, prefix+"/routes/"+demoRoute, fmt.Sprintf(`{"host": "demo.localhost", "backend": %q}`, backend))
	}
	if err != nil {
		return fmt.Errorf("put the demo's route: %w", err)
	}
	return nil
}

// runHints tells a newcomer what to try, once the node is ready.
func (n *node) runHints(ctx context.Context) error {
	select {
	case <-n.control.Ready():
	case <-ctx.Done():
		return nil
	}
	said := make(chan struct{})
	go func() { // outlives the node only where nobody reads its output
		defer close(said)
		fmt.Fprint(n.stdout, hints(n.cfg))
	}()
	select {
	case <-said:
	case <-ctx.Done():
	}
	return nil
}

// hints returns what to try next on a node with the demo backend. Every line
// that begins with two spaces is a command.
func hints(c *config.Config) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("\nSluice %s is running. In another terminal, try:\n", versionString())
	if len(c.Listeners.HTTPS) > 0 && c.LocalCA {
		port := config.Port(c.Listeners.HTTPS[0].Address)
		ca := filepath.Join(c.Data, "ca.pem")
		line("A route, over HTTPS (HTTP/3 is on the same port):")
		line("  curl --cacert %s https://demo.localhost:%d/echo", ca, port)
	}
	if len(c.Etcd.Endpoints) == 0 {
		etcdctl := "etcdctl"
		if c.Etcd.Listen != "127.0.0.1:2379" {
			etcdctl += " --endpoints " + c.Etcd.Listen
		}
		if len(c.Ports) > 0 {
			port := c.Ports[0].First + min(80, c.Ports[0].Size()-1)
			line("A port, live as soon as it is put:")
			line("  %s put %s/ports/tcp/%d %s", etcdctl, c.Etcd.Prefix, port, c.Demo)
			line("  curl http://127.0.0.1:%d/echo", port)
		}
		line("What the node did with each key, and the keys themselves:")
		line("  %s get --prefix %s/verdicts/", etcdctl, c.Etcd.Prefix)
		line("  %s get --prefix %s/routes/", etcdctl, c.Etcd.Prefix)
	}
	line("Health and metrics:")
	line("  curl http://%s/readyz", c.Admin)
	line("  curl http://%s/metrics", c.Admin)
	line("\nREADME.md has a tour, KEYS.md every key. Ctrl-C stops the node.\n")
	return b.String()
}
