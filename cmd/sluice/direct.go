package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// direct is the cluster by its etcd.
type direct struct {
	flags *clusterFlags
	store *keys.Store
	all   bool // plans are for keys, too, on which nodes do not act

	manager *envs.Manager // once it was needed
	seals   *sealer
}

func (d *direct) close() error {
	return errors.Join(d.seals.close(), d.store.Client.Close())
}

func (d *direct) list(ctx context.Context, prefix string) ([]keys.Entry, error) {
	return d.store.List(ctx, prefix)
}

func (d *direct) names(ctx context.Context, prefix string, most int) ([]string, error) {
	return d.store.Client.ReadNames(ctx, prefix, most)
}

func (d *direct) plan(ctx context.Context, wishes []keys.Wish) (*keys.Plan, error) {
	if d.all {
		return d.store.PlanAll(ctx, wishes)
	}
	return d.store.Plan(ctx, wishes)
}

func (d *direct) make(ctx context.Context, p *keys.Plan, wait time.Duration) (keys.Made, error) {
	made, err := d.store.Make(ctx, p, wait)
	if made.Done > 0 {
		err = saidNobody(err)
	}
	return made, err
}

// saidNobody says of a change that was made and that nobody is there to act on what
// to do about it; other errors it leaves as they are.
func saidNobody(err error) error {
	if errors.As(err, new(*keys.NobodyError)) {
		return fmt.Errorf("written, and nobody is there to act on it: %w; --wait 0 asks nobody", err)
	}
	return err
}

func (d *direct) status(ctx context.Context) (*keys.Status, error) { return d.store.Status(ctx) }

func (d *direct) applied(ctx context.Context, rev int64, limit time.Duration) (_ int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := d.store.SomeoneLives(ctx); err != nil {
		return 0, err
	}
	if rev == 0 {
		if rev, err = d.store.Newest(ctx); err != nil {
			return 0, err
		}
	}
	_, err = d.store.Await(ctx, rev, nil)
	return rev, err
}

func (d *direct) changes(ctx context.Context, after int64, prefix string) (*history.Log, error) {
	log, err := history.Read(ctx, d.store.Client, after)
	if err != nil {
		return nil, err
	}
	log.Changes = slices.DeleteFunc(log.Changes, func(c history.Change) bool { return !strings.HasPrefix(c.Key, prefix) })
	for i, c := range log.Changes {
		log.Changes[i].Before, log.Changes[i].After = shownValue(c.Key, c.Before), shownValue(c.Key, c.After)
	}
	return log, nil
}

// shownValue returns what is shown of a key's value, nil if there is none: of a
// token not what it is checked by.
func shownValue(key string, value *string) *string {
	if value == nil || !strings.HasPrefix(key, tokens.Folder) {
		return value
	}
	shown := "{}"
	if t, err := tokens.Parse(strings.TrimPrefix(key, tokens.Folder), []byte(*value)); err == nil {
		t.Hash, t.Former = "", ""
		if text, err := json.Marshal(t); err == nil {
			shown = string(text)
		}
	}
	return &shown
}

func (d *direct) diff(ctx context.Context, from, to int64, prefix string) (changes []keys.Change, unknown []string, err error) {
	before, err := history.KeysAt(ctx, d.store.Client, from, prefix)
	if err != nil {
		return nil, nil, err
	}
	var after map[string]string
	unknown = before.Unknown
	if to != 0 {
		then, err := history.KeysAt(ctx, d.store.Client, to, prefix)
		if err != nil {
			return nil, nil, err
		}
		after, unknown = then.Values, append(unknown, then.Unknown...)
	} else if after, err = d.store.Now(ctx, prefix); err != nil {
		return nil, nil, err
	}
	changes = slices.DeleteFunc(keys.Difference(before.Values, after), func(c keys.Change) bool { return slices.Contains(unknown, c.Key) })
	for i, c := range changes {
		changes[i].Before, changes[i].After = shownValue(c.Key, c.Before), shownValue(c.Key, c.After)
	}
	return changes, unknown, nil
}

func (d *direct) back(ctx context.Context, to int64, prefix string) (*backTo, error) {
	wishes, unknown, err := d.store.Back(ctx, to, prefix)
	if err != nil {
		return nil, err
	}
	return &backTo{wishes: wishes, unknown: unknown}, nil
}

