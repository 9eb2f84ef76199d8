package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/control/api"
	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/portpool"
)

// controlAPI is the control API of a node, and what it knows of the cluster.
type controlAPI struct {
	server *v1.Server
	envs   *envs.Registry
	tokens tokens.Registry
	// setState brings the verdict of a key up to date.
	setState func(key string, degraded bool, text string)
	telling  sync.Mutex
	told     map[string]string // what was said of pools last, by service
}

// tellPools has the verdicts of pools say which ports environments hold outside of
// them.
func (a *controlAPI) tellPools() {
	a.telling.Lock()
	defer a.telling.Unlock()
	now := map[string]string{}
	for service, ports := range a.envs.Stranded() {
		now[service] = portpool.OutsideText(ports)
	}
	for service := range a.told {
		if now[service] == "" {
			a.setState("pools/"+service, false, "")
		}
	}
	for service, text := range now { // again, for what the node has made of the pool since
		a.setState("pools/"+service, true, text)
	}
	a.told = now
}

// poolState says which ports environments hold outside of a pool that is to be in
// force.
func (n *node) poolState(p *portpool.Pool) string {
	if n.api == nil {
		return ""
	}
	return portpool.OutsideText(n.api.envs.StrandedBy(p))
}

// openAPI makes the control API, which the admin address serves below /api/, and
// opens the address that it may have besides.
func (n *node) openAPI(ctx context.Context) error {
	reg := envs.NewRegistry()
	n.api = &controlAPI{envs: reg, setState: func(key string, degraded bool, text string) { n.control.SetState(key, degraded, text) }}
	by := "the control API of " + n.cfg.Node
	manager := envs.New(envs.Config{
		Store: n.client, Registry: reg, Ports: n.cfg.Ports, By: by, Metrics: envs.NewMetrics(n.registry, reg),
		Space: int(n.cfg.API.Space), Deny: n.cfg.API.DenyBackends,
		Sync: n.client.Sync, Seal: n.shared.SealSecret, Open: n.shared.OpenSecret,
	})
	n.api.server = v1.New(v1.Config{
		Envs: manager, Keys: &keys.Store{Client: n.client, Ports: n.cfg.Ports, By: by}, Tokens: &n.api.tokens, Live: live{n}, Sync: n.client.Sync,
		Version: versionString(), Logger: n.log, Registerer: n.registry,
	})
	c := n.cfg.API
	if c.Listen == "" {
		return nil
	}
	tlsConfig, err := n.apiTLS()
	if err != nil {
		return err
	}
	ln, err := n.listenTCP(ctx, "control API's", c.Listen)
	if err != nil {
		return err
	}
	n.onClose(func() error { return ignoreClosed(ln.Close()) })
	n.parts["control API"] = func(ctx context.Context) error {
		return n.api.server.Serve(ctx, tls.NewListener(api.Bounded(ln), tlsConfig))
	}
	return nil
}

// apiTLS returns what the control API's own address speaks TLS with.
func (n *node) apiTLS() (*tls.Config, error) {
	c := n.cfg.API
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: n.certs.GetCertificate, NextProtos: []string{"h2", "http/1.1"}}
	if c.Cert != "" {
		files := &pairFile{cert: c.Cert, key: c.Key}
		t.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return files.load(time.Now()) }
		if _, err := t.GetCertificate(nil); err != nil {
			return nil, fmt.Errorf("read api.cert and key: %w", err)
		}
	}
	if c.ClientCA != "" {
		pem, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("read api.client_ca: %w", err)
		}
		t.ClientCAs, t.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read api.client_ca: %s holds no PEM certificate", c.ClientCA)
		}
	}
	return t, nil
}

// serveAPI answers what the admin address is asked below /api/.
func (n *node) serveAPI(w http.ResponseWriter, r *http.Request) {
	if n.api == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	n.api.server.Handler().ServeHTTP(w, r)
}

// The control API knows pools and mappings from what the node is configured by,
// and the rest from what it is told aside from that.
var (
	apiConfigured = []string{"pools/", "ports/", "routes/"}
	apiAside      = []string{"allocations/", "envs/"}
	asideFolders  = slices.Concat(etcdstore.Mirrored, apiAside, []string{tokens.Folder}, fleet.Folders)
)

// both passes configuration to the node itself, and then to its control API.
type both struct {
	main handler
	api  *controlAPI
}

type handler interface {
	Load(rev int64, kvs []etcd.KV)
	Change(rev int64, changes []etcd.Change)
}

func (b both) Load(rev int64, kvs []etcd.KV) {
	b.main.Load(rev, kvs)
	b.api.envs.LoadBelow(apiConfigured, kvs)
	b.api.tellPools()
}

func (b both) Change(rev int64, changes []etcd.Change) {
	b.main.Change(rev, changes)
	b.api.envs.Change(rev, changes)
	b.api.tellPools()
}

// aside passes what is not configuration to those who want it: what nodes share
// of certificates, environments, tokens, and what nodes say of each other.
type aside struct {
	shared, fleet handler
	api           *controlAPI
}

func (a aside) Load(rev int64, kvs []etcd.KV) {
	a.api.envs.LoadBelow(apiAside, kvs)
	a.api.tellPools()
	a.api.tokens.Load(rev, kvs)
	a.fleet.Load(rev, kvs)
	a.shared.Load(rev, slices.DeleteFunc(kvs, func(kv etcd.KV) bool { return !strings.HasPrefix(kv.Key, "acme/") }))
}

func (a aside) Change(rev int64, changes []etcd.Change) {
	a.api.envs.Change(rev, changes)
	a.api.tellPools()
	a.api.tokens.Change(rev, changes)
	a.fleet.Change(rev, changes)
	a.shared.Change(rev, slices.DeleteFunc(changes, func(c etcd.Change) bool { return !strings.HasPrefix(c.Key, "acme/") }))
}

const (
	// forgetEvery is how often requests of the control API that came long ago are
	// forgotten, and countEvery how often it is looked whether there are too many.
	forgetEvery, countEvery = time.Hour, time.Minute
	// forgetAtOnce is how many; a transaction has room for them.
	forgetAtOnce = 100
)

// forgetRequests forgets them until ctx ends.
func (n *node) forgetRequests(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for next := time.Now(); ; {
		now := time.Now()
		many, err := n.client.ReadNames(ctx, v1.IdempotencyFolder, n.cfg.API.Remember)
		if err == nil && (len(many) == n.cfg.API.Remember || !now.Before(next)) {
			next = now.Add(forgetEvery)
			err = n.forgetOld(ctx, now)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("old requests of the control API are not forgotten yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *node) forgetOld(ctx context.Context, now time.Time) error {
	memory := v1.NewMemory(now, n.cfg.API.Remember)
	for after := ""; ; {
		kvs, err := n.client.ReadRange(ctx, v1.IdempotencyFolder, after, forgetAtOnce)
		if err != nil {
			return err
		}
		if err := n.forget(ctx, memory.Look(kvs)); err != nil {
			return err
		}
		if len(kvs) < forgetAtOnce {
			break
		}
		after = strings.TrimPrefix(kvs[len(kvs)-1].Key, v1.IdempotencyFolder)
	}
	for edits := range slices.Chunk(memory.Excess(), forgetAtOnce) {
		if err := n.forget(ctx, edits); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) forget(ctx context.Context, edits []etcd.Edit) error {
	if len(edits) == 0 {
		return nil
	}
	_, err := n.client.Commit(ctx, edits, n.cfg.Node+": old requests")
	if errors.As(err, new(*etcd.ConflictError)) {
		return nil // the next time
	}
	return err
}