// environments returns what changes them, which knows all that is in etcd now.
func (d *direct) environments(ctx context.Context) (*envs.Manager, error) {
	if d.manager != nil {
		return d.manager, nil
	}
	reg := envs.NewRegistry()
	read := func(ctx context.Context) error {
		if _, err := reg.Read(ctx, d.store.Client); err != nil {
			return err
		}
		// The nodes know which ports they open; sluice.yaml may not be at hand.
		refused, err := d.store.Refused(ctx, "pools/")
		why := map[string]string{}
		for key, text := range refused {
			why[strings.TrimPrefix(key, "pools/")] = text
		}
		reg.Refuse(why)
		return err
	}
	if err := read(ctx); err != nil {
		return nil, err
	}
	s, err := d.flags.sealer(d.store)
	if err != nil {
		return nil, err
	}
	cfg := envs.Config{Store: d.store.Client, Registry: reg, Ports: d.store.Ports, By: d.store.By, Refresh: read}
	if s != nil {
		cfg.Seal, cfg.Open, d.seals = s.seal, s.open, s
	}
	d.manager = envs.New(cfg)
	return d.manager, nil
}

// await waits until every live node has applied rev, if wait says so.
func (d *direct) await(ctx context.Context, rev int64, wait time.Duration) error {
	if wait <= 0 || rev == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err := d.store.Await(ctx, rev, nil)
	return err
}

func (d *direct) createEnv(ctx context.Context, spec envs.Spec, wait time.Duration) (*wire.Environment, error) {
	return d.changed(ctx, wait, false, func(m *envs.Manager) (*envs.Env, error) { return m.Create(ctx, spec) })
}

func (d *direct) patchEnv(ctx context.Context, id string, p envs.Patch, wait time.Duration) (*wire.Environment, error) {
	return d.changed(ctx, wait, true, func(m *envs.Manager) (*envs.Env, error) { return m.Patch(ctx, id, p) })
}

// changed returns what a change has made of an environment, with what nodes say of
// it; whole is as in v1.Applied.
func (d *direct) changed(ctx context.Context, wait time.Duration, whole bool, change func(*envs.Manager) (*envs.Env, error)) (*wire.Environment, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	e, err := change(m)
	if err != nil {
		return nil, err
	}
	v := v1.EnvironmentOf(e)
	if wait <= 0 {
		return &v, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	v.Answers, err = v1.Applied(ctx, d.store, e, whole)
	return &v, saidNobody(err)
}

func (d *direct) env(ctx context.Context, id string) (*wire.Environment, error) {
	return d.changed(ctx, 0, false, func(m *envs.Manager) (*envs.Env, error) { return m.Get(ctx, id) })
}

func (d *direct) envs(ctx context.Context, prefix string) ([]wire.Environment, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	all, err := m.List(ctx, prefix, "", 1<<30)
	views := make([]wire.Environment, len(all))
	for i, e := range all {
		views[i] = v1.EnvironmentOf(e)
	}
	return views, err
}

// drainWithin bounds the wait for nodes to know how sessions are to end.
const drainWithin = 10 * time.Second

func (d *direct) removeEnv(ctx context.Context, id string, drain, wait time.Duration) (rev int64, err error) {
	m, err := d.environments(ctx)
	if err != nil {
		return 0, err
	}
	if drain >= 0 {
		onDelete := "cut"
		if drain > 0 {
			onDelete = "drain " + router.DurationText(drain)
		}
		since, of, err := m.Drain(ctx, id, 0, onDelete)
		if err != nil {
			return 0, err
		}
		if since != 0 { // nodes look at what a mapping said before it was deleted
			waiting, cancel := context.WithTimeout(ctx, drainWithin)
			defer cancel()
			if _, err := d.store.Await(waiting, since, of); err != nil {
				return 0, fmt.Errorf("environment %s goes on: %w, and would cut its sessions; try again, or leave --drain out", id, err)
			}
		}
	}
	if rev, err = m.Delete(ctx, id, 0); err != nil {
		return 0, err
	}
	return rev, d.await(ctx, rev, wait)
}

func (d *direct) access(ctx context.Context, id string, secrets bool) (map[string]wire.Access, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	all, err := m.Access(ctx, id, secrets)
	return v1.AccessOf(all), err
}

func (d *direct) alloc(ctx context.Context, r portpool.Request) (*wire.Service, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	s, _, err := m.Alloc(ctx, r)
	if err != nil {
		return nil, err
	}
	return v1.ServiceOf(s), nil
}

func (d *direct) release(ctx context.Context, env, service string) (rev int64, err error) {
	m, err := d.environments(ctx)
	if err != nil {
		return 0, err
	}
	return m.Release(ctx, env, service)
}

func (d *direct) ports(ctx context.Context, service string) ([]wire.Port, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	all, err := m.Ports(ctx, service)
	return v1.PortsOf(all), err
}

func (d *direct) usage(ctx context.Context) ([]wire.PoolUsage, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	all, err := m.Stats(ctx, time.Now())
	return v1.UsageOf(all), err
}

func (d *direct) reserve(ctx context.Context, r wire.Reservation) (rev int64, err error) {
	protos, ports, err := v1.ReservedPorts(r.Protocol, r.Ports)
	if err != nil {
		return 0, err
	}
	m, err := d.environments(ctx)
	if err != nil {
		return 0, err
	}
	return m.Reserve(ctx, protos, ports, r.For)
}

func (d *direct) unreserve(ctx context.Context, protocol, text string) (rev int64, err error) {
	protos, ports, err := v1.ReservedPorts(protocol, text)
	if err != nil {
		return 0, err
	}
	m, err := d.environments(ctx)
	if err != nil {
		return 0, err
	}
	return m.Unreserve(ctx, protos, ports)
}

func (d *direct) audit(ctx context.Context) ([]wire.PortFinding, error) {
	m, err := d.environments(ctx)
	if err != nil {
		return nil, err
	}
	found, err := m.Audit(ctx)
	return v1.FindingsOf(found), err
}

func (d *direct) nodes(ctx context.Context) ([]wire.NodeView, error) { return d.store.Nodes(ctx) }

func (d *direct) node(ctx context.Context, name string) (*wire.NodeView, error) {
	return d.store.Node(ctx, name)
}

func (d *direct) drain(ctx context.Context, name, reason string) error {
	_, err := d.store.Drain(ctx, name, reason)
	return err
}

func (d *direct) undrain(ctx context.Context, name string) error {
	_, err := d.store.Undrain(ctx, name)
	return err
}

// readTokens returns the tokens of the cluster.
func (d *direct) readTokens(ctx context.Context) ([]*tokens.Token, error) {
	kvs, _, err := d.store.Client.ReadUnder(ctx, tokens.Folder, 0)
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

func (d *direct) tokens(ctx context.Context) ([]wire.Token, error) {
	all, err := d.readTokens(ctx)
	views := make([]wire.Token, len(all))
	for i, t := range all {
		views[i] = v1.TokenOf(t)
	}
	return views, err
}

// writeToken writes t in the place of what it was at its revision.
func (d *direct) writeToken(ctx context.Context, t *tokens.Token) error {
	value, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if _, err := tokens.Parse(t.Name, value); err != nil {
		return usageError{err}
	}
	_, err = d.store.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Value: value, Since: t.Rev}}, d.store.By)
	return err
}

func (d *direct) createToken(ctx context.Context, n wire.NewToken) (secret string, err error) {
	all, err := d.readTokens(ctx)
	if err != nil {
		return "", err
	}
	for _, t := range all {
		if t.Name == n.Name {
			return "", fmt.Errorf("there is a token %s already; `sluice token rotate %[1]s` makes another in its place", n.Name)
		}
		if n.Certificate != "" && t.Certificate == n.Certificate {
			return "", fmt.Errorf("the token %s is of that certificate already; remove it first", t.Name)
		}
	}
	secret, t := v1.TokenFor(n, time.Now())
	return secret, d.writeToken(ctx, t)
}

func (d *direct) rotateToken(ctx context.Context, name string, grace time.Duration) (secret string, err error) {
	all, err := d.readTokens(ctx)
	if err != nil {
		return "", err
	}
	at := slices.IndexFunc(all, func(t *tokens.Token) bool { return t.Name == name })
	if at < 0 || all[at].Certificate != "" {
		return "", fmt.Errorf("there is no token %s that could be made anew", name)
	}
	secret, renewed := all[at].Renew(time.Now(), grace)
	return secret, d.writeToken(ctx, renewed)
}

func (d *direct) removeToken(ctx context.Context, name string) error {
	kvs, _, err := d.store.Client.ReadUnder(ctx, tokens.Folder+name, 0)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		if kv.Key == tokens.Folder+name { // whether it can be read or not
			_, err := d.store.Client.Commit(ctx, []etcd.Edit{{Key: kv.Key, Delete: true, Since: kv.ModRev}}, d.store.By)
			return err
		}
	}
	return fmt.Errorf("there is no token %s", name)
}
